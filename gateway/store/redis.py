"""The shared session store: Redis, for any number of gateway replicas.

Implements gateway.core.interfaces.SessionStore. Every compare-and-set is one Lua script (redis_scripts). A Redis that
does not answer becomes StoreUnavailableError within about a second; once it answers again, so does the store.

What an answered write survives is the server's configuration: set `appendonly yes`. A failover to an asynchronous
replica may lose the last writes (docs/adr/0002-redis-keys.md).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha1
from itertools import islice
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoScriptError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.core.clock import Clock
from gateway.core.documents import DocumentStore
from gateway.core.errors import FencedOutError, StaleWriteError, StoreUnavailableError
from gateway.core.model import Lease, RuntimeKey, Session, SessionId, SessionState
from gateway.store import claims, codec, redis_scripts
from gateway.store.redis_client import DEADLINE_S, Close, make_client, redacted
from gateway.store.redis_documents import RedisDocuments
from gateway.store.redis_durability import durability_warnings

T = TypeVar("T")

SCHEMA_VERSION = 1
# Exchanges at a time; more wait. More connections keep Redis no busier, but a burst at a new gateway dials them all at
# once, and the timeout of each dial runs on while the process handles the others: on a busy CPU 64 dials took longer
# than one may, and a healthy store was reported as unavailable.
CONNECTIONS = 16
PAGE = 100  # records per read while iterating
TOUCHES_PER_SCRIPT = 500  # records per script: about 5 ms of the server, which does nothing else meanwhile
LEASE_RETENTION_S = 86400.0  # after its end, until a lease is deleted

_CHUNK_SPAN_S = {1: 3600, 60: 86400}  # bucket width -> seconds of history per key
_FIELDS = ("v", "at", "record")


class RedisStore:
    """Session records, leases and claims under `prefix` in the Redis at `url` (forms: redis_client).

    Leases end by the server's clock, or by `clock` when `server_time` is False (virtual time in tests).
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        prefix: str = "wakegate",
        *,
        server_time: bool = True,
        deadline: float = DEADLINE_S,
    ) -> None:
        self._url = url
        self._deadline = deadline
        self._clock = clock
        self._root = f"{{{prefix}}}:"  # the braces put all keys of a store into one slot of a cluster
        self._server_time = server_time
        self._client: Any = None
        self._close: Close | None = None
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._outages = 0
        self.documents: DocumentStore = RedisDocuments(self._root, self._call, self._run)

    def __repr__(self) -> str:
        return f"<RedisStore {redacted(self._url)} {self._root}>"

    async def start(self) -> None:
        """Connect. Raises SettingsError for a wrong URL, StoreUnavailableError when nothing usable answers.

        After the latter the store is open all the same, and works as soon as the server does.
        """
        if self._client is None:
            self._client, self._close = make_client(self._url, self._deadline)
        key = self._root + "schema"
        found = await self._call(lambda redis: redis.set(key, SCHEMA_VERSION, nx=True))
        if not found:
            version = int(await self._call(lambda redis: redis.get(key)) or 0)
            if version > SCHEMA_VERSION:
                raise StoreUnavailableError(
                    f"session store {redacted(self._url)}: written by a newer Wakegate (schema {version}, this one "
                    f"knows {SCHEMA_VERSION}); run that version, or choose another prefix"
                )

    async def aclose(self) -> None:
        """Close all connections; safe to call twice."""
        close, self._close, self._client = self._close, None, None
        if close is not None:
            await close()

    async def ping(self) -> None:
        """Write one small key. Raises StoreUnavailableError, also for a replica or a server over its memory limit."""
        await self._call(lambda redis: redis.set(self._root + "probe", 1))

    async def warnings(self) -> Sequence[str]:
        """Eviction and missing persistence, of one node where there are several. Raises StoreUnavailableError."""
        memory = await self._call(lambda redis: redis.info("memory"))
        persistence = await self._call(lambda redis: redis.info("persistence"))
        return durability_warnings(memory, persistence, await self._call(_save_points))

    async def get(self, session_id: SessionId) -> Session | None:
        """The record, or None."""
        return self._session(await self._call(lambda redis: redis.hmget(self._record(session_id), _FIELDS)))

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Write the record if the stored version is still `session.version`.

        A last activity that was touched in since the record was read is kept. Raises StaleWriteError, FencedOutError,
        BadRequestError for what has no JSON form, and StoreUnavailableError: the write may have landed then.
        """
        fence = (lease.name, lease.fence, lease.holder) if lease else ("", "", "")
        verdict, value = await self._run(
            redis_scripts.PUT,
            [*self._keys(session.id), self._root + "leases"],
            [
                session.id,
                session.version,
                session.version + 1,
                session.state.value,
                str(session.runtime),
                repr(float(session.last_active_at)),
                repr(float(session.idle_timeout)),
                repr(float(session.expires_at)),
                codec.encode(session),
                *fence,
            ],
        )
        if verdict == 0:
            raise StaleWriteError(f"session {session.id}: the record changed since version {session.version} was read")
        if verdict == -1 and lease is not None:
            raise FencedOutError(_fenced_out(lease, value.decode()))
        return replace(session, version=session.version + 1, last_active_at=float(value))

    async def delete(self, session_id: SessionId) -> None:
        """Forget a record; absent is success."""
        await self._run(redis_scripts.DELETE, self._keys(session_id), [session_id])

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time."""
        rest = iter(seen.items())
        while batch := list(islice(rest, TOUCHES_PER_SCRIPT)):
            keys = [*self._keys(batch[0][0])[:4], *(self._record(session_id) for session_id, _ in batch)]
            arguments = [text for session_id, at in batch for text in (session_id, repr(float(at)))]
            await self._run(redis_scripts.TOUCH, keys, arguments)

    async def sessions(
        self,
        *,
        state: SessionState | None = None,
        runtime: RuntimeKey | None = None,
        after: SessionId | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by id (in the order of their UTF-8 bytes), strictly after `after`, at most `limit`."""
        prefix = redis_scripts.listing_prefix(state, runtime).encode()
        end = b"(" + prefix[:-1] + b"\x01"
        last = prefix + (after or "").encode()
        while limit > 0:
            asked = min(limit, PAGE)
            page = await self._members("zrangebylex", "listing", b"(" + last, end, start=0, num=asked)
            ids = [member[len(prefix) :] for member in page]
            for session in await self._fetch(ids):
                if (state is None or session.state is state) and (runtime is None or session.runtime == runtime):
                    limit -= 1
                    yield session
            if len(page) < asked:
                return
            last = page[-1]

    async def idle(self, now: float) -> AsyncIterator[Session]:
        """Active sessions with idle_at <= now, soonest first."""
        async for session in self._until("idle", now):
            if session.state is SessionState.ACTIVE and session.idle_at <= now:
                yield session

    async def expired(self, now: float) -> AsyncIterator[Session]:
        """Sessions that are not terminated with expires_at <= now, soonest first."""
        async for session in self._until("expiry", now):
            if session.state is not SessionState.TERMINATED and session.expires_at <= now:
                yield session

    async def terminated(self, before: float) -> AsyncIterator[Session]:
        """Terminated sessions with last_active_at <= before, oldest first."""
        async for session in self._until("terminated", before):
            if session.state is SessionState.TERMINATED and session.last_active_at <= before:
                yield session

    async def _until(self, index: str, bound: float) -> AsyncIterator[Session]:
        """The records of one index up to `bound`; one may have changed since the index was read.

        Each page begins at the last score of the one before. Members of that score were seen already; as many more
        are asked for, since others may have left from under any offset.
        """
        score, seen = float("-inf"), set[bytes]()
        while True:
            want = PAGE + len(seen)
            page = await self._members(
                "zrangebyscore", index, repr(score), repr(float(bound)), start=0, num=want, withscores=True
            )
            fresh = [(member, at) for member, at in page if not (at == score and member in seen)]
            for session in await self._fetch(member for member, _ in fresh):
                yield session
            if len(page) < want:
                return
            last = fresh[-1][1]
            if last != score:
                score, seen = last, set()
            seen |= {member for member, at in fresh if at == score}

    async def acquire_lease(self, name: str, holder: str, ttl: float) -> Lease | None:
        """Take the lease if it is free, expired, or already `holder`'s. None: another holder has it.

        `expires_at` is by the caller's clock, from before it asked: it may end a little early, never late.
        """
        asked = self._clock.now()
        keys = [self._root + name for name in ("leases", "lease-ends", "lease-floor")]
        fence = await self._run(
            redis_scripts.ACQUIRE, keys, [self._now(), name, holder, repr(ttl), repr(LEASE_RETENTION_S)]
        )
        return Lease(name, holder, int(fence), asked + ttl) if fence else None

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend it; an expired one that was not taken since may be renewed. None: it was lost."""
        asked = self._clock.now()
        return replace(lease, expires_at=asked + ttl) if await self._set_lease(lease, lease.holder, ttl) else None

    async def release_lease(self, lease: Lease) -> None:
        """Give it back if it is still ours; anything else is success."""
        await self._set_lease(lease, "", 0.0)

    async def lease(self, name: str) -> Lease | None:
        """The lease as it stands; None: free, or forgotten."""
        asked = self._clock.now()
        found = await self._run(redis_scripts.LEASE, [self._root + "leases"], [self._now(), name])
        if not found:
            return None
        fence, left, holder = found
        return Lease(name, holder.decode(), int(fence), asked + float(left))

    async def _set_lease(self, lease: Lease, holder: str, ttl: float) -> bool:
        keys = [self._root + name for name in ("leases", "lease-ends")]
        arguments = [self._now(), lease.name, lease.fence, lease.holder, holder, repr(ttl)]
        return bool(await self._run(redis_scripts.RENEW, keys, arguments))

    def _now(self) -> str:
        return "" if self._server_time else repr(self._clock.now())

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        keys: dict[str, int] = {}
        arguments: list[int] = []
        for (bucket, start), n in claims.fold(counts).items():
            key = self._chunk(runtime, bucket, start // _CHUNK_SPAN_S[bucket])
            # Old history goes by itself: a key outlives its last write by its horizon and its own span.
            arguments += [
                keys.setdefault(key, len(keys) + 1),
                claims.HORIZON_S[bucket] + _CHUNK_SPAN_S[bucket],
                start,
                n,
            ]
        if keys:
            await self._run(redis_scripts.CLAIMS, list(keys), arguments)

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) of the buckets that began at `since` or later, oldest first."""
        now = self._clock.now()
        oldest = claims.oldest_start(bucket, since, now)
        span = _CHUNK_SPAN_S[bucket]
        # One chunk past the present: another replica's clock may be ahead.
        chunks = [self._chunk(runtime, bucket, chunk) for chunk in range(oldest // span, int(now) // span + 2)]
        found = await self._pipe("hgetall", [(key,) for key in chunks])
        counts = ((int(start), int(n)) for chunk in found for start, n in chunk.items())
        return sorted((start, n) for start, n in counts if start >= oldest)

    def _chunk(self, runtime: RuntimeKey, bucket: int, chunk: int) -> str:
        return f"{self._root}claims:{bucket}:{runtime}:{chunk}"

    # Records

    def _record(self, session_id: SessionId) -> str:
        return f"{self._root}session:{session_id}"

    def _keys(self, session_id: SessionId) -> list[str]:
        return [self._record(session_id), *(self._root + name for name in ("idle", "expiry", "terminated", "listing"))]

    async def _fetch(self, ids: Iterable[bytes]) -> list[Session]:
        """The records of these ids that exist, in their order."""
        rows = await self._pipe("hmget", [(self._record(SessionId(each.decode())), _FIELDS) for each in ids])
        return [session for row in rows if (session := self._session(row)) is not None]

    def _session(self, row: Sequence[bytes | None]) -> Session | None:
        version, at, record = row
        if version is None or at is None or record is None:
            return None
        try:
            return codec.decode(record, version=int(version), last_active_at=float(at))
        except ValueError as error:
            raise StoreUnavailableError(f"session store {redacted(self._url)}: {error}") from error

    # Exchanges with the server

    async def _members(self, command: str, index: str, *bounds: bytes | str, **options: Any) -> Any:
        return await self._call(lambda redis: getattr(redis, command)(self._root + index, *bounds, **options))

    async def _pipe(self, command: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same command for many keys, in one round trip."""
        if not calls:
            return []

        async def run(redis: Any) -> list[Any]:
            async with redis.pipeline(transaction=False) as pipe:
                for arguments in calls:
                    getattr(pipe, command)(*arguments)
                return list(await pipe.execute())

        return await self._call(run)

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        async def run(redis: Any) -> Any:
            try:
                return await redis.evalsha(_digest(script), len(keys), *keys, *arguments)
            except NoScriptError:  # a server that was restarted, or never saw it; nothing ran
                return await redis.eval(script, len(keys), *keys, *arguments)

        return await self._call(run)

    async def _call(self, exchange: Callable[[Any], Awaitable[T]]) -> T:
        """One exchange within the deadline. Raises StoreUnavailableError for every failure."""
        outages = self._outages
        async with self._turns:
            client = self._client
            if client is None:
                raise StoreUnavailableError("the session store is not open")
            if outages != self._outages:
                # Another call failed while this one waited for its turn. With a dead server each turn takes the whole
                # deadline, so with 160 waiting the last would fail after 10 s; they share the first answer instead.
                raise StoreUnavailableError(f"session store {redacted(self._url)} does not answer")
            try:
                async with asyncio.timeout(self._deadline):
                    return await exchange(client)
            except (RedisError, OSError, TimeoutError) as error:
                if isinstance(error, _AWAY):
                    self._outages += 1
                if isinstance(error, ReadOnlyError) and isinstance(client, Redis):
                    # A replica answers where the master was: dial again, so that the name is looked up anew.
                    await client.connection_pool.disconnect(inuse_connections=False)
                why = _why(error, self._deadline)
                raise StoreUnavailableError(f"session store {redacted(self._url)}{why}") from error


async def _save_points(redis: Any) -> str | None:
    """When the server writes RDB files, as `save` in its configuration; None where CONFIG is not allowed."""
    try:
        return str((await redis.config_get("save")).get("save", ""))
    except ResponseError:  # managed services rename or forbid CONFIG
        return None


_AWAY = (OSError, TimeoutError, RedisConnectionError, RedisTimeoutError)  # the server, as against what it answered


@functools.cache
def _digest(script: str) -> str:
    return sha1(script.encode()).hexdigest()  # noqa: S324 — the name Redis gives a script, no secret


def _why(error: BaseException, deadline: float) -> str:
    if isinstance(error, AuthenticationError):
        return f" refused the password: {error}"
    if isinstance(error, TimeoutError):
        return f" did not answer within {deadline:g} s"
    return f": {error or type(error).__name__}"


def _fenced_out(lease: Lease, held: str) -> str:
    fence, _, rest = held.partition(" ")
    holder = rest.partition(" ")[2]
    newest = f"{holder} has it with fence {fence}" if holder else "it was given back"
    return f"lease {lease.name} of {lease.holder} (fence {lease.fence}) is no longer valid: {newest}"

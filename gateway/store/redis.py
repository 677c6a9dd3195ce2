"""The shared session store: Redis, for any number of gateway replicas.

Implements gateway.core.interfaces.SessionStore. Every compare-and-set is one Lua script (redis_scripts). If Redis does
not answer, calls raise StoreUnavailableError within about a second; the store recovers when the server does.

How durable an acknowledged write is depends on the server's configuration: set `appendonly yes`. A failover to an
asynchronous replica may lose the last writes (docs/adr/0002-redis-keys.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from redis.exceptions import ResponseError

from gateway.core.clock import Clock
from gateway.core.documents import DocumentStore
from gateway.core.errors import FencedOutError, StaleWriteError, StoreUnavailableError
from gateway.core.model import Lease, RuntimeKey, Session, SessionId, SessionState
from gateway.core.questions import PeerQuestions
from gateway.core.quota import QuotaLedger
from gateway.core.tasks import TaskStore
from gateway.core.usage import UsageStore
from gateway.store import codec, redis_pages, redis_scripts, redis_search
from gateway.store.redis_claims import RedisClaims
from gateway.store.redis_client import DEADLINE_S, redacted
from gateway.store.redis_documents import RedisDocuments
from gateway.store.redis_durability import durability_warnings
from gateway.store.redis_exchanges import RedisExchanges
from gateway.store.redis_questions import RedisQuestions
from gateway.store.redis_quotas import RedisQuotas
from gateway.store.redis_tasks import RedisTasks
from gateway.store.redis_usage import RedisUsage

SCHEMA_VERSION = 1
PAGE = 100  # records per read while iterating
VERSIONS_PER_READ = 500  # commands in one round trip
TOUCHES_PER_SCRIPT = 500  # records per script: about 5 ms, in which the server runs nothing else
LEASE_RETENTION_S = 86400.0  # from a lease's expiry until it is deleted

_FIELDS = ("v", "at", "record")


class RedisStore:
    """Session records, leases and claims under `prefix` in the Redis at `url` (redis_client lists the forms).

    Leases expire by the server's clock, or by `clock` if `server_time` is False (virtual time in tests).
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
        self._clock = clock
        self._root = f"{{{prefix}}}:"  # a hash tag: all keys of a store are in one slot of a cluster
        self._server_time = server_time
        self._redis = RedisExchanges(url, deadline)
        self._claims = RedisClaims(self._root, self._redis.pipe, self._redis.run)
        self.documents: DocumentStore = RedisDocuments(self._root, self._redis.call, self._redis.run)
        self.usage: UsageStore = RedisUsage(self._root, self._redis.pipe, self._redis.run)
        self.quotas: QuotaLedger = RedisQuotas(self._root, self._redis.call, self._redis.run, self._now)
        self.tasks: TaskStore = RedisTasks(self._root, self._redis.call, self._redis.pipe, self._redis.run)
        self.questions: PeerQuestions = RedisQuestions(self._root, self._redis.call, self._redis.subscription)

    def __repr__(self) -> str:
        return f"<RedisStore {redacted(self._url)} {self._root}>"

    async def start(self) -> None:
        """Connect and check the schema version. Raises SettingsError for a wrong URL, StoreUnavailableError otherwise.

        After a StoreUnavailableError the store is still open, and works as soon as the server does.
        """
        # NX: of several gateways that start at once on an empty store, one writes and the others compare.
        self._redis.open()
        key = self._root + "schema"
        found = await self._redis.call(lambda redis: redis.set(key, SCHEMA_VERSION, nx=True))
        if not found:
            version = int(await self._redis.call(lambda redis: redis.get(key)) or 0)
            if version > SCHEMA_VERSION:
                raise StoreUnavailableError(
                    f"session store {redacted(self._url)}: written by a newer Wakegate (schema {version}, this one "
                    f"knows {SCHEMA_VERSION}); run that version, or choose another prefix"
                )

    async def aclose(self) -> None:
        """Close all connections; safe to call twice."""
        await self._redis.aclose()

    async def ping(self) -> None:
        """Write one small key. Raises StoreUnavailableError, also for a replica or a server over its memory limit."""
        # Not a PING, which a server that accepts no writes answers as well.
        await self._redis.call(lambda redis: redis.set(self._root + "probe", 1))

    async def warnings(self) -> Sequence[str]:
        """Warn of eviction and missing persistence, for one node of a cluster. Raises StoreUnavailableError."""
        memory = await self._redis.call(lambda redis: redis.info("memory"))
        persistence = await self._redis.call(lambda redis: redis.info("persistence"))
        return durability_warnings(memory, persistence, await self._redis.call(_save_points))

    async def get(self, session_id: SessionId) -> Session | None:
        """The record as last written, or None. Raises StoreUnavailableError."""
        return self._session(await self._redis.call(lambda redis: redis.hmget(self._record(session_id), _FIELDS)))

    async def versions(self, session_ids: Sequence[SessionId]) -> Mapping[SessionId, int]:
        """The versions of the records that exist."""
        found: dict[SessionId, int] = {}
        for start in range(0, len(session_ids), VERSIONS_PER_READ):
            ids = session_ids[start : start + VERSIONS_PER_READ]
            rows = await self._redis.pipe("hget", [(self._record(each), "v") for each in ids])
            found.update({each: int(version) for each, version in zip(ids, rows, strict=True) if version is not None})
        return found

    async def put(self, session: Session, *, lease: Lease | None = None) -> Session:
        """Write the record if the stored version is still `session.version`.

        If a touch raised last_active_at since the record was read, the later time is kept. Raises StaleWriteError,
        FencedOutError, BadRequestError for a record without a JSON form, and StoreUnavailableError, after which the
        write may have been applied.
        """
        fence = (lease.name, lease.fence, lease.holder) if lease else ("", "", "")
        verdict, value = await self._redis.run(
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
                *redis_pages.place(session),
                repr(self._clock.now() + codec.MAX_AHEAD_S),
            ],
        )
        if verdict == 0:
            raise StaleWriteError(f"session {session.id}: the record changed since version {session.version} was read")
        if verdict == -1 and lease is not None:
            raise FencedOutError(_fenced_out(lease, value.decode()))
        return replace(session, version=session.version + 1, last_active_at=float(value))

    async def delete(self, session_id: SessionId) -> None:
        """Delete a record and its index entries. An absent one is not an error."""
        await self._redis.run(redis_scripts.DELETE, self._keys(session_id), [session_id])

    async def touch_many(self, seen: Mapping[SessionId, float]) -> None:
        """Raise last_active_at of each to at least the given time."""
        rest = iter(seen.items())
        while batch := list(islice(rest, TOUCHES_PER_SCRIPT)):
            keys = [*self._keys(batch[0][0])[:4], *(self._record(session_id) for session_id, _ in batch)]
            arguments = [text for session_id, at in batch for text in (session_id, repr(float(at)))]
            await self._redis.run(redis_scripts.TOUCH, keys, arguments)

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
                # Asked again of the record: it may have changed since the index was read.
                if (state is None or session.state is state) and (runtime is None or session.runtime == runtime):
                    limit -= 1
                    yield session
            if len(page) < asked:
                return
            last = page[-1]

    async def by_age(
        self,
        *,
        tenant: str | None = None,
        ended: bool = True,
        newest_first: bool = True,
        after: tuple[float, SessionId] | None = None,
        limit: int = 100,
    ) -> AsyncIterator[Session]:
        """Records by time of creation, then id, at most `limit`."""
        if after is None:
            await self._place_all()
        start = redis_pages.prefix(tenant=tenant, ended=ended)
        last: tuple[float, str] | bytes | None = after
        while limit > 0:
            asked = min(limit, PAGE)
            command, bounds = redis_pages.bounds(start, last, newest_first=newest_first)
            page = await self._members(command, "listing", *bounds, start=0, num=asked)
            for session in await self._fetch([redis_pages.id_in(member, start) for member in page]):
                if ended or session.state is not SessionState.TERMINATED:
                    limit -= 1
                    yield session
            if len(page) < asked:
                return
            last = page[-1]

    async def search(
        self,
        parts: Sequence[str],
        *,
        tenant: str | None,
        ended: bool,
        after: tuple[float, SessionId] | None,
        limit: int,
    ) -> Sequence[tuple[tuple[float, SessionId], Session | None]]:
        """Places of the list by age, with the records that have all the parts."""
        if after is None:
            await self._place_all()
        found = await redis_search.search(
            self._redis.run, self._root, parts, tenant=tenant, ended=ended, after=after, limit=limit
        )
        return [(place, None if row is None else self._session(row)) for place, row in found]

    async def _place_all(self) -> None:
        """Add records to the lists by age that an older Wakegate wrote, if there are any: two counts tell."""
        key, everything = self._root + "listing", redis_pages.prefix(tenant=None, ended=True)
        known, placed = await self._redis.pipe(
            "zlexcount", [(key, b"[" + each, b"(" + each[:-1] + b"\x01") for each in (b"a\0", everything)]
        )
        after: SessionId | None = None
        while known != placed:
            page = [session async for session in self.sessions(after=after, limit=PAGE)]
            if not page:
                return
            keys = [key, *(self._record(session.id) for session in page)]
            await self._redis.run(redis_pages.PLACE, keys, redis_pages.placements(page))
            after = page[-1].id

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
        """The records of one index up to `bound`. A record may have changed since the index was read.

        Each page starts at the last score of the page before, and asks for as many more members as were already seen
        with that score. Rejected: paging by offset. Callers end sessions while they iterate, so members leave the index
        and an offset would skip others. Example: page 1 ends with score 7 and members a and b; page 2 asks for
        PAGE + 2 members from score 7 on, and drops a and b.
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

        `expires_at` is computed from the caller's clock before the request is sent, so the caller considers the lease
        expired a little earlier than the server does, never later.
        """
        asked = self._clock.now()
        keys = [self._root + name for name in ("leases", "lease-ends", "lease-floor")]
        fence = await self._redis.run(
            redis_scripts.ACQUIRE, keys, [self._now(), name, holder, repr(ttl), repr(LEASE_RETENTION_S)]
        )
        return Lease(name, holder, int(fence), asked + ttl) if fence else None

    async def renew_lease(self, lease: Lease, ttl: float) -> Lease | None:
        """Extend the lease, even an expired one if nobody has taken it since. None: another holder took it."""
        asked = self._clock.now()
        return replace(lease, expires_at=asked + ttl) if await self._set_lease(lease, lease.holder, ttl) else None

    async def release_lease(self, lease: Lease) -> None:
        """Release the lease if it is still the caller's."""
        await self._set_lease(lease, "", 0.0)

    async def lease(self, name: str) -> Lease | None:
        """The current lease. None: released, or deleted since."""
        asked = self._clock.now()
        found = await self._redis.run(redis_scripts.LEASE, [self._root + "leases"], [self._now(), name])
        if not found:
            return None
        fence, left, holder = found
        return Lease(name, holder.decode(), int(fence), asked + float(left))

    async def _set_lease(self, lease: Lease, holder: str, ttl: float) -> bool:
        keys = [self._root + name for name in ("leases", "lease-ends")]
        arguments = [self._now(), lease.name, lease.fence, lease.holder, holder, repr(ttl)]
        return bool(await self._redis.run(redis_scripts.RENEW, keys, arguments))

    def _now(self) -> str:
        return "" if self._server_time else repr(self._clock.now())

    async def record_claims(self, runtime: RuntimeKey, counts: Mapping[int, int]) -> None:
        """Add claim counts, keyed by second since the epoch."""
        await self._claims.record(runtime, counts)

    async def claim_history(self, runtime: RuntimeKey, since: float, *, bucket: int) -> Sequence[tuple[int, int]]:
        """(bucket start, claims) of the buckets that began at `since` or later, oldest first."""
        return await self._claims.history(runtime, since, self._clock.now(), bucket=bucket)

    # Records

    def _record(self, session_id: SessionId) -> str:
        return f"{self._root}session:{session_id}"

    def _keys(self, session_id: SessionId) -> list[str]:
        return [self._record(session_id), *(self._root + name for name in ("idle", "expiry", "terminated", "listing"))]

    async def _members(self, command: str, index: str, *bounds: bytes | str, **options: Any) -> Any:
        return await self._redis.call(lambda redis: getattr(redis, command)(self._root + index, *bounds, **options))

    async def _fetch(self, ids: Iterable[bytes]) -> list[Session]:
        """The records of these ids that exist, in their order."""
        rows = await self._redis.pipe("hmget", [(self._record(SessionId(each.decode())), _FIELDS) for each in ids])
        return [session for row in rows if (session := self._session(row)) is not None]

    def _session(self, row: Sequence[bytes | None]) -> Session | None:
        version, at, record = row
        if version is None or at is None or record is None:
            return None
        try:
            return codec.decode(record, version=int(version), last_active_at=float(at))
        except ValueError as error:
            raise StoreUnavailableError(f"session store {redacted(self._url)}: {error}") from error


async def _save_points(redis: Any) -> str | None:
    """The server's `save` setting, which says when it writes RDB files; None if CONFIG is not allowed."""
    try:
        return str((await redis.config_get("save")).get("save", ""))
    except ResponseError:  # managed services rename or forbid CONFIG
        return None


def _fenced_out(lease: Lease, held: str) -> str:
    fence, _, rest = held.partition(" ")
    holder = rest.partition(" ")[2]
    newest = f"{holder} has it with fence {fence}" if holder else "it was given back"
    return f"lease {lease.name} of {lease.holder} (fence {lease.fence}) is no longer valid: {newest}"

"""Tasks (core/tasks.py) in the Redis of the sessions.

Keys, below the store's root:
    task:<id>            hash: v (version), queue, tenant, created, due, open, expires, keys, held, value; body, answer
    tasks-due:<queue>    sorted set of ids by due_at; those that are never due are not in it
    tasks-all:<queue>    sorted set of ids by created_at
    tasks-opened:<queue> sorted set of the ids of open ones by created_at
    tasks-held:<key>     sorted set of the ids that hold it, by the end of that
    tasks-queues         set of the queues with entries
    tasks-expiry         sorted set of ids by expires_at
    tasks-bytes          hash: tenant -> bytes of its bodies and answers
    task-name:<name>     what it stands for; Redis deletes it when that ends
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from gateway.core.tasks import Added, OpenTasks, QueuedTask
from gateway.store.codec import stale_task

_FIELDS = ("queue", "tenant", "created", "value", "due", "open", "expires", "keys", "held", "v")
_PRUNED = 100
_LOOKED_AT = 100  # of the oldest of a queue, for one that waits

# Both limits are compared in the script that adds: two gateways that each ask first, and find 999 of 1,000 there, would
# both add. `due` has no member for what is never due, so that `tasks-due` of a queue of results is empty and a look at
# it costs nothing.
# KEYS: task due all open queues expiry bytes
# ARGV: id, queue, tenant, created, due, open, expires, keys, held, value, body, max open, max bytes
_ADD = r"""
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
if redis.call('ZCARD', KEYS[4]) >= tonumber(ARGV[12]) then return 'queue full' end
local size = string.len(ARGV[11])
if tonumber(redis.call('HGET', KEYS[7], ARGV[3]) or '0') + size > tonumber(ARGV[13]) then return 'tenant full' end
redis.call('HSET', KEYS[1], 'v', 1, 'queue', ARGV[2], 'tenant', ARGV[3], 'created', ARGV[4], 'due', ARGV[5],
  'open', ARGV[6], 'expires', ARGV[7], 'keys', ARGV[8], 'held', ARGV[9], 'value', ARGV[10], 'body', ARGV[11])
if ARGV[5] ~= 'inf' then redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1]) end
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
if ARGV[6] == '1' then redis.call('ZADD', KEYS[4], ARGV[4], ARGV[1]) end
redis.call('SADD', KEYS[5], ARGV[2])
if ARGV[7] ~= 'inf' then redis.call('ZADD', KEYS[6], ARGV[7], ARGV[1]) end
redis.call('HINCRBY', KEYS[7], ARGV[3], size)
return 'added'
"""

# A key's limit counts the others that hold it now. With a limit of 1, held by this task until 130, a write at 110 that
# renews it counts itself (130 > 110), takes itself away, and finds none; another task's write at 110 finds one and is
# refused; at 131 it finds none, as the gateway that held it has died. A lock per session with a time to live of its own
# was rejected: task and lock could then end at different times.
# KEYS: task due open expiry bytes, then held:<key> of each of its keys
# ARGV: id, version, now, due, open, expires, held, value, has answer, answer, keys, then the limit of each key or -1
# Returns 1, 0: a limit is reached, or -1: the stored version is another.
_WRITE = r"""
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[2] then return -1 end
for i = 6, #KEYS do
  local limit = tonumber(ARGV[i + 6])
  if limit >= 0 then
    local mine = tonumber(redis.call('ZSCORE', KEYS[i], ARGV[1]) or '-inf')
    local others = redis.call('ZCOUNT', KEYS[i], '(' .. ARGV[3], '+inf')
    if mine > tonumber(ARGV[3]) then others = others - 1 end
    if others >= limit then return 0 end
  end
end
redis.call('HINCRBY', KEYS[1], 'v', 1)
redis.call('HSET', KEYS[1], 'due', ARGV[4], 'open', ARGV[5], 'expires', ARGV[6], 'held', ARGV[7], 'value', ARGV[8],
  'keys', ARGV[11])
if ARGV[4] == 'inf' then redis.call('ZREM', KEYS[2], ARGV[1]) else redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1]) end
if ARGV[5] == '1' then redis.call('ZADD', KEYS[3], redis.call('HGET', KEYS[1], 'created'), ARGV[1])
else redis.call('ZREM', KEYS[3], ARGV[1]) end
if ARGV[6] == 'inf' then redis.call('ZREM', KEYS[4], ARGV[1]) else redis.call('ZADD', KEYS[4], ARGV[6], ARGV[1]) end
for i = 6, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', ARGV[3])  -- of gateways that died with it
  if ARGV[7] == '1' then redis.call('ZADD', KEYS[i], ARGV[4], ARGV[1]) else redis.call('ZREM', KEYS[i], ARGV[1]) end
end
if ARGV[9] == '1' then
  local grown = string.len(ARGV[10]) - redis.call('HSTRLEN', KEYS[1], 'answer')
  redis.call('HSET', KEYS[1], 'answer', ARGV[10])
  redis.call('HINCRBY', KEYS[5], redis.call('HGET', KEYS[1], 'tenant'), grown)
end
return 1
"""

# Bytes are given back from what is stored, not from what the caller knows: between its read and this another gateway
# may have written a longer answer. A task that is gone already only loses its place in `tasks-expiry`.
# KEYS: task due all open queues expiry bytes, then held:<key> of each of its keys    ARGV: id, queue
_DELETE = r"""
local size = redis.call('HSTRLEN', KEYS[1], 'body') + redis.call('HSTRLEN', KEYS[1], 'answer')
local tenant = redis.call('HGET', KEYS[1], 'tenant')
redis.call('ZREM', KEYS[6], ARGV[1])
if not tenant then return 0 end
-- Not -size: Lua writes minus zero as "-0", which Redis does not take for a number.
if redis.call('HINCRBY', KEYS[7], tenant, 0 - size) <= 0 then redis.call('HDEL', KEYS[7], tenant) end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
for i = 8, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
if redis.call('ZCARD', KEYS[3]) == 0 then redis.call('SREM', KEYS[5], ARGV[2]) end
return 1
"""

# `instead of` makes taking over a name atomic as well: of two gateways that both found its session ended, and made a
# new one, the second gets the first one's.
# KEYS: task-name:<name>    ARGV: value, milliseconds from now, instead of
_BIND = r"""
local old = redis.call('GET', KEYS[1])
if old and old ~= ARGV[1] and old ~= ARGV[3] then return old end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
Pipe = Callable[[str, Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]
RunScript = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]


class RedisTasks:
    """Implements TaskStore by the exchanges of a RedisStore: `call`, `pipe` of commands and `run` of a script."""

    def __init__(self, root: str, call: Call, pipe: Pipe, run: RunScript) -> None:
        self._root = root
        self._call = call
        self._pipe = pipe
        self._run = run

    async def add(self, task: QueuedTask, body: bytes, *, max_open: int, max_bytes: int) -> Added:
        """Store a new entry within its limits."""
        arguments = [
            task.id, task.queue, task.tenant, repr(task.created_at), repr(task.due_at), int(task.is_open),
            repr(task.expires_at), orjson.dumps(task.keys), int(task.held), orjson.dumps(task.value), body,
            max_open, max_bytes,
        ]  # fmt: skip
        return Added((await self._run(_ADD, self._keys(task.id, task.queue), arguments)).decode())

    async def get(self, task_id: str) -> QueuedTask | None:
        """The entry, or None."""
        fields = await self._call(lambda redis: redis.hmget(self._task(task_id), _FIELDS))
        return _read(task_id, fields)

    async def write(
        self, task: QueuedTask, now: float, *, answer: bytes | None = None, limits: Mapping[str, int] | None = None
    ) -> QueuedTask | None:
        """Write it if version and limits allow it."""
        key, due, _, opened, _, expiry, size = self._keys(task.id, task.queue)
        arguments = [
            task.id, task.version, repr(now), repr(task.due_at), int(task.is_open), repr(task.expires_at),
            int(task.held), orjson.dumps(task.value), int(answer is not None), answer or b"",
            orjson.dumps(task.keys), *((limits or {}).get(each, -1) for each in task.keys),
        ]  # fmt: skip
        done = await self._run(_WRITE, [key, due, opened, expiry, size, *self._held(task.keys)], arguments)
        if done < 0:
            raise stale_task(task)
        return replace(task, version=task.version + 1) if done else None

    async def body(self, task_id: str) -> bytes:
        """The body that the entry was added with."""
        return await self._call(lambda redis: redis.hget(self._task(task_id), "body")) or b""

    async def answer(self, task_id: str) -> bytes:
        """What was last written as its answer."""
        return await self._call(lambda redis: redis.hget(self._task(task_id), "answer")) or b""

    async def delete(self, task_id: str) -> None:
        """Delete the entry, its body and its answer."""
        found = await self.get(task_id)
        queue, keys = (found.queue, found.keys) if found is not None else ("", ())
        await self._run(_DELETE, [*self._keys(task_id, queue), *self._held(keys)], [task_id, queue])

    async def queues(self, now: float) -> Sequence[str]:
        """The queues that have something due."""
        names = sorted(await self._call(lambda redis: redis.smembers(self._root + "tasks-queues")))
        due = await self._pipe("zcount", [(self._due(name.decode()), "-inf", repr(now)) for name in names])
        return [name.decode() for name, n in zip(names, due, strict=True) if n]

    async def due(
        self, queue: str, now: float, *, after: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """What is due, by (due_at, id)."""
        low = "-inf" if after is None else repr(after[0])
        found = await self._page(self._due(queue), low, repr(now), after, limit, newest_first=False)
        # Ids and records are two exchanges: what another gateway took in between is not due any more.
        return [task for task in found if task.due_at <= now]

    async def newest(
        self, queue: str, *, before: tuple[float, str] | None = None, limit: int = 100
    ) -> Sequence[QueuedTask]:
        """Entries, the newest first."""
        high = "+inf" if before is None else repr(before[0])
        return await self._page(f"{self._root}tasks-all:{queue}", "-inf", high, before, limit, newest_first=True)

    async def held(self, key: str, now: float) -> int:
        """How many entries hold a key."""
        name = self._held([key])[0]
        return int(await self._call(lambda redis: redis.zcount(name, f"({now!r}", "+inf")))

    async def prune(self, now: float) -> int:
        """Delete some that have expired."""
        key = self._root + "tasks-expiry"
        over = await self._call(lambda redis: redis.zrangebyscore(key, "-inf", repr(now), start=0, num=_PRUNED))
        for task_id in over:
            await self.delete(task_id.decode())
        return len(over)

    async def open(self) -> Mapping[str, OpenTasks]:
        """Counts of open entries, by queue."""
        names = [
            name.decode()
            for name in sorted(await self._call(lambda redis: redis.smembers(self._root + "tasks-queues")))
        ]
        keys = [f"{self._root}tasks-opened:{name}" for name in names]
        counts = await self._pipe("zcard", [(key,) for key in keys])
        oldest = await self._pipe("zrange", [(key, 0, _LOOKED_AT - 1, False, True) for key in keys])
        ids = [task_id.decode() for page in oldest for task_id, _ in page]
        held = await self._pipe("hget", [(self._task(each), "held") for each in ids])
        free = {each for each, is_held in zip(ids, held, strict=True) if is_held == b"0"}
        # Counted and looked at in several exchanges: between them the last one may have ended.
        return {
            name: OpenTasks(count, page[0][1], next((made for each, made in page if each.decode() in free), None))
            for name, count, page in zip(names, counts, oldest, strict=True)
            if count and page
        }

    async def bind(self, key: str, value: str, until: float, now: float, *, instead_of: str = "") -> str:
        """Let a name stand for a value, unless it stands for another."""
        left = max(1, math.ceil((until - now) * 1000))
        found = await self._run(_BIND, [f"{self._root}task-name:{key}"], [value, left, instead_of])
        return str(found.decode())

    async def bound(self, key: str, now: float) -> str:
        """The value that a name stands for. Redis forgets one that has ended, by its own clock."""
        found = await self._call(lambda redis: redis.get(f"{self._root}task-name:{key}"))
        return "" if found is None else str(found.decode())

    async def _page(
        self, key: str, low: str, high: str, seen: tuple[float, str] | None, limit: int, *, newest_first: bool
    ) -> list[QueuedTask]:
        # Entries of one score are in the order of their ids, so those of the page before are skipped by comparing.
        found: list[QueuedTask] = []
        start, sign = 0, -1 if newest_first else 1
        while len(found) < limit:
            page: dict[str, Any] = {
                "key": key,
                "low": low,
                "high": high,
                "start": start,
                "num": limit,
                "newest_first": newest_first,
            }
            rows = await self._call(partial(_range, **page))
            ids = [name.decode() for name, at in rows if seen is None or _beyond((at, name.decode()), seen, sign)]
            fields = await self._pipe("hmget", [(self._task(each), _FIELDS) for each in ids])
            found += [task for each, values in zip(ids, fields, strict=True) if (task := _read(each, values))]
            if len(rows) < limit:
                break
            start += len(rows)
        return found[:limit]

    def _task(self, task_id: str) -> str:
        return f"{self._root}task:{task_id}"

    def _due(self, queue: str) -> str:
        return f"{self._root}tasks-due:{queue}"

    def _held(self, keys: Sequence[str]) -> list[str]:
        return [f"{self._root}tasks-held:{key}" for key in keys]

    def _keys(self, task_id: str, queue: str) -> list[str]:
        root = self._root
        return [
            self._task(task_id), self._due(queue), f"{root}tasks-all:{queue}", f"{root}tasks-opened:{queue}",
            root + "tasks-queues", root + "tasks-expiry", root + "tasks-bytes",
        ]  # fmt: skip


async def _range(redis: Any, *, key: str, low: str, high: str, start: int, num: int, newest_first: bool) -> Any:
    if newest_first:
        return await redis.zrevrangebyscore(key, high, low, start=start, num=num, withscores=True)
    return await redis.zrangebyscore(key, low, high, start=start, num=num, withscores=True)


def _beyond(place: tuple[float, str], seen: tuple[float, str], sign: int) -> bool:
    return place > seen if sign > 0 else place < seen


def _read(task_id: str, fields: Sequence[bytes | None]) -> QueuedTask | None:
    if fields[0] is None or any(each is None for each in fields):
        return None
    queue, tenant, created, value, due, is_open, expires, keys, held, version = (each or b"" for each in fields)
    return QueuedTask(
        task_id, queue.decode(), tenant.decode(), float(created), orjson.loads(value), float(due), is_open == b"1",
        float(expires), tuple(orjson.loads(keys)), held == b"1", int(version),
    )  # fmt: skip

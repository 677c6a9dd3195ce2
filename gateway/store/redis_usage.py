"""Usage (core/usage.py) in the Redis of the sessions.

Keys, below the store's root; Redis deletes each by itself:
    usage:<hour>            hash of totals: JSON of [tenant, runtime, size, session, quantity] -> amount
    usage-sessions:<hour>   the same by session
    usage-writer:<writer>   the sequence number of its last batch
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import orjson

from gateway.core.usage import (
    HOUR_S,
    ORDINARY_RETENTION,
    WRITER_RETENTION_S,
    Amounts,
    Retention,
    Rows,
    UsageKey,
)

HOURS_PER_READ = 24

# KEYS: usage-writer:<writer>, then the hours' hashes
# ARGV: sequence, retention of the writer, then (index of the hash, its retention, field, amount) per amount
# Returns 1, or 0: the batch is there already.
_ADD = r"""
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
for i = 3, #ARGV, 4 do
  local key = KEYS[tonumber(ARGV[i])]
  redis.call('HINCRBYFLOAT', key, ARGV[i + 2], ARGV[i + 3])
  redis.call('EXPIRE', key, ARGV[i + 1])
end
return 1
"""

Pipe = Callable[[str, Sequence[tuple[Any, ...]]], Awaitable[list[Any]]]
RunScript = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]


class RedisUsage:
    """Implements UsageStore by the exchanges of a RedisStore: `pipe` of commands and `run` of a script."""

    def __init__(self, root: str, pipe: Pipe, run: RunScript) -> None:
        self._root = root
        self._pipe = pipe
        self._run = run

    async def add(self, writer: str, sequence: int, rows: Rows, retention: Retention = ORDINARY_RETENTION) -> bool:
        """Add the amounts unless the writer has already written that batch, in one script."""
        keys = {f"{self._root}usage-writer:{writer}": 1}
        arguments: list[Any] = [sequence, WRITER_RETENTION_S]
        for key, amounts in rows.items():
            index = keys.setdefault(self._hash(key.hour, sessions=bool(key.session)), len(keys) + 1)
            kept = int(retention.of(key)) + HOUR_S
            for quantity, amount in amounts.items():
                field = orjson.dumps([key.tenant, key.runtime, key.size, key.session, str(quantity)])
                arguments += [index, kept, field, repr(float(amount))]
        return bool(await self._run(_ADD, list(keys), arguments))

    async def read(
        self, since: int, until: int, *, sessions: bool, tenant: str | None = None
    ) -> AsyncIterator[tuple[UsageKey, Amounts]]:
        """Rows of these hours, by hour."""
        first = since - since % -HOUR_S  # rounded up: % of a negative number is negative
        for start in range(first, until, HOURS_PER_READ * HOUR_S):
            hours = range(start, min(until, start + HOURS_PER_READ * HOUR_S), HOUR_S)
            found = await self._pipe("hgetall", [(self._hash(hour, sessions=sessions),) for hour in hours])
            for hour, fields in zip(hours, found, strict=True):
                for key, amounts in sorted(_by_key(hour, fields, tenant).items()):
                    yield key, amounts

    def _hash(self, hour: int, *, sessions: bool) -> str:
        return f"{self._root}usage{'-sessions' if sessions else ''}:{hour}"


def _by_key(hour: int, fields: dict[bytes, bytes], tenant: str | None) -> dict[UsageKey, dict[str, float]]:
    rows: dict[UsageKey, dict[str, float]] = {}
    for field, amount in fields.items():
        owner, runtime, size, session, quantity = orjson.loads(field)
        if tenant in (None, owner):
            rows.setdefault(UsageKey(hour, owner, runtime, size, session), {})[quantity] = float(amount)
    return rows

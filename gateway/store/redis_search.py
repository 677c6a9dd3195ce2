"""Searches records in Redis (SessionStore.search): the server looks for the parts, and sends the records that have all.

Rejected: to read every record and look here, which costs the gateway 31 us a record and not 4; and an index of words
in Redis, which finds no parts of words and would be written with every record. Nothing is kept between two searches, so
each gateway finds what the others have written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.core.model import SessionId
from gateway.store import codec, redis_pages

Run = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]  # RedisExchanges.run
Row = tuple[bytes, bytes, bytes]  # version, last activity, record

# What one script looks through at most: the server runs nothing else meanwhile. 2 MiB of ordinary records take 15 ms;
# of records and parts that are made to compare slowly, 20 ms.
_BYTES_PER_SCRIPT = 2 << 20

# One text in place of an array: the client reads 5 us an element. No id has a line break.
# KEYS: listing    ARGV: command, its two bounds, limit
_MEMBERS = r"""
return table.concat(redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4]), '\n')
"""

# KEYS: session...    ARGV: bytes, part...
# Returns how many sessions were looked at, and for each that has all the parts its place in KEYS, v, at, record.
_FIND = r"""
local found, looked, left = {0}, 0, tonumber(ARGV[1])
for i, key in ipairs(KEYS) do
  looked = i
  local record = redis.call('HGET', key, 'record')
  if record then
    local text, all = string.lower(record), true
    for n = 2, #ARGV do
      if not string.find(text, ARGV[n], 1, true) then all = false; break end
    end
    if all then
      local n, row = #found, redis.call('HMGET', key, 'v', 'at')
      found[n + 1], found[n + 2], found[n + 3], found[n + 4] = i, row[1], row[2], record
    end
    left = left - #text
    if left <= 0 then break end
  end
end
found[1] = looked
return found
"""


async def search(
    run: Run,
    root: str,
    parts: Sequence[str],
    *,
    tenant: str | None,
    ended: bool,
    after: tuple[float, SessionId] | None,
    limit: int,
) -> list[tuple[tuple[float, SessionId], Row | None]]:
    """Places of the list by age, with the records that have all the parts. Raises what `run` raises."""
    start = redis_pages.prefix(tenant=tenant, ended=ended)
    command, bounds = redis_pages.bounds(start, after, newest_first=True)
    text = await run(_MEMBERS, [root + "listing"], [command, *bounds, limit])
    places = [redis_pages.place_in(member, start) for member in text.split(b"\n") if member]
    keys, wanted = [f"{root}session:{place[1]}" for place in places], list(map(codec.as_stored, parts))
    rows: dict[int, Row] = {}
    looked = 0
    while looked < len(keys):
        done, *found = await run(_FIND, keys[looked:], [_BYTES_PER_SCRIPT, *wanted])
        for n in range(0, len(found), 4):
            number, version, at, record = found[n : n + 4]
            rows[looked + number - 1] = version, at, record
        looked += done
    return [(place, rows.get(n)) for n, place in enumerate(places)]

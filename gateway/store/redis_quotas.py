"""The quota ledger (core/quota.py) in the Redis of the sessions. Each change is one script, so one round trip.

Keys, below the store's root:
    quota:<tenant>       hash: session -> "<mark> <until> <resource>=<amount> ..."
    quota-used:<tenant>  hash: resource -> sum over the entries; `#` -> the latest mark
    quota-tenants        set of the tenants that have entries
    quota-rates          hash: tenant -> when its bucket of creates is full
    quota-part:<name>    hash: holder -> "<units> <until>"; `#` -> what is taken; for a day after its last change
    quota-share:<name>   hash: holder -> its share of a rate, of those in quota-part:<name>
    quota-gateways       sorted set of gateways by the time until which they are alive
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.core.model import SessionId
from gateway.core.quota import Amounts, Entry, Excess, Part, Resource, Wish
from gateway.store.codec import pack_amounts, unpack_amounts

# KEYS: quota:<tenant> quota-used:<tenant> quota-tenants
# ARGV: tenant, session, expected mark or '', until, amounts, limits
# Returns {1}, or {0, resource, used} over a limit, or {-1}: the mark is another.
_WRITE = r"""
local old = redis.call('HGET', KEYS[1], ARGV[2]) or ''
local mark = string.match(old, '^%d+') or '0'
if ARGV[3] ~= '' and ARGV[3] ~= mark then return {-1} end
local function read(text)
  local amounts, names = {}, {}
  for name, n in string.gmatch(text, '(%a+)=(%d+)') do
    amounts[name] = tonumber(n)
    table.insert(names, name)
  end
  return amounts, names
end
local held, held_names = read(string.match(old, '^%S+ %S+ (.*)$') or '')
local wanted, names = read(ARGV[5])
local limits = read(ARGV[6])
for _, name in ipairs(names) do
  local grown = wanted[name] - (held[name] or 0)
  -- Only growth is refused: after a limit was lowered, what a session holds already stays, and it may shrink.
  if limits[name] and grown > 0 then
    local used = tonumber(redis.call('HGET', KEYS[2], name) or '0')
    if used + grown > limits[name] then return {0, name, string.format('%d', used)} end
  end
end
-- '%d', because Lua's tostring writes 100 TB as 1e+14, which HINCRBY refuses.
for _, name in ipairs(held_names) do
  redis.call('HINCRBY', KEYS[2], name, string.format('%d', (wanted[name] or 0) - held[name]))
end
for _, name in ipairs(names) do
  if not held[name] then redis.call('HINCRBY', KEYS[2], name, string.format('%d', wanted[name])) end
end
-- The mark comes from a counter beside the sums, so it never repeats, even for an entry that was removed and made anew.
local new = redis.call('HINCRBY', KEYS[2], '#', 1)
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[1], ARGV[2])
  if redis.call('HLEN', KEYS[1]) == 0 then redis.call('SREM', KEYS[3], ARGV[1]) end
else
  redis.call('HSET', KEYS[1], ARGV[2], string.format('%d', new) .. ' ' .. ARGV[4] .. ' ' .. ARGV[5])
  redis.call('SADD', KEYS[3], ARGV[1])
end
return {1}
"""

_TIME = r"""
local now = tonumber(ARGV[1])
if not now then
  local t = redis.call('TIME')
  now = tonumber(t[1]) + tonumber(t[2]) / 1e6
end
"""

# KEYS: quota-rates    ARGV: now or '', tenant, interval, burst.    Returns the wait (core/quota.py, next_token).
_TAKE = (
    _TIME
    + r"""
local interval = tonumber(ARGV[3])
-- The bucket as one number, the time at which it is full again: nothing has to be refilled, and a tenant that creates
-- nothing costs nothing. Interval 2 s, burst 3, full at 100, now 98: after this token full at 102, and 102 - 98 <= 6.
local ready_at = tonumber(redis.call('HGET', KEYS[1], ARGV[2]) or '0')
if ready_at > now + interval * tonumber(ARGV[4]) + 1e-6 then ready_at = now end  -- the clock was set back
local full_at = math.max(ready_at, now) + interval
local wait = full_at - now - interval * tonumber(ARGV[4])
if wait > 1e-9 then return string.format('%.17g', wait) end
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.17g', full_at))
return '0'
"""
)

# KEYS: quota-part:<name> quota-share:<name>    ARGV: now or '', holder, ttl, units, of units, amount, of amount
# Returns units, amount, holders, share. The same as core/quota.py, Parted.give.
_PART = (
    _TIME
    + r"""
local ttl, wanted, amount = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[6])
local others, holders, left = 0, 0, 1000000
local held = redis.call('HGETALL', KEYS[1])
for i = 1, #held, 2 do
  if held[i] ~= '#' and held[i] ~= ARGV[2] then
    local units, ends = string.match(held[i + 1], '^(%d+) (%S+)$')
    if now < tonumber(ends) and tonumber(ends) <= now + 2 * ttl then
      others, holders = others + tonumber(units), holders + 1
      -- In a key of its own: a gateway of an earlier version, which knows of no shares, reads the other.
      left = left - tonumber(redis.call('HGET', KEYS[2], held[i]) or '0')
    else
      redis.call('HDEL', KEYS[1], held[i])
      redis.call('HDEL', KEYS[2], held[i])
    end
  end
end
local units = math.max(0, math.min(wanted, tonumber(ARGV[5]) - others))
local share = 0
if wanted > 0 then
  holders = holders + 1
  share = math.max(0, math.min(math.floor(1000000 / holders), left))
  redis.call('HSET', KEYS[1], ARGV[2], string.format('%d %.17g', units, now + ttl))
  redis.call('HSET', KEYS[2], ARGV[2], string.format('%d', share))
else
  redis.call('HDEL', KEYS[1], ARGV[2])
  redis.call('HDEL', KEYS[2], ARGV[2])
end
local taken = tonumber(redis.call('HGET', KEYS[1], '#') or '0')
if amount < 0 then amount = math.max(amount, -taken)
else amount = math.max(0, math.min(amount, tonumber(ARGV[7]) - taken)) end
if amount ~= 0 then redis.call('HSET', KEYS[1], '#', string.format('%d', taken + amount)) end
redis.call('EXPIRE', KEYS[1], 86400)
redis.call('EXPIRE', KEYS[2], 86400)
return {units, amount, holders, share}
"""
)

# KEYS: quota-gateways    ARGV: now or '', holder, ttl
_GATEWAYS = (
    _TIME
    + r"""
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.17g', now))
-- Beyond any heartbeat's end: the clock was set back since.
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('%.17g', now + 2 * tonumber(ARGV[3])), '+inf')
redis.call('ZADD', KEYS[1], string.format('%.17g', now + tonumber(ARGV[3])), ARGV[2])
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""
)

Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]
RunScript = Callable[[str, Sequence[str], Sequence[Any]], Awaitable[Any]]


class RedisQuotas:
    """Implements QuotaLedger by the exchanges of a RedisStore. `now`: '' for the server's time."""

    def __init__(self, root: str, call: Call, run: RunScript, now: Callable[[], str]) -> None:
        self._root = root
        self._call = call
        self._run = run
        self._now = now

    async def reserve(
        self, tenant: str, session_id: SessionId, amounts: Amounts, limits: Amounts, until: float
    ) -> Excess | None:
        """Let a session hold `amounts`, unless that exceeds a limit."""
        bounds = " ".join(f"{resource.value}={limit}" for resource, limit in limits.items())  # a limit may be 0
        arguments = [tenant, session_id, "", repr(until), pack_amounts(amounts), bounds]
        done, *over = await self._run(_WRITE, self._keys(tenant), arguments)
        if done:
            return None
        resource = Resource(over[0].decode())
        return Excess(resource, limits[resource], int(over[1]))

    async def settle(self, tenant: str, session_id: SessionId, amounts: Amounts, *, mark: int | None = None) -> bool:
        """Let a session hold `amounts`, if its entry still has that mark."""
        arguments = [tenant, session_id, "" if mark is None else mark, "0.0", pack_amounts(amounts), ""]
        return bool((await self._run(_WRITE, self._keys(tenant), arguments))[0] == 1)

    async def used(self, tenant: str) -> Amounts:
        """The sum of a tenant's entries."""
        sums = await self._call(lambda redis: redis.hgetall(self._keys(tenant)[1]))
        return unpack_amounts(" ".join(f"{name.decode()}={int(n)}" for name, n in sums.items() if name != b"#"))

    async def entries(self, tenant: str) -> Sequence[Entry]:
        """All entries of a tenant."""
        kept = await self._call(lambda redis: redis.hgetall(self._keys(tenant)[0]))
        return [_entry(session, value.decode()) for session, value in kept.items()]

    async def tenants(self) -> Sequence[str]:
        """The tenants that have entries, by name."""
        names = await self._call(lambda redis: redis.smembers(self._root + "quota-tenants"))
        return sorted(name.decode() for name in names)

    async def take(self, tenant: str, interval: float, burst: int) -> float:
        """Take one token, or say how long there is none."""
        arguments = [self._now(), tenant, repr(interval), burst]
        return float(await self._run(_TAKE, [self._root + "quota-rates"], arguments))

    async def part(self, name: str, holder: str, wish: Wish, ttl: float) -> Part:
        """Give a gateway a part of the limits of that name."""
        arguments = [self._now(), holder, repr(ttl), wish.units, wish.of_units, wish.amount, wish.of_amount]
        keys = [f"{self._root}quota-part:{name}", f"{self._root}quota-share:{name}"]
        units, amount, holders, share = await self._run(_PART, keys, arguments)
        return Part(units, amount, holders, share)

    async def gateways(self, holder: str, ttl: float) -> frozenset[str]:
        """Note that this gateway is alive, and name those that are."""
        names = await self._run(_GATEWAYS, [self._root + "quota-gateways"], [self._now(), holder, repr(ttl)])
        return frozenset(name.decode() for name in names)

    def _keys(self, tenant: str) -> list[str]:
        root = self._root
        return [f"{root}quota:{tenant}", f"{root}quota-used:{tenant}", f"{root}quota-tenants"]


def _entry(session: bytes, value: str) -> Entry:
    mark, until, amounts = value.split(" ", 2)
    return Entry(SessionId(session.decode()), unpack_amounts(amounts), int(mark), float(until))

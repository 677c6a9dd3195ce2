"""The Lua scripts of the shared store, which Redis runs atomically.

Every write of a record is one script that also updates its index entries, so an index never names a deleted record or
an earlier state. Rejected: MULTI/EXEC with WATCH, which takes two round trips, and of 100 concurrent writers of one
record 99 fail and start again. All keys are declared and share one hash tag, so that a cluster keeps them on one node
(docs/adr/0002-redis-keys.md).

Keys, below the store's root:
    session:<id>  hash: v (version), state, runtime, at (last active), timeout (idle), expires, record (JSON), tenant,
                  born (time of creation, redis_pages.sortable)
    idle          sorted set of active ids by idle_at
    expiry        sorted set of ids that are not terminated, by expires_at
    terminated    sorted set of terminated ids by last_active_at
    listing       sorted set, all scores 0, of one member per order that can be listed
                  (`listing_prefix`, redis_pages.py)
    leases        hash: name -> "<fence> <expires_at> <holder>"; no holder: released
    lease-ends    sorted set of lease names by expires_at
    lease-floor   at least as high as the fence of any deleted lease
    claims:<bucket>:<runtime>:<chunk>  hash: bucket start -> claims

Numbers with a fraction are formatted by %.17g: Lua's tostring keeps 14 digits, which makes 1790000000.1235 of
1790000000.123456 seconds.
"""

from __future__ import annotations

from gateway.core.model import RuntimeKey, SessionState

_INDEX = r"""
local function number(x) return string.format('%.17g', x) end

-- The idle timeout passes at `at` + `timeout`: a session last active at 1000.5 with a timeout of 900 is found by `idle`
-- from 1900.5 on. Rejected: key expiry, which deletes the record that says what to hibernate, and whose notifications
-- are lost while no gateway is subscribed.
local function place(id, state, at, timeout, expires)
  if state == 'active' then
    redis.call('ZADD', KEYS[2], number(tonumber(at) + tonumber(timeout)), id)
  else
    redis.call('ZREM', KEYS[2], id)
  end
  if state == 'terminated' then
    redis.call('ZADD', KEYS[4], at, id)
    redis.call('ZREM', KEYS[3], id)
  else
    redis.call('ZADD', KEYS[3], expires, id)
    redis.call('ZREM', KEYS[4], id)
  end
end

-- One sorted set with all scores 0 is ordered by member, so ZRANGEBYLEX pages through it by id from any point. A set
-- per state and runtime would be four more keys to declare, two of them unknown until the old record was read.
local function listed(id, state, runtime)
  return 'a\0' .. id, 's\0' .. state .. '\0' .. id, 'r\0' .. runtime .. '\0' .. id,
    'b\0' .. state .. '\0' .. runtime .. '\0' .. id
end

-- Members of lists by age (redis_pages.py): of all sessions, and of those that have not ended.
local function aged(id, tenant, born)
  local of, any = '\0' .. tenant .. '\0' .. born .. '\0' .. id, '\0\0' .. born .. '\0' .. id
  return 'p' .. of, 'p' .. any, 'l' .. of, 'l' .. any
end
"""

# KEYS: session idle expiry terminated listing leases
# ARGV: id, expected version, next version, state, runtime, at, timeout, expires, record,
#       lease name or '', its fence, its holder, tenant, time of creation, latest time that is kept
# Returns {1, at} or {0, stored version} or {-1, the lease's value}.
PUT = (
    _INDEX
    + r"""
local id, state, runtime, at = ARGV[1], ARGV[4], ARGV[5], ARGV[6]
-- The fence is compared here and not before the call: a gateway that is suspended between the two would overwrite what
-- the next holder wrote. Example: A holds fence 7 and is stopped; B acquires fence 8; A's put with 7 is rejected.
if ARGV[10] ~= '' then
  local held = redis.call('HGET', KEYS[6], ARGV[10]) or ''
  local fence, holder = string.match(held, '^(%d+) %S+ (.*)$')
  if fence ~= ARGV[11] or holder ~= ARGV[12] then return {-1, held} end
end
local old = redis.call('HMGET', KEYS[1], 'v', 'state', 'runtime', 'at')
if (old[1] or '0') ~= ARGV[2] then return {0, old[1] or '0'} end
-- A touch does not change the version (otherwise each second of use would make a concurrent put stale), so a writer may
-- hold an older time: it read at = 100, a touch wrote 105, and its put with 100 keeps 105.
-- Not one that is still to come: the clock was set back since.
if old[4] and tonumber(old[4]) > tonumber(at) and tonumber(old[4]) <= tonumber(ARGV[15]) then at = old[4] end
if old[1] and (old[2] ~= state or old[3] ~= runtime) then
  redis.call('ZREM', KEYS[5], listed(id, old[2], old[3]))
end
if old[2] ~= state or old[3] ~= runtime then
  local a, s, r, b = listed(id, state, runtime)
  redis.call('ZADD', KEYS[5], 0, a, 0, s, 0, r, 0, b)
end
-- Always, though they never change: the record may be an older Wakegate's, which had no such lists.
local tenant, born = ARGV[13], ARGV[14]
local pt, pa, lt, la = aged(id, tenant, born)
redis.call('ZADD', KEYS[5], 0, pt, 0, pa)
if state == 'terminated' then
  redis.call('ZREM', KEYS[5], lt, la)
else
  redis.call('ZADD', KEYS[5], 0, lt, 0, la)
end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'state', state, 'runtime', runtime, 'at', at, 'timeout', ARGV[7],
  'expires', ARGV[8], 'record', ARGV[9], 'tenant', tenant, 'born', born)
place(id, state, at, ARGV[7], ARGV[8])
return {1, at}
"""
)

# KEYS: session idle expiry terminated listing    ARGV: id
DELETE = (
    _INDEX
    + r"""
local old = redis.call('HMGET', KEYS[1], 'state', 'runtime', 'tenant', 'born')
if not old[1] then return 0 end
for i = 2, 4 do redis.call('ZREM', KEYS[i], ARGV[1]) end
redis.call('ZREM', KEYS[5], listed(ARGV[1], old[1], old[2]))
if old[4] then redis.call('ZREM', KEYS[5], aged(ARGV[1], old[3], old[4])) end
return redis.call('DEL', KEYS[1])
"""
)

# KEYS: (unused) idle expiry terminated session...    ARGV: id, at, id, at, ...
TOUCH = (
    _INDEX
    + r"""
for i = 1, #ARGV / 2 do
  local key, id, at = KEYS[4 + i], ARGV[2 * i - 1], ARGV[2 * i]
  local old = redis.call('HMGET', key, 'at', 'state', 'timeout', 'expires')
  if old[1] and tonumber(old[1]) < tonumber(at) then
    redis.call('HSET', key, 'at', at)
    place(id, old[2], at, old[3], old[4])
  end
end
return 1
"""
)

# Leases expire by the server's clock. With the gateways' clocks, two that are 5 s apart would disagree for 5 s on who
# holds a lease of 10 s. `now` in ARGV is empty for the server's clock; tests in virtual time pass theirs.
_TIME = r"""
local function time(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function keep(name, fence, ends, holder)
  ends = string.format('%.17g', ends)
  redis.call('HSET', KEYS[1], name, string.format('%d', fence) .. ' ' .. ends .. ' ' .. holder)
  redis.call('ZADD', KEYS[2], ends, name)
end
"""

# KEYS: leases lease-ends lease-floor    ARGV: now or '', name, holder, ttl, seconds to keep ended ones
# Returns the fence, or 0: another holder has it.
ACQUIRE = (
    _TIME
    + r"""
local now, name, holder = time(ARGV[1]), ARGV[2], ARGV[3]
local held = redis.call('HGET', KEYS[1], name)
local fence
if held then
  local at, ends, who = string.match(held, '^(%d+) (%S+) (.*)$')
  fence = tonumber(at)
  local free = who == '' or tonumber(ends) <= now
  if not free and who ~= holder then return 0 end
  -- After expiry even the same holder gets a new fence, so that writes it still has in flight with the old one fail.
  if free then fence = fence + 1 end
else
  -- Delete leases that expired long ago: each session has had one, so a million sessions would leave a million. A new
  -- lease under a deleted name must not repeat a fence, so `floor` is the highest fence ever deleted: once fence 41 is
  -- deleted, the next new lease of any name starts at 42. At most 100 per call keep the script under a millisecond.
  local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[5]), 'LIMIT', 0, 100)
  local floor = tonumber(redis.call('GET', KEYS[3]) or '0')
  for _, gone in ipairs(old) do
    local value = redis.call('HGET', KEYS[1], gone)
    if value then floor = math.max(floor, tonumber(string.match(value, '^%d+'))) end
    redis.call('HDEL', KEYS[1], gone)
    redis.call('ZREM', KEYS[2], gone)
  end
  if #old > 0 then redis.call('SET', KEYS[3], string.format('%d', floor)) end
  fence = floor + 1
end
keep(name, fence, now + tonumber(ARGV[4]), holder)
return fence
"""
)

# KEYS: leases lease-ends    ARGV: now or '', name, fence, holder, next holder ('' gives it back), ttl
# Returns 1, or 0: it was lost.
RENEW = (
    _TIME
    + r"""
local fence, who = string.match(redis.call('HGET', KEYS[1], ARGV[2]) or '', '^(%d+) %S+ (.*)$')
if fence ~= ARGV[3] or who ~= ARGV[4] then return 0 end
keep(ARGV[2], tonumber(fence), time(ARGV[1]) + tonumber(ARGV[6]), ARGV[5])
return 1
"""
)

# KEYS: leases    ARGV: now or '', name
# Returns {fence, seconds left, holder}, or 0: it is free or unknown.
LEASE = (
    _TIME
    + r"""
local fence, ends, who = string.match(redis.call('HGET', KEYS[1], ARGV[2]) or '', '^(%d+) (%S+) (.*)$')
if not fence or who == '' then return 0 end
return {fence, string.format('%.17g', tonumber(ends) - time(ARGV[1])), who}
"""
)

# KEYS: claims chunks    ARGV: index of the key, seconds to keep it, bucket start, claims; and so on
CLAIMS = r"""
for i = 1, #ARGV, 4 do
  local key = KEYS[tonumber(ARGV[i])]
  redis.call('HINCRBY', key, ARGV[i + 2], ARGV[i + 3])
  redis.call('EXPIRE', key, ARGV[i + 1])
end
return 1
"""


def listing_prefix(state: SessionState | None, runtime: RuntimeKey | None) -> str:
    """The prefix of `listing` members in the order for this filter; the id follows. States and keys contain no NUL."""
    if state is not None and runtime is not None:
        return f"b\0{state.value}\0{runtime}\0"
    if state is not None:
        return f"s\0{state.value}\0"
    if runtime is not None:
        return f"r\0{runtime}\0"
    return "a\0"

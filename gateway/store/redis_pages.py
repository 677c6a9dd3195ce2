"""Lists of sessions by age (SessionStore.by_age) in Redis: members of the sorted set `listing`, and their migration.

    p\\0<tenant>\\0<time>\\0<id>    every session of a tenant; an empty tenant: of all
    l\\0<tenant>\\0<time>\\0<id>    those that have not ended

All scores are 0, so that the set is ordered by member. `time` is the time of creation as 16 hex digits that sort as the
number does. The script PUT (redis_scripts.py) writes them with each record.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gateway.core.model import DEFAULT_TENANT, Session, SessionId

TIME_DIGITS = 16
_SIGN = 1 << 63
_ALL = (1 << 64) - 1

# KEYS: listing session...    ARGV: id, tenant, time, and so on
PLACE = r"""
for i = 1, #ARGV / 3 do
  local key, id, tenant, born = KEYS[1 + i], ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local state = redis.call('HGET', key, 'state')
  if state then
    redis.call('HSET', key, 'tenant', tenant, 'born', born)
    for _, whose in ipairs({tenant, ''}) do
      local place = '\0' .. whose .. '\0' .. born .. '\0' .. id
      redis.call('ZADD', KEYS[1], 0, 'p' .. place)
      if state ~= 'terminated' then redis.call('ZADD', KEYS[1], 0, 'l' .. place) end
    end
  end
end
return 1
"""


def place(session: Session) -> tuple[str, str]:
    """Tenant and time of a session, as members have them."""
    return session.tenant or DEFAULT_TENANT, sortable(session.created_at)


def sortable(time: float) -> str:
    """A number as hex digits in the order of numbers. The bits of a float are so ordered but for the sign."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", time + 0.0))  # + 0.0 makes 0.0 of -0.0
    return f"{bits ^ (_ALL if bits & _SIGN else _SIGN):016x}"


def number(digits: bytes) -> float:
    """The number that `sortable` made a text of."""
    bits = int(digits, 16)
    (time,) = struct.unpack(">d", struct.pack(">Q", bits ^ (_SIGN if bits & _SIGN else _ALL)))
    return float(time)


def prefix(*, tenant: str | None, ended: bool) -> bytes:
    """How the members of one list begin."""
    return f"{'p' if ended else 'l'}\0{tenant or ''}\0".encode()


def bounds(
    start: bytes, after: tuple[float, str] | bytes | None, *, newest_first: bool
) -> tuple[str, tuple[bytes, bytes]]:
    """The command that reads a list with this prefix, and its bounds. `after`: a position, or the last member read."""
    first, last = b"[" + start, b"(" + start[:-1] + b"\x01"
    if isinstance(after, tuple):
        after = start + f"{sortable(after[0])}\0{after[1]}".encode()
    if newest_first:
        return "zrevrangebylex", (last if after is None else b"(" + after, first)
    return "zrangebylex", (first if after is None else b"(" + after, last)


def id_in(member: bytes, start: bytes) -> bytes:
    """The id at the end of a member."""
    return member[len(start) + TIME_DIGITS + 1 :]


def place_in(member: bytes, start: bytes) -> tuple[float, SessionId]:
    """The time and the id at the end of a member."""
    return number(member[len(start) : len(start) + TIME_DIGITS]), SessionId(id_in(member, start).decode())


def placements(sessions: Sequence[Session]) -> list[str]:
    """The arguments of PLACE."""
    return [text for session in sessions for text in (session.id, *place(session))]

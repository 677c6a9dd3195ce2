"""Names and addresses of hosts."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address


@lru_cache(maxsize=256)
def is_loopback(name: bytes) -> bool:
    """Whether a host's lower-case name is of this machine alone: localhost and below it, 127.0.0.0/8, ::1."""
    if name == b"localhost" or name.endswith(b".localhost"):
        return True
    try:
        return ip_address(name.decode("ascii")).is_loopback
    except ValueError:  # also UnicodeDecodeError
        return False


def host_name(authority: bytes) -> bytes:
    """The name or address of HOST[:PORT], lower-cased, without brackets and a final dot; empty if it is malformed."""
    authority = authority.strip().lower()
    if authority.startswith(b"["):
        name, bracket, port = authority[1:].partition(b"]")
        well_formed = bool(bracket) and (not port or (port[:1] == b":" and (port[1:].isdigit() or not port[1:])))
        return name if well_formed else b""
    if authority.count(b":") > 1:  # an IPv6 address without brackets, as --host takes it
        return authority
    name, colon, port = authority.partition(b":")
    if b"@" in name or (colon and port and not port.isdigit()):
        return b""
    return name.removesuffix(b".")

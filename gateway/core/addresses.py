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

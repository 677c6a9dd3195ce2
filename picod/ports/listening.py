"""Which ports are listened on in this sandbox, as the kernel lists them. Source: proc(5), /proc/net/tcp."""

from __future__ import annotations

import socket
from pathlib import Path

_LISTEN = "0A"
_MAX_BYTES = 256 << 10  # of each list: 1700 sockets

Listener = tuple[str, int]  # address and port


def listeners() -> frozenset[Listener]:
    """All of them, over both versions of IP."""
    found: set[Listener] = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            with Path(f"/proc/net/{name}").open() as file:
                text = file.read(_MAX_BYTES)
        except OSError:
            continue  # a kernel without IPv6
        for line in text.splitlines()[1:]:
            words = line.split()
            if len(words) > 3 and words[3] == _LISTEN:
                address, _, port = words[1].partition(":")
                found.add((_address(family, address), int(port, 16)))
    return frozenset(found)


def _address(family: socket.AddressFamily, text: str) -> str:
    # Words of 32 bits in the machine's order: 0100007F is 127.0.0.1.
    data = bytes.fromhex(text)
    return socket.inet_ntop(family, b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4)))

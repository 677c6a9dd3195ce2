"""The address of the egress proxy: a listening socket on this sandbox's loopback, made here and handed to the gateway.

Only a process in the sandbox's network namespace can make it. From then on the gateway's egress service accepts what
connects to it, and no byte of that passes through picod. Rejected: forwarding here to a unix socket of the service,
which copies every byte once more, on the sandbox's own CPU time, and needs a path in the sandbox that code could use.

It is handed over before any code of a user runs, with no copy left here: code that shared the socket with the service
could make it block (O_NONBLOCK belongs to the open file, not to the descriptor).
"""

from __future__ import annotations

import socket

from picod import wire

_BACKLOG = 1024


def hand_over(fd: int) -> None:
    """Listen on the proxy's port and send the socket over `fd`. Raises OSError."""
    with socket.socket(fileno=fd) as gateway, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", wire.EGRESS_PORT))
        listener.listen(_BACKLOG)
        socket.send_fds(gateway, [b"x"], [listener.fileno()])

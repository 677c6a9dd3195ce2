"""The sockets that a gateway is reached through: bound here, served by server.py, shared by supervisor.py."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from contextlib import suppress

from gateway.core.errors import SettingsError

BACKLOG = 4096
# A client that vanished without a word (no FIN, no RST) is noticed after 60 + 4 x 15 s, not after the two hours of the
# kernel's defaults: its request or WebSocket would keep a session awake meanwhile.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4
_SO_ATTACH_FILTER = 26  # Linux's; the socket module has no name for it
# (code, jump if true, if false, constant) of classic BPF on a TCP segment: no byte of one that has SYN set, else all.
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, for one process alone. Raises SettingsError that names the address."""
    listener = bind(host, port)
    listener.listen(BACKLOG)
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """Keep a port (0: a free one) for processes that share it: bound, never listening, so no connection comes to it.

    Raises SettingsError when somebody listens there already, also when that one would share.
    """
    with bind(host, port) as alone:
        port = alone.getsockname()[1]
    return bind(host, port, shared=True)


def bind(host: str, port: int, *, shared: bool = False, flag: str = "--port") -> socket.socket:
    """A bound socket that does not listen yet. Raises SettingsError that names the address and the flag to change it.

    `shared`: with SO_REUSEPORT. The kernel spreads new connections over all sockets of that port that listen, so a
    process that is not ready must not listen.
    """
    bound = None
    try:
        bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _keep_alive(bound)
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that no resolver would take
        if bound is not None:
            bound.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else error
        raise SettingsError([f"cannot listen on {host} port {port}: {reason}; choose another with {flag}"]) from error
    return bound


def _keep_alive(listener: socket.socket) -> None:
    """TCP keepalive for the connections that a listener accepts: on Linux they inherit these options (tcp(7))."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def refuse_new(listener: socket.socket) -> None:
    """Let nobody begin to connect any more; who has begun gets through, and is still to be accepted.

    A socket that just stops listening resets what the kernel has connected and nobody has accepted yet, and that may
    be requests on their way. With this, and a moment of accepting after it, there are none: who comes now is not
    answered, tries again a second later, and is refused or answered by whoever has the port then. Elsewhere than on
    Linux this does nothing. Source: Linux's Documentation/networking/filter.rst.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _NO_SYN))
    with suppress(OSError):  # a kernel without filters
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(_NO_SYN), ctypes.addressof(code))
        )


def url_of(listener: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

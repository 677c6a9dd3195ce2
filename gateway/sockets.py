"""The sockets that a gateway is reached through: bound here, served by server.py, shared by workers.py."""

from __future__ import annotations

import os
import socket

from gateway.errors import SettingsError

BACKLOG = 4096


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
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that no resolver would take
        if bound is not None:
            bound.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else error
        raise SettingsError([f"cannot listen on {host} port {port}: {reason}; choose another with {flag}"]) from error
    return bound


def url_of(listener: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

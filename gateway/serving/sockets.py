"""Listening sockets: bound here, served by server.py, shared between workers by supervisor.py."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
from contextlib import suppress

from gateway.core.errors import SettingsError

BACKLOG = 4096  # connections; the kernel caps it at net.core.somaxconn
# A client that disappears without FIN or RST (power loss, a dropped NAT entry) is detected after 60 + 4 x 15 s instead
# of the kernel's default of over two hours, in which its request or WebSocket would keep a session active.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 60, 15, 4
_SO_ATTACH_FILTER = 26  # from Linux's asm-generic/socket.h; Python's socket module does not define it
# Classic BPF as (code, jump if true, jump if false, constant), run on each TCP segment: load byte 13 (the flags), test
# 0x02 (SYN), drop the segment if it is set, else accept all of it.
_NO_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
_IP_MINTTL, _IPV6_MINHOPCOUNT = 21, 73  # from Linux's in.h and in6.h
_MAX_HOPS = 255


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that no other process shares. Raises SettingsError that names the address."""
    listener = bind(host, port)
    listener.listen(BACKLOG)
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """Reserve a port (0: a free one) for workers: the socket is bound but never listens, so it gets no connections.

    Raises SettingsError if another process uses the port, even one that shares it: SO_REUSEPORT alone would let two
    gateways of one user split each other's connections unnoticed. So the port is first bound without it.
    """
    with bind(host, port) as alone:
        port = alone.getsockname()[1]
    return bind(host, port, shared=True)


def bind(host: str, port: int, *, shared: bool = False, flag: str = "--port") -> socket.socket:
    """A bound socket that does not listen yet. Raises SettingsError that names the address and the flag to change it.

    `shared` sets SO_REUSEPORT: the kernel spreads new connections over all listening sockets of the port, so a worker
    must not listen before it is ready.
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
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA cannot encode
        if bound is not None:
            bound.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno and error.errno > 0 else error
        raise SettingsError([f"cannot listen on {host} port {port}: {reason}; choose another with {flag}"]) from error
    return bound


def _keep_alive(listener: socket.socket) -> None:
    """Enable TCP keepalive on the listener; on Linux, accepted connections inherit these options (tcp(7))."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def refuse_new(listener: socket.socket) -> None:
    """Drop new SYN segments, while handshakes in progress complete and can still be accepted. Linux only.

    Closing a listening socket resets the connections that the kernel has completed and the process has not accepted,
    and they may carry requests. After this call and a moment of accepting there are none. A client that connects in
    between gets no answer and retransmits its SYN after a second; by then the port is closed, or another process has
    it. Source: Linux's Documentation/networking/filter.rst.

    Some kernels allow filters only with CAP_NET_ADMIN. There the listener demands the greatest hop limit (ip(7):
    IP_MINTTL), which any process may: clients send with 64 or 128, and the kernel does not ask it of the segment that
    completes a handshake. Connections completed from then on inherit the demand: see `accept_any_hop_limit`.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in _NO_SYN))
    program = struct.pack("@HP", len(_NO_SYN), ctypes.addressof(code))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError:  # not allowed, or a kernel built without socket filters
        _demand_hop_limit(listener, _MAX_HOPS)


def accept_any_hop_limit(connection: socket.socket) -> None:
    """Read from a connection that was accepted after `refuse_new`: else the kernel drops what its client sends."""
    if sys.platform == "linux":
        _demand_hop_limit(connection, 0)


def _demand_hop_limit(sock: socket.socket, least: int) -> None:
    with suppress(OSError):  # the connection is gone
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, least)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, least)


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The base URL of a listening socket, with its actual port where 0 was asked for."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

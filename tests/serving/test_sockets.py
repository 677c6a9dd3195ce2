"""Listening sockets: what the connections that they accept inherit."""

from __future__ import annotations

import socket

import pytest

from gateway.serving import sockets
from gateway.serving.sockets import accept_any_hop_limit, bind, listen, refuse_new


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("shared", [False, True])
def test_accepted_sockets_notice_a_client_that_vanished(host: str, shared: bool) -> None:
    """TCP keepalive is on for each of them, and gives up within two minutes, not the kernel's two hours."""
    with bind(host, 0, shared=True) if shared else listen(host, 0) as listener:
        listener.listen()
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname()[:2]), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, probes = (
                accepted.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * probes <= 120


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("filters", [True, False], ids=["filters", "no filters"])
def test_refusing_new_connections_keeps_completed_ones(
    host: str, filters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the kernel does not let this process attach a filter: what was completed is accepted and heard."""
    if not filters:
        monkeypatch.setattr(sockets, "_SO_ATTACH_FILTER", -1)
    with listen(host, 0) as listener, socket.create_connection(listener.getsockname()[:2]) as early:
        listener.setblocking(True)
        refuse_new(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname()[:2], timeout=0.1)
        with listener.accept()[0] as accepted:
            accept_any_hop_limit(accepted)
            early.sendall(b"heard")
            assert accepted.recv(5) == b"heard"

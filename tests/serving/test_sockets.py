"""Listening sockets: what the connections that they accept inherit."""

from __future__ import annotations

import socket

import pytest

from gateway.serving.sockets import bind, listen


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

"""A request that another gateway passed on is not sent by memory: the store says where its session is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.core.model import SessionId
from gateway.routing.access import AccessPolicy
from gateway.routing.incoming import Incoming
from gateway.routing.target import Target


def scope_of(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": "/a",
        "raw_path": b"/a",
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"h"), (b"x-session-id", b"s-1"), *headers],
    }


@pytest.mark.parametrize(("hops", "passed_on"), [(None, False), (b"0", False), (b"1", True), (b"7", True)])
async def test_target_knows_whether_another_gateway_passed_the_request_on(hops: bytes | None, passed_on: bool) -> None:
    """By the count of gateways that its head carries; a client's own request has none."""
    headers = () if hops is None else ((b"x-wakegate-hops", hops),)
    incoming = Incoming(scope_of(*headers), None, asyncio.get_running_loop().time(), AccessPolicy(allowed_hosts="h"))
    assert incoming.target == Target(SessionId("s-1"), None, b"/a", passed_on=passed_on)

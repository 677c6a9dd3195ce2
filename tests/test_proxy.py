"""The data path over real sockets: what goes up, what comes back, and what happens when a side breaks."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import OpenScripted
from tests.support import Call, eventually

ON_UVLOOP = True


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "PURGE", "M-SEARCH"]
)
async def test_proxy_passes_every_method(open_gateway: OpenScripted, method: str) -> None:
    """Standard methods and those of WebDAV and caches reach the sandbox under their own name."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    answer = await gateway.ask(
        f"{method} /a/b?c=d HTTP/1.1\nhost: h\nx-session-id: {session}\ncontent-length: 3", b"abc"
    )
    assert (answer.status, answer.body) == (200, b"ok")
    assert sandbox.requests[0].start == f"{method} /a/b?c=d HTTP/1.1"
    assert sandbox.requests[0].body == b"abc"

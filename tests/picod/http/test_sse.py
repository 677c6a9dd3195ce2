"""Server-sent events as one answer: what is written together, and what waits for nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from picod.http.request import Request
from picod.http.sse import EventStream

SCOPE: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}


class Written:
    """The client's end: the pieces of the body as they are written, the head not being one of them."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = False

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.body":
            self.pieces.append(message["body"])
            self.ended = not message["more_body"]

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive, of a client that stays."""
        await asyncio.Event().wait()
        raise AssertionError

    def request(self) -> Request:
        """A request of this client's."""
        return Request(SCOPE, self.receive, self.send, b"")  # type: ignore[arg-type]


async def test_events_at_hand_are_one_write() -> None:
    """Greeting, two events and the end: each write wakes the gateway, and then its client."""
    client = Written()
    async with EventStream(client.request()) as events:
        await events.send("start", {})
        await events.raw(b"event: exit\ndata: {}\n\n")
        assert client.pieces == []
    assert client.pieces == [b": hello\n\nevent: start\ndata: {}\n\nevent: exit\ndata: {}\n\n"]
    assert client.ended


async def test_waiting_sends_what_is_at_hand() -> None:
    """Nothing is held back for an event that may never come; without any event the greeting goes out."""
    client = Written()
    async with EventStream(client.request()) as events:
        assert not await events.until(asyncio.Event().wait(), timeout=0.0)
        assert client.pieces == [b": hello\n\n"]
        await events.send("start", {})
        await events.until(asyncio.sleep(0))
        assert client.pieces[1:] == [b"event: start\ndata: {}\n\n"]
    assert client.pieces[2:] == [b""]


async def test_much_is_not_held() -> None:
    """A large piece goes out at once, behind what came before it."""
    client = Written()
    async with EventStream(client.request()) as events:
        await events.raw(b"a" * 10)
        await events.raw(b"b" * (64 << 10))
        assert client.pieces == [b": hello\n\n" + b"a" * 10, b"b" * (64 << 10)]


async def test_events_before_an_error_are_sent() -> None:
    """What happened before a failure happened all the same; the answer is left without its end."""
    client = Written()

    async def fail() -> None:
        async with EventStream(client.request()) as events:
            await events.send("start", {})
            raise OSError("broke")

    with pytest.raises(OSError, match="broke"):
        await fail()
    assert client.pieces == [b": hello\n\nevent: start\ndata: {}\n\n"]
    assert not client.ended

"""Answers made of a sandbox's events: their pieces, their keepalives, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest

from gateway.api.e2b import processes
from gateway.api.e2b.records import E2BRecord
from gateway.api.e2b.sandbox import SandboxClient
from gateway.api.event_answer import EventAnswer, Piece
from gateway.core.model import SandboxReply, SessionId, StartKind
from tests.support.waiting import eventually


class Client:
    """A client of an ASGI app: what it got, and when it leaves."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.ended = False
        self.leaves = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        """ASGI's receive."""
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.body":
            self.got.append(message["body"])
            self.ended = not message["more_body"]

    async def asks(self, pieces: AsyncGenerator[Piece, None], interval: float = 60.0) -> None:
        """Be answered, to the end or to its leaving."""
        answer = EventAnswer(pieces, media_type="text/plain", keepalive=b"still\n", interval=interval)
        await answer({"type": "http"}, self.receive, self.send)


class Pieces:
    """Pieces that come when they are told to, and whether their generator was closed."""

    def __init__(self) -> None:
        self.more = asyncio.Event()
        self.closed = False

    async def __call__(self) -> AsyncGenerator[Piece, None]:
        """One piece, then a last one after `more`."""
        try:
            yield b"one", True
            await self.more.wait()
            yield b"two", False
        finally:
            self.closed = True


async def test_pieces_go_out_as_they_come_and_the_last_ends_the_answer() -> None:
    """Without a write of its own for the end."""
    client, pieces = Client(), Pieces()
    answering = asyncio.create_task(client.asks(pieces()))
    await eventually(lambda: client.got == [b"one"], "the first piece comes")
    pieces.more.set()
    await answering
    assert (client.got, client.ended, pieces.closed) == ([b"one", b"two"], True, True)


async def test_client_that_leaves_ends_the_answer() -> None:
    """Also one that left before anything watched for it: what the pieces hold open is closed."""
    client, pieces = Client(), Pieces()
    client.leaves.set()
    await client.asks(pieces())
    assert (client.got, client.ended, pieces.closed) == ([b"one"], False, True)


async def test_timeout_of_the_pieces_own_is_no_client_that_left() -> None:
    """It goes on to whoever asked, and is not taken for the end of the answer."""

    async def pieces() -> AsyncGenerator[Piece, None]:
        yield b"one", True
        raise TimeoutError("of the sandbox's")

    with pytest.raises(TimeoutError, match="of the sandbox's"):
        await Client().asks(pieces())


async def test_silence_is_filled_with_keepalives() -> None:
    """As often as the interval says, and not once the answer is over."""
    client, pieces = Client(), Pieces()
    answering = asyncio.create_task(client.asks(pieces(), interval=0.02))
    await eventually(lambda: client.got.count(b"still\n") >= 2, "keepalives come")
    pieces.more.set()
    await answering
    assert client.got[-1] == b"two"


async def test_cancelled_request_is_no_client_that_left() -> None:
    """The gateway's own end cancels its requests: that must go on to whoever cancelled."""
    client, pieces = Client(), Pieces()
    answering = asyncio.create_task(client.asks(pieces()))
    await eventually(lambda: client.got == [b"one"], "the first piece comes")
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert pieces.closed


class Stream:
    """A sandbox whose answer ends with a piece after the exit, and notes whether that was read before it was left."""

    def __init__(self, *events: tuple[str, dict[str, Any]]) -> None:
        self._events = events
        self.read_to_its_end = False

    def stream(self, *_: Any, **__: Any) -> Stream:
        """SandboxCaller.stream."""
        return self

    async def __aenter__(self) -> tuple[SandboxReply, AsyncGenerator[bytes, None]]:
        return SandboxReply(200, {}, StartKind.LIVE), self._chunks()

    async def __aexit__(self, *_: object) -> None:
        self.left_whole = self.read_to_its_end

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        for name, data in self._events:
            yield b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))
        self.read_to_its_end = True


async def test_answer_of_a_process_is_read_to_its_end_before_it_is_left() -> None:
    """Else its connection could not be used again, and each command would dial one."""
    stream = Stream(("start", {"pid": 1}), ("exit", {"exit_code": 0}))
    sandbox = SandboxClient(SessionId("s"), E2BRecord("base"), stream)  # type: ignore[arg-type]
    started = processes.start(sandbox, {"process": {"cmd": "true"}}, None)
    batches = []
    async for batch in started:
        batches.append(batch)
        if batch.is_last:  # as the answer does: it asks for no more, and closes the generator
            break
    await started.aclose()
    assert [len(each.messages) for each in batches] == [1, 1]
    assert stream.left_whole

"""How control surfaces read a body: bounded in size, and given up when it stops coming."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Message

from gateway.api.http import read_bytes, read_chunks
from gateway.core.errors import BadRequestError, RequestTimeoutError, TooLargeError

VIRTUAL_TIME = True
IDLE_TIMEOUT_S = 5.0


def request_of(pieces: Sequence[bytes], *, every: float = 0.0, end: Message | None = None) -> Request:
    """A request whose body comes in these pieces, `every` so many seconds; after the last comes `end`, or nothing."""
    app = Starlette()
    app.state.body_idle = IDLE_TIMEOUT_S
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if end is not None:
        messages.append(end)

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        await asyncio.sleep(every)
        return messages.pop(0)

    return Request({"type": "http", "method": "POST", "headers": [], "app": app}, receive)


LAST: Message = {"type": "http.request", "body": b"", "more_body": False}


async def test_slow_body_is_read_whole() -> None:
    """The idle timeout is of each piece: four pieces, 4 s apart, take three times as long as it and are read."""
    assert await read_bytes(request_of([b"a", b"b", b"c"], every=4.0, end=LAST), 3) == b"abc"


async def test_body_that_stops_coming_is_given_up() -> None:
    """What has come is handed on at once; nothing for longer than the idle timeout is a 408."""
    chunks = read_chunks(request_of([b"a"]), None)
    assert await anext(chunks) == b"a"
    with pytest.raises(RequestTimeoutError, match="for 5 s"):
        await anext(chunks)


async def test_body_over_the_limit_is_refused_as_soon_as_it_is() -> None:
    """The rest is not waited for."""
    chunks = read_chunks(request_of([b"ab", b"cd"]), 3)
    assert await anext(chunks) == b"ab"
    with pytest.raises(TooLargeError, match="larger than 3 bytes"):
        await anext(chunks)


async def test_client_that_leaves_ends_the_body_with_an_error() -> None:
    """A part of a body must not be taken for the whole of it."""
    with pytest.raises(BadRequestError, match="left"):
        await read_bytes(request_of([b"a"], end={"type": "http.disconnect"}), 3)

"""How much of a request's body is read before its sandbox is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.core.errors import QueueFullError, TooLargeError
from gateway.routing.read_ahead import ReadAhead
from gateway.routing.responses import Message
from gateway.routing.time_limits import ClientGoneError


def read(ahead: ReadAhead, pieces: Sequence[bytes | None], sizes: list[int]) -> tuple[Message, int]:
    """What is read of a body in these pieces, the last of which ends it; None: the client leaves. And how many."""
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        piece = pieces[taken]
        taken += 1
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": taken < len(pieces)}

    return asyncio.run(_read(ahead, receive, sizes)), taken


async def _read(ahead: ReadAhead, receive: object, sizes: list[int]) -> Message:
    return await ahead.read(receive, sizes.append)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pieces", "taken", "more"),
    [
        ([b'{"a": 1}'], 1, False),
        ([b" \n", b"", b'{"a"', b": 1}"], 4, False),
        ([b"[1]", b"[2]"], 1, True),
        ([b" ", b" x", b"y"], 2, True),
        ([b""], 1, False),
        ([b"   ", b" "], 2, False),
    ],
)
def test_only_what_begins_as_an_object_is_read_to_its_end(pieces: list[bytes], taken: int, more: bool) -> None:
    """The rest of another body stays with the client; what was read is kept as it came, and counted."""
    ahead, sizes = ReadAhead(), list[int]()
    message, read_pieces = read(ahead, pieces, sizes)
    assert (read_pieces, message["more_body"], message["body"]) == (taken, more, b"".join(pieces[:taken]))
    assert ahead.held == sum(sizes) == len(message["body"])


def test_what_is_held_is_bounded_for_one_request_and_for_all() -> None:
    """A body that ends within the limit passes, whatever others hold."""
    ahead = ReadAhead(most=10, total=12)
    with pytest.raises(TooLargeError, match="x-session-id"):
        read(ahead, [b'{"a": 1234', b"5", b"}"], [])
    ahead.held = 8
    with pytest.raises(QueueFullError):
        read(ahead, [b"{    ", b"}"], [])
    ahead.held = 0
    assert read(ahead, [b'{"a": 123}'], [])[0]["body"] == b'{"a": 123}'


def test_a_client_that_leaves_ends_the_reading() -> None:
    """Nothing is made of half a body."""
    with pytest.raises(ClientGoneError):
        read(ReadAhead(), [b'{"a"', None], [])

"""Frames are taken a few at a time, in their order, and none while nobody wants them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol

from gateway.routing.websocket_pace import FRAMES, MAX_BYTES, Frames, Pace, split_pongs

LENGTHS = st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536, 70_000])


def frame(size: int, *, mask: bool = True) -> bytes:
    return Frame(Opcode.BINARY, bytes(size), fin=True).serialize(mask=mask)


@given(st.lists(LENGTHS, max_size=150), st.lists(st.integers(1, 40_000), min_size=1, max_size=20), st.booleans())
def test_pieces_end_where_frames_do(lengths: list[int], reads: list[int], masked: bool) -> None:
    """However the reads cut the stream: none is lost, and no piece has more frames than it may."""
    stream, at, turn = b"".join(frame(size, mask=masked) for size in lengths), 0, 0
    frames, parser, taken = Frames(), Protocol(SERVER, state=OPEN, max_size=None), 0
    if not masked:
        parser.side = parser.side.CLIENT
    while at < len(stream):
        read, turn = stream[at : at + reads[turn % len(reads)]], turn + 1
        at += len(read)
        while read:
            size = frames.cut(read)
            assert size > 0
            parser.receive_data(read[:size])
            read = read[size:]
            found = len(parser.events_received())
            taken += found
            assert found <= FRAMES
    assert parser.parser_exc is None
    assert taken == len(lengths)


def test_no_frame_begins_beyond_the_bytes_of_a_piece() -> None:
    """Compressed, each may be a thousand times as large; one that has begun comes whole."""
    ten = frame(20 << 10, mask=False)
    assert Frames().cut(ten * 5) == 2 * len(ten) > MAX_BYTES
    large = frame(1 << 20)
    assert Frames().cut(large * 2) == len(large)


class _Transport(asyncio.Transport):
    """One that notes whether it reads."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False


async def test_frames_wait_in_order_until_they_are_wanted() -> None:
    """Each turn of the loop takes a few; meanwhile, and while nobody wants them, no more are read."""
    transport, pieces, wanted = _Transport(), list[bytes](), True
    pace = Pace(transport, pieces.append, lambda: wanted)
    one = frame(0)
    pace.received(one * (FRAMES * 3 + 1))
    assert (len(pieces), transport.reading) == (1, False)
    wanted = False
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(pieces) == 1
    wanted = True
    transport.resume_reading()  # as who wants more does
    pace.go_on()
    assert (len(pieces), transport.reading) == (1, False)
    for _ in range(3):
        await asyncio.sleep(0)
    assert [len(piece) for piece in pieces] == [len(one) * FRAMES] * 3 + [len(one)]
    assert transport.reading


async def test_what_waits_of_a_connection_that_is_gone_is_dropped() -> None:
    """And what the peer sent before its orderly end is not."""
    pieces = list[bytes]()
    pace = Pace(_Transport(), pieces.append, lambda: not pieces)
    rest = frame(1) + frame(2)
    pace.received(frame(0) * FRAMES + rest)
    assert len(pieces) == 1
    pace.flush()
    assert pieces[1:] == [rest]
    pace.received(frame(0))
    pace.close()
    pieces.clear()
    pace.go_on()
    await asyncio.sleep(0)
    assert not pieces


@pytest.mark.parametrize("mask", [True, False])
def test_pongs_are_told_from_other_frames(mask: bool) -> None:
    """The last is kept; an empty one, which ends the stream, is no pong."""
    first, last = (Frame(Opcode.PONG, data).serialize(mask=mask) for data in (b"1", b"2"))
    close = Frame(Opcode.CLOSE, b"").serialize(mask=mask)
    assert split_pongs([first, close, last, b""]) == ([close, b""], last)
    assert split_pongs([close]) == ([close], None)

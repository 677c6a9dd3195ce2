"""What the trail says of bodies that passed."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.body import HASHED_BYTES, BodyDigest


@given(st.lists(st.binary(max_size=50)))
def test_hash_is_of_the_whole_body_however_it_comes(pieces: list[bytes]) -> None:
    """In any pieces; and where there was no body, nothing is said."""
    body = BodyDigest()
    for piece in pieces:
        body.feed(piece)
    whole = b"".join(pieces)
    assert body.detail() == ({"bytes": len(whole), "sha256": sha256(whole).hexdigest()} if whole else {})


def test_of_a_large_body_the_beginning_is_hashed_and_the_line_says_how_much() -> None:
    """So a body of gigabytes costs the event loop no more than one of a MiB."""
    body, reused = BodyDigest(), bytearray(300_000)
    for number in range(5):
        reused[:] = bytes([number]) * len(reused)
        body.feed(memoryview(reused))
    whole = b"".join(bytes([number]) * 300_000 for number in range(5))
    assert body.detail() == {
        "bytes": 1_500_000, "sha256": sha256(whole[:HASHED_BYTES]).hexdigest(), "hashed": HASHED_BYTES,
    }  # fmt: skip


def test_text_is_the_beginning_that_was_asked_for() -> None:
    """And never grows with the body."""
    body = BodyDigest(text_bytes=5000)
    for _ in range(100):
        body.feed(b"x" * 1000)
    assert body.text == "x" * 5000


@pytest.mark.parametrize(
    ("sent", "names"),
    [
        (b'{"path": "a/b.txt", "content": "eA=="}', "a/b.txt"),
        (b'{"from":"a","to":"b","overwrite":true}', "a, b"),
        (b'--x\r\nContent-Disposition: form-data; name="path"\r\n\r\nnote.txt\r\n--x--', "note.txt"),
        (b'--x\r\nContent-Disposition: form-data; name="path"\r\nContent-Type: text/plain\r\n\r\nn\r\n--x--', "n"),
        (b"plain bytes", ""),
        (b'{"path": "' + b"a" * 600 + b'"}', ""),
    ],
)
def test_names_of_files_are_found_in_uploads(sent: bytes, names: str) -> None:
    """In forms and JSON, within bounds; a body without any says nothing."""
    body = BodyDigest()
    body.feed(sent)
    assert body.names() == names


@given(st.binary(max_size=5000))
def test_any_body_is_read_for_names(sent: bytes) -> None:
    """What a client sends is not a text of any kind."""
    body = BodyDigest()
    body.feed(sent)
    assert len(body.names()) <= 4 * 520

"""Messages of a kernel, which is user code: what is believed and what is not."""

from __future__ import annotations

import json

import pytest

from picod.interpreter.jupyter import MessageError, execute_request, read_message, sign

KEY = b"key"


def message(*parts: bytes, key: bytes = KEY, before: tuple[bytes, ...] = (b"topic",)) -> list[bytes]:
    """Signed frames of header, parent, metadata and content."""
    return [*before, b"<IDS|MSG>", sign(key, parts), *parts]


HEADER = json.dumps({"msg_type": "status"}).encode()
PARENT = json.dumps({"msg_id": "m"}).encode()


def test_message_is_read_with_its_parent_and_content() -> None:
    """Routing frames before the delimiter and buffers after the content do not matter."""
    frames = message(HEADER, PARENT, b"{}", b'{"execution_state": "idle"}')
    read = read_message(KEY, [*frames, b"buffer"], cut=False)
    assert (read.kind, read.parent, read.content) == ("status", "m", {"execution_state": "idle"})


def test_request_can_be_read_back() -> None:
    """What we make is what we would accept."""
    frames = execute_request(KEY, "session", "id", "1 + 1", silent=False, expressions={})
    read = read_message(KEY, frames, cut=False)
    assert (read.kind, read.parent) == ("execute_request", "")
    assert read.content is not None
    assert (read.content["code"], read.content["allow_stdin"]) == ("1 + 1", False)


def test_numbers_that_json_lacks_are_null() -> None:
    """Python would write NaN into the answer, and strict readers would refuse all of it."""
    read = read_message(KEY, message(HEADER, PARENT, b"{}", b'{"a": [NaN, -Infinity, 1]}'), cut=False)
    assert read.content == {"a": [None, None, 1]}


def test_content_that_was_cut_is_none() -> None:
    """Of a message that was too large only its kind and parent are known."""
    assert read_message(KEY, message(HEADER, PARENT, b"{}", b""), cut=True).content is None


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"topic"],
        [b"<IDS|MSG>"],
        [b"x"] * 9 + message(HEADER, PARENT, b"{}", b"{}"),
        message(HEADER, PARENT, b"{}", b"{}", key=b"other"),
        message(HEADER, PARENT, b"{}"),
        message(b"not json", PARENT, b"{}", b"{}"),
        message(b"[]", PARENT, b"{}", b"{}"),
        message(b'{"msg_type": 7}', PARENT, b"{}", b"{}"),
        message(HEADER, b'{"msg_id": []}', b"{}", b"{}"),
        message(HEADER, PARENT, b"{}", b"[" * 100_000),
        message(HEADER, PARENT, b"{}", b'{"a": [' + b"[]," * 1_000_000 + b"[]]}"),
        message(HEADER, PARENT, b"{}", b"\xff\xfe"),
        message(HEADER, PARENT, b"{}", b'{"n": ' + b"9" * 10_000 + b"}"),
    ],
    ids=range(14),
)
def test_malformed_message_is_refused(frames: list[bytes]) -> None:
    """Whatever is wrong with it, there is one error for it, and no other."""
    with pytest.raises(MessageError):
        read_message(KEY, frames, cut=False)

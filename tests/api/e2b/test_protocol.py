"""What E2B's clients put on the wire, and what cannot be understood of it: envelopes, paths, filters, signatures."""

from __future__ import annotations

import base64
import hashlib
import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.e2b.access_tokens import AccessTokens
from gateway.api.e2b.connect import MAX_MESSAGE_BYTES, ConnectError, Envelopes, bytes_of, envelope, number_of
from gateway.api.e2b.filesystem import mode_bits
from gateway.api.e2b.interpreter import render_result
from gateway.api.e2b.processes import read_keepalive
from gateway.api.e2b.sandbox_requests import read_metadata_filter
from gateway.api.sandbox_paths import PathError, resolve
from gateway.core.errors import BadRequestError, UnavailableError
from gateway.identity.shared_secret import SharedSecret


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=3), max_size=5), st.integers(1, 7))
def test_envelopes_cut_anywhere_give_the_same_messages(messages: list[dict[str, int]], step: int) -> None:
    """Messages are found whole however the network cut them; the end of the stream is none."""
    data = b"".join(envelope(each) for each in messages) + envelope({}, last=True)
    reader = Envelopes()
    found = [message for at in range(0, len(data), step) for message in reader.feed(data[at : at + step])]
    assert found == messages
    assert not reader.pending


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (struct.pack(">BI", 1, 2) + b"{}", "unimplemented"),  # compressed
        (struct.pack(">BI", 0, MAX_MESSAGE_BYTES + 1), "resource_exhausted"),
        (struct.pack(">BI", 0, 3) + b"{}x", "invalid_argument"),
        (struct.pack(">BI", 0, 2) + b"[]", "invalid_argument"),
    ],
)
def test_envelopes_that_cannot_be_read_are_refused(data: bytes, code: str) -> None:
    """Compressed, oversized, not JSON, not an object: each has its code, and nothing is buffered for it."""
    with pytest.raises(ConnectError) as refused:
        Envelopes().feed(data)
    assert refused.value.code == code


def test_truncated_envelope_stays_pending() -> None:
    """A stream that ends here is not whole."""
    reader = Envelopes()
    assert reader.feed(envelope({"a": 1})[:-1]) == []
    assert reader.pending


@pytest.mark.parametrize(
    ("path", "absolute", "inner", "root"),
    [
        ("", "/home/user", ".", "workspace"),
        ("~", "/home/user", ".", "workspace"),
        ("~/a", "/home/user/a", "a", "workspace"),
        ("a/../b", "/home/user/b", "b", "workspace"),
        ("/workspace/x", "/workspace/x", "x", "workspace"),
        ("/home/user2", "/home/user2", "/home/user2", "system"),
        ("/home/user/../../tmp/x", "/tmp/x", "/tmp/x", "system"),
        ("//tmp", "/tmp", "/tmp", "system"),
        ("../../..", "/", "/", "system"),
    ],
)
def test_paths_begin_at_home_and_reach_the_whole_sandbox(path: str, absolute: str, inner: str, root: str) -> None:
    """What is in the home is the workspace; everything else is the sandbox's own file system."""
    found = resolve(path)
    assert (found.absolute, found.inner, found.root) == (absolute, inner, root)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "\udc80"])
def test_paths_that_name_nothing_are_refused(path: str) -> None:
    """NUL, too long, not UTF-8."""
    with pytest.raises(PathError):
        resolve(path)


def test_metadata_filter_is_decoded_as_the_sdks_encode_it() -> None:
    """`a=b c` arrives as a%3Db%252520c, of which the query's own decoding was done already."""
    assert read_metadata_filter("a=b%2520c&d=") == {"a": "b c", "d": ""}
    assert read_metadata_filter("") == {}
    for text in ("%zz", "a=%25ff", "a" * 9000):
        with pytest.raises(BadRequestError):
            read_metadata_filter(text)


def test_tokens_and_signatures_are_good_for_one_sandbox() -> None:
    """A signature is of path, operation, user, token and end; with any of them changed it is refused."""
    tokens = AccessTokens()
    with pytest.raises(UnavailableError):
        tokens.of("s1")
    tokens.open(SharedSecret(b"k" * 32))
    assert tokens.verify("s1", tokens.of("s1"))
    assert not tokens.verify("s2", tokens.of("s1"))
    assert not tokens.verify("s1", "\u00e9")
    text = f"a.txt:read:user:{tokens.of('s1')}:2000"
    signed = "v1_" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    assert tokens.verify_url("s1", signed, "a.txt", "read", "user", "2000", now=1000.0) == ""
    assert "expired" in tokens.verify_url("s1", signed, "a.txt", "read", "user", "2000", now=2000.0)
    for args in (
        ("s2", "a.txt", "read", "user", "2000"),
        ("s1", "b.txt", "read", "user", "2000"),
        ("s1", "a.txt", "write", "user", "2000"),
        ("s1", "a.txt", "read", "root", "2000"),
        ("s1", "a.txt", "read", "user", "9000"),
        ("s1", "a.txt", "read", "user", ""),
    ):
        session, path, operation, user, expires = args
        assert "invalid" in tokens.verify_url(session, signed, path, operation, user, expires, now=1000.0), args


def test_results_tell_a_value_from_a_display() -> None:
    """Known formats have names of their own, others are in `extra`; a quoted text loses its quotes."""
    line = render_result({"text/plain": "'x'", "image/png": "AA", "x/y": 1}, is_value=True)
    assert line == {"type": "result", "is_main_result": True, "extra": {"x/y": 1}, "text": "x", "png": "AA"}
    assert render_result({"text/plain": "'"}, is_value=False)["text"] == "'"


def test_fields_follow_proto3s_json() -> None:
    """Numbers may be text, bytes are base64; anything else is refused."""
    assert number_of({"a": "12"}, "a") == number_of({"a": 12}, "a") == 12
    assert bytes_of({"a": base64.b64encode(b"\xff").decode()}, "a") == b"\xff"
    for message in ({"a": -1}, {"a": True}, {"a": "1e9"}, {"a": 1 << 60}):
        with pytest.raises(ConnectError):
            number_of(message, "a")
    with pytest.raises(ConnectError):
        bytes_of({"a": "*"}, "a")


def test_modes_are_read_from_what_ls_shows() -> None:
    """Set-user-ID and sticky letters count as execute where they are lower case."""
    assert mode_bits("-rw-r--r--") == 0o644
    assert mode_bits("drwxr-xr-x") == 0o755
    assert mode_bits("-rwsr-xr-T") == 0o754
    assert mode_bits("") == 0


def test_keepalive_interval_is_bounded() -> None:
    """What a client asks for, from 1 to 300 seconds; 90 without a number."""
    assert [read_keepalive(text) for text in (None, "x", "50", "0", "99999")] == [90.0, 90.0, 50.0, 1.0, 300.0]


def test_end_of_stream_carries_the_error() -> None:
    """Flag 2, and the error as JSON."""
    data = envelope({"error": ConnectError("not_found", "no").document}, last=True)
    assert data[0] == 2
    assert orjson.loads(data[5:]) == {"error": {"code": "not_found", "message": "no"}}

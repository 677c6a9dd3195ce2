"""What of a request's header goes on to the sandbox, and what of a response's comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core.errors import BadRequestError
from gateway.routing.access import AccessPolicy
from gateway.routing.field_names import HOP_BY_HOP
from gateway.routing.headers import read_request
from gateway.routing.request_fields import Request
from gateway.routing.response_headers import read_response
from gateway.routing.target import SESSION_HEADERS

CLIENT = ("192.0.2.7", 5000)
POLICY = AccessPolicy()
Fields = list[tuple[bytes, bytes]]

TOKEN = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_!", min_size=1, max_size=12).map(str.encode)
VALUE = st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0").strip())
SPECIAL = st.sampled_from([
    *sorted(HOP_BY_HOP), b"host", b"authorization", b"expect", b"content-length", b"forwarded", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-proto", b"x-session-id", b"x-agentcube-session-id", b"x-wakegate-runtime",
])  # fmt: skip
# Those that may come more than once with any value: the others would make most examples refused ones.
REPEATABLE = SPECIAL.filter(
    lambda name: name not in (b"content-length", b"transfer-encoding", b"host", *SESSION_HEADERS)
)
FIELDS = st.lists(
    st.tuples(REPEATABLE | TOKEN, VALUE)
    | st.tuples(st.just(b"connection"), st.lists(TOKEN | SPECIAL, max_size=4).map(b", ".join))
    | st.tuples(st.just(b"transfer-encoding"), st.sampled_from([b"chunked", b"Chunked", b"gzip", b"chunked, chunked"]))
    | st.tuples(st.just(b"content-length"), st.integers(0, 10**6).map(lambda n: b"%d" % n)),
    max_size=10,
)


def scope_of(fields: Fields, client: tuple[str, int] = CLIENT, scheme: str = "http") -> dict[str, Any]:
    """What `read_request` reads of an ASGI scope."""
    return {"headers": fields, "client": client, "scheme": scheme}


def sent(request: Request) -> Fields:
    """The finished lines as fields; each line must be exactly one or more whole fields."""
    raw = b"".join(request.lines + request.extra)
    assert raw.endswith(b"\r\n")
    return [(name, value) for name, _, value in (line.partition(b": ") for line in raw[:-2].split(b"\r\n"))]


def names(request: Request) -> list[bytes]:
    return [name for name, _ in sent(request)]


@given(fields=st.lists(st.tuples(st.binary(max_size=30) | SPECIAL, st.binary(max_size=60)), max_size=8))
@example(fields=[(b"content-length", b"9" * 5000)])
@example(fields=[(b"content-length", "٣".encode())])
@example(fields=[(b"host", b'"\\\xff')])
def test_read_request_answers_any_bytes_with_a_request_or_a_bad_request(fields: Fields) -> None:
    """Nothing that a parser could hand over makes it raise anything else."""
    try:
        read_request(scope_of(fields), POLICY)
    except BadRequestError:
        return


@given(fields=FIELDS)
@example(fields=[(b"transfer-encoding", b"chunked"), (b"connection", b"transfer-encoding")])
@example(fields=[(b"connection", b"content-length"), (b"content-length", b"3")])
@example(fields=[(b"content-length", b"3"), (b"connection", b"Content-Length, HOST")])
def test_read_request_keeps_the_framing_that_it_read(fields: Fields) -> None:
    """The sandbox is told of the body exactly as we send it: a Connection field cannot nominate the framing away."""
    try:
        request = read_request(scope_of(fields), POLICY)
    except BadRequestError:
        return
    told = [field for field in sent(request) if field[0] in (b"content-length", b"transfer-encoding")]
    if request.chunked:
        assert told == [(b"transfer-encoding", b"chunked")]
    elif request.content_length is not None:
        assert told == [(b"content-length", b"%d" % request.content_length)]
    else:
        assert told == []


@given(fields=FIELDS)
@example(fields=[(b"authorization", b"Bearer mine"), (b"proxy-authorization", b"Basic x"), (b"x-session-id", b"s")])
@example(fields=[(b"x-secret", b"1"), (b"connection", b"close, X-Secret"), (b"x-secret-2", b"2")])
@example(fields=[(b"connection", b"x-a"), (b"x-a", b"1")])
def test_read_request_drops_hop_by_hop_fields(fields: Fields) -> None:
    """Neither the fields of RFC 9110 7.6.1, nor one that Connection names, nor what is ours to consume, goes on."""
    try:
        request = read_request(scope_of(fields), POLICY)
    except BadRequestError:
        return
    gone = (HOP_BY_HOP - {b"transfer-encoding"}) | {
        b"authorization", b"expect", b"host", b"x-session-id", b"x-agentcube-session-id", b"x-wakegate-runtime"
    }  # fmt: skip
    assert not gone & set(names(request))
    nominated = {
        token.strip().lower() for name, value in fields if name == b"connection" for token in value.split(b",")
    }
    ours = {
        b"content-length",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"forwarded",
    }
    assert not (nominated - ours) & set(names(request))


@given(fields=FIELDS)
@example(fields=[(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2"), (b"forwarded", b"for=x")])
def test_read_request_passes_every_other_field_as_it_came(fields: Fields) -> None:
    """In order, with duplicates, byte for byte."""
    try:
        request = read_request(scope_of(fields), POLICY)
    except BadRequestError:
        return
    special = HOP_BY_HOP | {
        b"host", b"authorization", b"expect", b"content-length", b"forwarded", b"x-forwarded-for", b"x-forwarded-host",
        b"x-forwarded-proto", b"x-session-id", b"x-agentcube-session-id", b"x-wakegate-runtime",
    }  # fmt: skip
    nominated = {
        token.strip().lower() for name, value in fields if name == b"connection" for token in value.split(b",")
    }
    nominated -= {b"close", b"keep-alive", b"upgrade"}
    expected = [field for field in fields if field[0] not in special | nominated]
    passed = [field for field in sent(request) if field[0] not in special]
    assert sorted(passed) == sorted(expected)
    for name in {name for name, _ in expected}:  # the order counts among the values of one field
        assert [each for each in passed if each[0] == name] == [each for each in expected if each[0] == name]


@given(fields=FIELDS)
def test_read_request_writes_forwarding_itself(fields: Fields) -> None:
    """Each field is there once and tells what we saw: nothing of what the client claimed goes on."""
    fields = [(name, value) for name, value in fields if name != b"host"]
    try:
        request = read_request(scope_of([(b"host", b"gate:8080"), *fields]), POLICY)
    except BadRequestError:
        return
    for name, own in (
        (b"x-forwarded-for", b"192.0.2.7"),
        (b"forwarded", b'for=192.0.2.7;host="gate:8080";proto=http'),
        (b"x-forwarded-host", b"gate:8080"),
        (b"x-forwarded-proto", b"http"),
    ):
        assert [value for key, value in sent(request) if key == name] == [own]


def test_read_request_writes_ipv6_nodes_as_rfc_7239_wants() -> None:
    """In quotes and brackets in Forwarded, bare in X-Forwarded-For."""
    line = dict(sent(read_request(scope_of([(b"host", b"h")], ("2001:db8::1", 1), "https"), POLICY)))
    assert line[b"forwarded"] == b'for="[2001:db8::1]";host="h";proto=https'
    assert line[b"x-forwarded-for"] == b"2001:db8::1"


def test_read_request_understands_both_session_headers() -> None:
    """Either name, or both with one value."""
    for fields in ([(b"x-session-id", b"a")], [(b"x-agentcube-session-id", b"a")]):
        assert read_request(scope_of(fields), POLICY).session == b"a"
        assert read_request(scope_of(fields * 2), POLICY).session == b"a"
    both = [(b"x-session-id", b"a"), (b"x-agentcube-session-id", b"a")]
    assert read_request(scope_of(both), POLICY).session == b"a"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ([(b"x-session-id", b"a"), (b"x-agentcube-session-id", b"b")], "two session headers that differ"),
        ([(b"x-session-id", b"a"), (b"x-session-id", b"b")], "two session headers that differ"),
        ([(b"host", b"a"), (b"host", b"b")], "two Host headers"),
        ([(b"x-wakegate-runtime", b"a"), (b"x-wakegate-runtime", b"b")], "two x-wakegate-runtime headers"),
        ([(b"content-length", b"1"), (b"transfer-encoding", b"chunked")], "both Content-Length and Transfer-Encoding"),
        ([(b"content-length", b"1"), (b"content-length", b"2")], "two Content-Length"),
        ([(b"content-length", b"1"), (b"content-length", b"1")], "two Content-Length"),
        ([(b"content-length", b"+1")], "Content-Length is not a number"),
        ([(b"content-length", b"")], "Content-Length is not a number"),
        ([(b"transfer-encoding", b"gzip, chunked")], "other than chunked"),
        ([(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], "two Transfer-Encoding"),
    ],
)
def test_read_request_refuses_contradictions(fields: Fields, problem: str) -> None:
    """It does not choose between two values that cannot both be meant."""
    with pytest.raises(BadRequestError, match=problem):
        read_request(scope_of(fields), POLICY)


def test_read_response_drops_hop_by_hop_fields() -> None:
    """Hop-by-hop fields, those that Connection names, those that the gateway says itself; names are lower-cased."""
    kept = read_response([
        (b"Content-Type", b"a"), (b"Set-Cookie", b"1"), (b"Set-Cookie", b"2"), (b"Connection", b"close, X-Hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"), (b"Transfer-Encoding", b"chunked"), (b"X-Session-Id", b"forged"),
        (b"x-AgentCube-session-id", b"forged"), (b"X-Wakegate-Start", b"forged"), (b"X-Wakegate-Restored", b"forged"),
        (b"Content-Length", b"3"), (b"Date", b"Sat, 21 Nov 2026 10:04:40 GMT"),
    ])  # fmt: skip
    assert kept == [
        (b"content-type", b"a"), (b"set-cookie", b"1"), (b"set-cookie", b"2"), (b"content-length", b"3"),
    ]  # fmt: skip


@given(fields=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=8))
def test_read_response_takes_any_bytes(fields: Fields) -> None:
    """A hostile sandbox's fields never make it raise."""
    read_response(fields)


def test_read_response_keeps_the_length_that_connection_names() -> None:
    """Framing cannot be nominated away in this direction either."""
    assert read_response([(b"connection", b"content-length"), (b"content-length", b"3")]) == [(b"content-length", b"3")]

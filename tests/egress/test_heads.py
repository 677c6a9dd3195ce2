"""Heads, bodies in chunks and TLS hellos are read in one way or not at all."""

from __future__ import annotations

import ssl

import pytest

from gateway.egress.chunks import BadChunkError, Chunks
from gateway.egress.http_head import (
    BadHeadError,
    parse_request,
    parse_response,
    request_head,
    response_head,
    split_authority,
)
from gateway.egress.tls_hello import server_name


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhOST: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GE T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n",
    ],
)
def test_head_that_could_be_read_in_two_ways_is_refused(head: bytes) -> None:
    with pytest.raises(BadHeadError):
        parse_request(head)


def test_head_is_written_anew_without_what_is_for_the_proxy() -> None:
    """One Host, the one that was decided about; nothing of one connection alone."""
    head = parse_request(
        b"POST http://a.example.com/x HTTP/1.1\r\nHost: a.example.com\r\nProxy-Authorization: Basic eA==\r\n"
        b"Connection: keep-alive, X-Hop, Content-Length\r\nX-Hop: 1\r\nContent-Length: 3\r\nAccept: */*\r\n\r\n"
    )
    assert request_head(head, "a.example.com", "/x") == (
        b"POST /x HTTP/1.1\r\nHost: a.example.com\r\ncontent-length: 3\r\naccept: */*\r\nConnection: close\r\n\r\n"
    )
    assert head.length == 3


def test_upgrade_is_passed_on() -> None:
    head = parse_request(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert request_head(head, "a", "/ws").endswith(b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")


def test_answer_says_that_the_connection_ends() -> None:
    status, line, fields = parse_response(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nA: b\r\n\r\n")
    assert response_head(status, line, fields) == b"HTTP/1.1 200 OK\r\na: b\r\nConnection: close\r\n\r\n"
    with pytest.raises(BadHeadError):
        parse_response(b"ICY 200 OK\r\n\r\n")


@pytest.mark.parametrize(
    "text",
    ["a.com", "a.com:", "a.com:0", "a.com:65536", "a.com:4x", "user@a.com:443", "[a.com]:443", "[::1]443", "::1:443",
     "[::1",
     "127.1:443", "[fe80::1%25eth0]:443", ":443", "a.com:443:443"],
)  # fmt: skip
def test_malformed_authority_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        split_authority(text)


def test_chunks_end_where_their_body_does() -> None:
    """In any cut; extensions and trailers are dropped, and what follows is not content."""
    body = b"5;x=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\nGET /second HTTP/1.1\r\n"
    for size in (1, 2, 3, 7, len(body)):
        chunks = Chunks()
        found = b"".join(chunks.feed(body[at : at + size]) for at in range(0, len(body), size))
        assert (found, chunks.done) == (b"hello world", True)


@pytest.mark.parametrize(
    "body", [b"5\nhello", b"x\r\n", b"-1\r\n", b"5\r\nhello!\r\n", b"0x5\r\n", b" 5\r\n", b"5" * 2000, b"5 \x00\r\n"]
)
def test_malformed_chunks_are_refused(body: bytes) -> None:
    with pytest.raises(BadChunkError):
        Chunks().feed(body)


def hello(name: str | None) -> bytes:
    """What OpenSSL sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    if name is None:
        context.check_hostname = False
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_server_name_is_found_once_the_hello_is_complete() -> None:
    data = hello("Origin.example.com")
    assert all(server_name(data[:size]) is None for size in range(len(data)))
    assert server_name(data) == "origin.example.com"
    assert server_name(data + b"more") == "origin.example.com"
    assert server_name(hello(None)) == ""


def test_hello_in_several_records_is_read() -> None:
    """A name that is cut by a record's end is still the name."""
    data = hello("origin.example.com")
    body = data[5:]
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    assert (
        server_name(b"".join(b"\x16\x03\x01" + len(p).to_bytes(2, "big") + p for p in pieces)) == "origin.example.com"
    )


@pytest.mark.parametrize(
    "data",
    [b"\x16\x02\x01\x00\x05hello", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", b"\x16\x03\x01\x00\x00",
     b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"],
)  # fmt: skip
def test_what_is_no_hello_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        server_name(data)

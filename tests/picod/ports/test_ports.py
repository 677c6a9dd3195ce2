"""/api/ports over a real picod: other people's servers, their oddities, and what must not reach them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.picod import Executor, picod_process
from tests.support.waiting import wait_until

SESSION = {"x-agentcube-session-id": "s1"}
Talk = Callable[[socket.socket, bytes], None]


@contextlib.contextmanager
def server(talk: Talk, host: str = "127.0.0.1") -> Iterator[tuple[int, list[bytes]]]:
    """Someone's server: `talk` gets each connection with the head that came on it. Yields its port and those heads."""
    heads: list[bytes] = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen(16)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(20)
                    head = b""
                    while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                        head += data
                    if head:
                        heads.append(head)
                        with contextlib.suppress(OSError):
                            talk(connection, head)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], heads
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def says(answer: bytes) -> Talk:
    """A server that sends one fixed answer."""
    return lambda connection, _: connection.sendall(answer)


def lines(head: bytes) -> dict[str, str]:
    """The header fields of a head, by name."""
    pairs = (line.split(b": ", 1) for line in head.split(b"\r\n\r\n")[0].split(b"\r\n")[1:])
    return {name.decode(): value.decode() for name, value in pairs}


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_request_reaches_the_port_as_it_was_sent(picod: Executor) -> None:
    """Path and query byte for byte; of the fields, none that was meant for picod or for the hop."""
    with server(says(OK)) as (port, heads):
        reply = picod.client.request(
            "PATCH",
            f"/api/ports/{port}/a%2Fb//c?d=%20e",
            headers={
                **SESSION,
                "authorization": "Bearer x",
                "te": "trailers",
                "x-own": "1",
                "x-forwarded-for": "9.9.9.9",
            },
        )
    assert (reply.status_code, reply.text) == (200, "ok")
    assert heads[0].startswith(b"PATCH /a%2Fb//c?d=%20e HTTP/1.1\r\n")
    fields = lines(heads[0])
    assert fields["host"] == f"localhost:{port}"
    assert fields["connection"] == "close"
    assert fields["x-own"] == "1"
    assert fields["x-forwarded-for"] == "9.9.9.9"
    assert fields["x-forwarded-prefix"] == f"/v1/sessions/s1/ports/{port}"
    assert not {"authorization", "te"} & fields.keys()


@pytest.mark.parametrize("origin", ["http://sandbox:1", "http://evil.example", "null"])
def test_origin_follows_host_where_it_named_it(picod: Executor, origin: str) -> None:
    """A server that compares the two, as Tornado does, finds them equal for its own pages and for no other."""
    with server(says(OK)) as (port, heads):
        picod.client.get(f"/api/ports/{port}/", headers={**SESSION, "host": "sandbox:1", "origin": origin})
    fields = lines(heads[0])
    assert fields["origin"] == (f"http://{fields['host']}" if origin == "http://sandbox:1" else origin)


@pytest.mark.parametrize("chunked", [False, True])
def test_body_goes_up_and_comes_back_whole(picod: Executor, chunked: bool) -> None:
    """A few megabytes, with a length or in chunks; what the server gets is framed the way it was sent."""
    body = b"0123456789abcdef" * (1 << 18)

    def echo(connection: socket.socket, head: bytes) -> None:
        got = bytearray(head.split(b"\r\n\r\n", 1)[1])
        while len(got) < len(body) or (chunked and not got.endswith(b"0\r\n\r\n")):
            got += connection.recv(1 << 20)
        data = bytes(got)
        if chunked:
            pieces, rest = bytearray(), data
            while rest:
                size, rest = rest.split(b"\r\n", 1)
                pieces += rest[: int(size, 16)]
                rest = rest[int(size, 16) + 2 :]
            data = bytes(pieces)
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    content: Any = (body[i : i + 100_000] for i in range(0, len(body), 100_000)) if chunked else body
    with server(echo) as (port, _):
        reply = picod.client.post(f"/api/ports/{port}/", content=content)
    assert reply.status_code == 201
    assert reply.content == body


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", 200, b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-trailer: 1\r\n\r\n", 200, b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b""),
        (b"HTTP/1.1 418 Whatever\r\nContent-Length: 0\r\n\r\n", 418, b""),
    ],
)
def test_every_framing_of_an_answer_is_understood(picod: Executor, answer: bytes, status: int, body: bytes) -> None:
    """With a length, in chunks, until the connection ends; interim answers are passed over."""
    with server(says(answer)) as (port, _):
        reply = picod.client.get(f"/api/ports/{port}/")
        assert (reply.status_code, reply.content) == (status, body)
        assert "link" not in reply.headers
        assert picod.client.get("/health").status_code == 200  # the connection is in step


def test_head_is_answered_without_waiting_for_a_body(picod: Executor) -> None:
    """The length is that of the body that would have been."""
    with server(says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")) as (port, _):
        reply = picod.client.head(f"/api/ports/{port}/")
    assert (reply.status_code, reply.headers["content-length"]) == (200, "1000000")


def test_answer_streams_as_it_is_made(picod: Executor) -> None:
    """What the server has said is read before it says more."""
    go_on = threading.Event()

    def talk(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert go_on.wait(20)
        connection.sendall(b"data: 2\n\n")

    with server(talk) as (port, _), picod.client.stream("GET", f"/api/ports/{port}/") as reply:
        pieces = reply.iter_bytes()
        assert next(pieces) == b"data: 1\n\n"
        go_on.set()
        assert b"".join(pieces) == b"data: 2\n\n"


@pytest.mark.parametrize("silent", [True, False])
def test_client_that_leaves_takes_its_connection_along(picod: Executor, silent: bool) -> None:
    """The server sees the end, before its answer as well as in a silence of it."""
    ended = threading.Event()

    def talk(connection: socket.socket, _: bytes) -> None:
        if not silent:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nx")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
        ended.set()

    with server(talk) as (port, heads), picod.connect() as client:
        client.sendall(b"GET /api/ports/%d/ HTTP/1.1\r\nhost: x\r\n\r\n" % port)
        wait_until(lambda: bool(heads), "the request arrives")
        if not silent:
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        client.close()
        assert ended.wait(20)


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("/login?next=1", "{prefix}/login?next=1"),
        ("http://localhost:{port}/x", "{prefix}/x"),
        ("http://127.0.0.1:{port}", "{prefix}/"),
        ("http://localhost:1/x", "http://localhost:1/x"),
        ("//elsewhere.example/x", "//elsewhere.example/x"),
        ("https://elsewhere.example/", "https://elsewhere.example/"),
        ("next", "next"),
        ("http://[", "http://["),
    ],
)
def test_redirects_to_the_server_itself_stay_below_its_prefix(picod: Executor, sent: str, seen: str) -> None:
    """Others go where they went."""

    def talk(connection: socket.socket, _: bytes) -> None:
        location = sent.format(port=connection.getsockname()[1]).encode()
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location)

    with server(talk) as (port, _):
        reply = picod.client.get(f"/api/ports/{port}/", headers=SESSION)
        assert reply.headers["location"] == seen.format(port=port, prefix=f"/v1/sessions/s1/ports/{port}")


def test_cookies_are_for_the_port_alone(picod: Executor) -> None:
    """Path below the prefix, no Domain, the rest as it was."""
    answer = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/app; HttpOnly\r\nSet-Cookie: b=2; domain=example.com\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    with server(says(answer)) as (port, _):
        cookies = picod.client.get(f"/api/ports/{port}/", headers=SESSION).headers.get_list("set-cookie")
    prefix = f"/v1/sessions/s1/ports/{port}"
    assert cookies == [f"a=1; HttpOnly; Path={prefix}/app", f"b=2; Path={prefix}/"]


@pytest.mark.parametrize("name", ["x-wakegate-refused", "X-Wakegate-Refused"])
def test_mark_of_picods_own_refusals_cannot_be_forged(picod: Executor, name: str) -> None:
    """A server that answers it with its 401, once or twice: the client sees the 401, without the mark."""
    head = f"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic\r\n{name}: token\r\n"
    for more in ("", f"{name}: 1\r\n", "connection: close\r\n"):
        with server(says(f"{head}{more}content-length: 2\r\n\r\nno".encode())) as (port, _):
            reply = picod.client.get(f"/api/ports/{port}/", headers=SESSION)
        assert (reply.status_code, reply.content, reply.headers["www-authenticate"]) == (401, b"no", "Basic")
        assert "x-wakegate-refused" not in reply.headers


@pytest.mark.parametrize(
    ("sent", "seen"),
    [("/login?next=1", "/login?next=1"), ("http://localhost:{port}/x", "/x"), ("http://127.0.0.1:{port}", "/"),
     ("http://localhost:1/x", "http://localhost:1/x"), ("//other.example/x", "//other.example/x"), ("next", "next")],
)  # fmt: skip
def test_server_with_a_host_of_its_own_is_at_its_root(picod: Executor, sent: str, seen: str) -> None:
    """Redirects to itself lead to that host, cookies keep their Path, and no prefix is told."""

    def talk(connection: socket.socket, _: bytes) -> None:
        location = sent.format(port=connection.getsockname()[1]).encode()
        cookies = b"Set-Cookie: a=1; Path=/app; HttpOnly\r\nSet-Cookie: b=2; domain=example.com; Secure\r\n"
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: %b\r\n%bContent-Length: 0\r\n\r\n" % (location, cookies))

    with server(talk) as (port, heads):
        reply = picod.client.get(f"/api/ports/{port}/", headers={**SESSION, "x-wakegate-mount": "/"})
    assert reply.headers["location"] == seen.format(port=port)
    assert reply.headers.get_list("set-cookie") == ["a=1; Path=/app; HttpOnly", "b=2; Secure"]
    assert b"prefix" not in heads[0].lower()
    assert b"mount" not in heads[0].lower()


def test_server_on_the_other_loopback_is_found(picod: Executor) -> None:
    """`localhost` may mean ::1 to whoever listens."""
    try:
        with server(says(OK), "::1") as (port, _):
            assert picod.client.get(f"/api/ports/{port}/").text == "ok"
    except OSError:
        pytest.skip("no IPv6 here")


def test_port_without_a_listener_is_reported_as_such(picod: Executor) -> None:
    """502 PORT_NOT_LISTENING, with the advice to start a server."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        reply = picod.client.get(f"/api/ports/{unused.getsockname()[1]}/")
    assert reply.status_code == 502
    assert reply.json()["code"] == "PORT_NOT_LISTENING"
    assert "start a server there first" in reply.json()["error"]


@pytest.mark.parametrize(
    "answer",
    [b"-ERR unknown command\r\n", b"", b"HTTP/1.1 999 No\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000],
)
def test_server_without_http_gets_its_own_error(picod: Executor, answer: bytes) -> None:
    """A 502 with a reason, never a broken connection."""
    with server(says(answer)) as (port, _):
        reply = picod.client.get(f"/api/ports/{port}/")
    assert (reply.status_code, reply.json()["code"]) == (502, "PORT_BAD_ANSWER")


def test_answer_cut_short_is_cut_short(picod: Executor) -> None:
    """Nobody takes half an answer for all of it."""
    half = says(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    with server(half) as (port, _), pytest.raises(httpx.RemoteProtocolError):
        picod.client.get(f"/api/ports/{port}/")


@pytest.mark.parametrize(
    "path", ["/api/ports/", "/api/ports/x/", "/api/ports/0/", "/api/ports/65536/", "/api/ports/-1/"]
)
def test_malformed_ports_are_not_found(picod: Executor, path: str) -> None:
    """With the form that would be right."""
    reply = picod.client.get(path)
    assert (reply.status_code, reply.json()["code"]) == (404, "NOT_FOUND")


def test_only_allowed_ports_are_reached() -> None:
    """Ports below 1024 by default, and what a list leaves out, get a 403 that names what is allowed."""
    with server(says(OK)) as (port, heads):
        with picod_process("--auth", "none", environ={"PICOD_PORTS": f"80,{port + 1}-{port + 2}"}) as picod:
            reply = picod.client.get(f"/api/ports/{port}/")
            listed = picod.client.get("/api/ports").json()["ports"]
        assert reply.status_code == 403
        assert reply.json()["code"] == "PORT_NOT_ALLOWED"
        assert f"the runtime allows 80, {port + 1}-{port + 2}" in reply.json()["error"]
        assert {"port": port, "reachable": False} in listed
        assert not heads


def test_default_leaves_out_low_ports(picod: Executor) -> None:
    """80 is not among what may be reached."""
    assert picod.client.get("/api/ports/80/").status_code == 403


def test_waiting_for_a_port_ends_when_it_listens(picod: Executor) -> None:
    """The list that is answered then has it; without a listener it is answered when time is up."""
    with socket.socket() as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert {"port": port, "reachable": True} not in picod.client.get("/api/ports").json()["ports"]
        early = picod.client.get(f"/api/ports?wait={port}&timeout=1ms")
        assert early.status_code == 200
        asked = pool.submit(picod.client.get, f"/api/ports?wait={port}&timeout=20s")
        listener.listen()
        assert {"port": port, "reachable": True} in asked.result(20).json()["ports"]


@pytest.mark.parametrize("query", ["wait=x", "wait=-1", "timeout=x", "wait=123456"])
def test_wait_with_invalid_parameters_is_refused(picod: Executor, query: str) -> None:
    """A `wait` or `timeout` that is not valid gets 400."""
    assert picod.client.get(f"/api/ports?{query}").status_code == 400

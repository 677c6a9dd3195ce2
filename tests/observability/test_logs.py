"""Request ids, the access log, and log lines in both shapes."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.observability import logs
from gateway.routing.request_ids import id_in, id_line
from tests.support.scripted import KEY, Call, OpenScripted, Served, reaches
from tests.support.waiting import eventually

ON_UVLOOP = True


@pytest.fixture
def access(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Where access logs made from now on go."""
    written = io.BytesIO()
    monkeypatch.setattr("gateway.app.parts.AccessLog", lambda form: logs.AccessLog(form, written))
    return written


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, given back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def lines_of(written: io.BytesIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in written.getvalue().splitlines()]


async def ask_twice(gateway: Served, head: str) -> tuple[str | None, str | None]:
    """The request ids of two answers on one connection: off the fast path, then on it."""
    client = await gateway.connect()
    return (await client.ask(head)).get("x-request-id"), (await client.ask(head)).get("x-request-id")


async def test_request_id_of_the_client_is_kept_and_passed_on(open_gateway: OpenScripted) -> None:
    """On the fast path and the slow one: to the sandbox, and back."""
    gateway, sandbox = await open_gateway()
    session = await gateway.session()
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    head = f"GET /a HTTP/1.1\nhost: a\nx-session-id: {session}\nx-request-id: abc-1\ntraceparent: {parent}"
    assert await ask_twice(gateway, head) == ("abc-1", "abc-1")
    assert [request.get("x-request-id") for request in sandbox.requests] == ["abc-1", "abc-1"]
    assert [request.get("traceparent") for request in sandbox.requests] == [parent] * 2


async def test_request_without_an_id_gets_one_of_its_own(open_gateway: OpenScripted) -> None:
    """Each another, the same at the sandbox and at the client."""
    gateway, sandbox = await open_gateway()
    first, second = await ask_twice(gateway, f"GET /a HTTP/1.1\nhost: a\nx-session-id: {await gateway.session()}")
    assert first != second
    assert [request.get("x-request-id") for request in sandbox.requests] == [first, second]


async def test_gateways_own_answers_carry_the_request_id(open_gateway: OpenScripted) -> None:
    """Errors, bad requests and the control API too."""
    gateway, _ = await open_gateway()
    for head in (
        "GET /a HTTP/1.1\nx-session-id: nobody",
        "GET /a HTTP/1.1\nx-session-id: -",
        "GET /v1/sessions HTTP/1.1",
    ):
        assert (await gateway.ask(f"{head}\nhost: a\nx-request-id: mine")).get("x-request-id") == "mine"


async def test_sandbox_cannot_change_the_request_id(open_gateway: OpenScripted) -> None:
    """The client's own field of that name is dropped, on the fast path and on the slow one."""
    gateway, _ = await open_gateway(lambda call: call.reply(fields="x-request-id: forged\n"))
    head = f"GET /a HTTP/1.1\nhost: a\nx-session-id: {await gateway.session()}\nx-request-id: mine"
    assert await ask_twice(gateway, head) == ("mine", "mine")


@pytest.mark.parametrize("sent", [b"", b"a b", b"x" * 129, b"\xff", b"a\x7f", None])
def test_request_id_that_cannot_be_passed_on_is_replaced(sent: bytes | None) -> None:
    """What is empty, long or not visible ASCII would be trouble in somebody's log."""
    made = id_in(id_line(sent))
    assert made != sent
    assert id_in(id_line(made)) == made


async def test_access_log_has_one_line_per_request(open_gateway: OpenScripted, access: io.BytesIO) -> None:
    """Fast path, slow path, errors and control alike, with what one asks of an access log."""
    gateway, _ = await open_gateway(access_log=True, log_format="json")
    client = await gateway.connect()
    new = f"GET /a?secret=1 HTTP/1.1\nhost: a\nx-wakegate-runtime: {KEY.name}\nx-request-id: one"
    session = (await client.ask(new)).get("x-session-id")
    await client.ask(f"GET /b HTTP/1.1\nhost: a\nx-session-id: {session}\nx-request-id: two")
    await client.ask("GET /c HTTP/1.1\nhost: a\nx-session-id: nobody\nx-request-id: three")
    await client.ask("GET /healthz HTTP/1.1\nhost: a\nx-request-id: four")
    lines = lines_of(access)
    for line in lines:
        assert line.pop("timestamp").endswith("Z")
        assert line.pop("ms") >= 0
    common = {"event": "request", "level": "info", "method": "GET", "client": "127.0.0.1"}
    ours = {"session": session, "runtime": str(KEY)}
    error = len((await client.ask("GET /c HTTP/1.1\nhost: a\nx-session-id: nobody")).body)
    alive = len((await client.ask("GET /healthz HTTP/1.1\nhost: a")).body)
    assert lines == [
        common | ours | {"path": "/a", "status": 200, "bytes": 2, "request_id": "one", "start": "warm"},
        common | ours | {"path": "/b", "status": 200, "bytes": 2, "request_id": "two", "start": "live"},
        common | {"path": "/c", "status": 404, "bytes": error, "request_id": "three", "session": "nobody"},
        common | {"path": "/healthz", "status": 200, "bytes": alive, "request_id": "four"},
    ]


async def test_access_log_names_the_client_behind_a_trusted_proxy(
    open_gateway: OpenScripted, access: io.BytesIO
) -> None:
    """And who dialled us where no trusted proxy did, whatever that one claims; on requests, refusals and WebSockets."""
    asked = "connection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\n"
    asked += "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\n"
    for setting, client in (("127.0.0.1", "203.0.113.9"), ("10.0.0.0/8", "127.0.0.1")):
        access.truncate(0)
        access.seek(0)
        gateway, _ = await open_gateway(access_log=True, log_format="json", trusted_proxies=setting)
        session = await gateway.session()
        for path in ("/a", "/a", "/v1/sessions", "/v1/namespaces/x", "/v1/sessions/-/ports/0/"):
            named = f"x-session-id: {session}\n" if path == "/a" else ""
            await gateway.ask(f"GET {path} HTTP/1.1\nhost: a\n{named}x-forwarded-for: 203.0.113.9\n")
        await gateway.ask(f"GET /none HTTP/1.1\nhost: a\n{asked}x-forwarded-for: 203.0.113.9\n")
        await reaches(lambda: len(lines_of(access)), 6, "a line for each request")
        assert {line["client"] for line in lines_of(access)} == {client}


async def test_access_log_has_a_line_for_clients_that_left(open_gateway: OpenScripted, access: io.BytesIO) -> None:
    """No answer was begun: 499, and cut; one that was begun keeps its status and is cut."""

    async def script(call: Call) -> None:
        await call.body()
        if call.request.path == "/begun":
            await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n1\na\n")

    gateway, sandbox = await open_gateway(script, access_log=True, log_format="json")
    session = await gateway.session()
    for path in ("/silent", "/begun"):
        client = await gateway.connect()
        await client.send(f"GET {path} HTTP/1.1\nhost: a\nx-session-id: {session}\n\n")
        await reaches(lambda: [each.path for each in sandbox.requests[-1:]], [path], "the sandbox has the request")
        if path == "/begun":
            await client.head()
        client.abort()
        await reaches(lambda: [line["path"] for line in lines_of(access)[-1:]], [path], "the line is written")
    told = [(line["path"], line["status"], line["cut"], line["session"]) for line in lines_of(access)]
    assert told == [("/silent", 499, True, session), ("/begun", 200, True, session)]


async def test_access_log_has_a_line_for_websockets(open_gateway: OpenScripted, access: io.BytesIO) -> None:
    """A refused handshake is a line with the status that the client saw."""
    gateway, _ = await open_gateway(access_log=True, log_format="json")
    with pytest.raises(InvalidStatus) as refused:
        async with connect(gateway.url.replace("http", "ws") + "/a", proxy=None):
            pass
    assert refused.value.response.headers["x-request-id"]
    await eventually(lambda: lines_of(access), "the line is written")
    (line,) = lines_of(access)
    assert (line["method"], line["path"], line["status"]) == ("WEBSOCKET", "/a", 404)


async def test_console_access_log_is_one_plain_line(open_gateway: OpenScripted, access: io.BytesIO) -> None:
    """For people: no braces, and no colours unless the output is a terminal."""
    gateway, _ = await open_gateway(access_log=True)
    await gateway.ask("GET /healthz HTTP/1.1\nhost: a\nx-request-id: mine")
    (line,) = access.getvalue().decode().splitlines()
    for part in ("request", "path=/healthz", "status=200", "request_id=mine"):
        assert part in line
    assert "\x1b" not in line


async def test_log_lines_of_a_request_carry_its_id(open_gateway: OpenScripted, root_logger: logging.Logger) -> None:
    """A warning that a request caused can be found by the id that the client has."""
    written = io.StringIO()
    logs.configure("info", "json", written)

    async def script(call: Call) -> None:
        await call.body()
        call.abort()

    gateway, _ = await open_gateway(script)
    session = await gateway.session()
    await gateway.ask(f"GET /a HTTP/1.1\nhost: a\nx-session-id: {session}\nx-request-id: mine")
    warnings = [orjson.loads(line) for line in written.getvalue().splitlines()]
    (told,) = [line for line in warnings if "SANDBOX_LOST" in line["event"]]
    assert (told["request_id"], told["level"], told["logger"]) == ("mine", "warning", "gateway.routing.responses")


@pytest.mark.parametrize("form", ["json", "console"])
def test_log_lines_show_exceptions(form: logs.LogFormat, root_logger: logging.Logger) -> None:
    """In JSON as one field of one line."""
    written = io.StringIO()
    logs.configure("info", form, written)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("some.part").exception("it failed: %s", 1)
    text = written.getvalue()
    assert "it failed: 1" in text
    assert "RuntimeError: broken" in text
    assert form == "console" or orjson.loads(text)["level"] == "error"


def test_log_level_is_applied(root_logger: logging.Logger) -> None:
    """What is less severe is not written."""
    written = io.StringIO()
    logs.configure("warning", "console", written)
    logging.getLogger("some.part").info("quiet")
    logging.getLogger("some.part").warning("loud")
    assert "quiet" not in written.getvalue()
    assert "loud" in written.getvalue()


def test_traceback_in_the_console_shows_no_variables(root_logger: logging.Logger) -> None:
    """A failure is logged with its lines and its reason; what variables held, keys among them, is not."""
    written = io.StringIO()
    logs.configure("info", "console", written)

    def fail() -> None:
        held = "".join(["hun", "ter2"])  # in no line of the source as it is
        raise ValueError(len(held))

    try:
        fail()
    except ValueError:
        root_logger.exception("a pass failed")
    said = written.getvalue()
    assert "a pass failed" in said
    assert "ValueError: 7" in said
    assert "hunter2" not in said


def test_control_characters_in_logged_text_are_escaped(root_logger: logging.Logger) -> None:
    """A path, or a sandbox's words, with line ends and escape sequences is one line of text."""
    stream = io.StringIO()
    logs.configure("info", "console", stream)
    logging.getLogger("test").warning("sandbox: %s", "first\n2026-01-01 [error] forged\x1b[2J")

    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    assert r"first\n2026-01-01 [error] forged\x1b[2J" in lines[0]
    assert logs.printable("/files/日本語 and spaces") == "/files/日本語 and spaces"


def test_no_color_leaves_a_terminal_plain(monkeypatch: pytest.MonkeyPatch, root_logger: logging.Logger) -> None:
    """By the convention of https://no-color.org."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for value, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        stream = Terminal()
        logs.configure("info", "console", stream)
        logging.getLogger("test").warning("plain")
        assert ("\x1b[" in stream.getvalue()) is coloured

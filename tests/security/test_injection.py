"""Line ends, escape sequences and quotes in what strangers name: they write no field, log line or terminal."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import orjson
import pytest

from gateway.observability import logs
from tests.support.picod import picod_process
from tests.support.scripted import Call, OpenScripted
from tests.support.tool_calls import chat_call

ON_UVLOOP = True
EVIL = 'a\r\nx-evil: 1\r\n\r\n2026-01-01 [error] forged\x1b[2J\x9b2J\u2028"; filename="b'


@pytest.fixture(params=["console", "json"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.BytesIO]:
    """All that a gateway with an access log writes, in each form."""
    written = io.BytesIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr("gateway.app.parts.AccessLog", lambda form: logs.AccessLog(form, written))
    logs.configure("debug", request.param, io.TextIOWrapper(written, "utf-8", write_through=True))
    written.name = request.param
    yield written
    root.handlers[:] = handlers
    root.setLevel(level)


def assert_unforged(log: io.BytesIO) -> None:
    lines = log.getvalue().decode().split("\n")
    assert len(lines) > 1
    for line in lines:
        assert not line.startswith(("x-evil", "2026-01-01 [error] forged"))
        assert "\x1b" not in line
        assert "\r" not in line
        if log.name == "console":
            assert "\x9b" not in line
            assert "\u2028" not in line
        elif line:
            orjson.loads(line)


async def test_names_of_strangers_write_no_fields_and_no_log_lines(open_gateway: OpenScripted, log: io.BytesIO) -> None:
    """Names of tools, files, sessions and runtimes, ids of calls, keys of retries, and metadata."""

    async def script(call: Call) -> None:
        await call.body()
        await call.reply(orjson.dumps({"error": EVIL}), "400 Bad Request")

    gateway, sandbox = await open_gateway(script, access_log=True, log_format=log.name)
    name = quote(EVIL, safe="")
    session = await gateway.session(metadata={EVIL[:200]: EVIL})
    written = chat_call("d", "write_file", path=EVIL[:200], content="")
    requests: list[tuple[str, object]] = [
        (f"GET /api/files/{name} HTTP/1.1\nx-session-id: {session}", None),
        (f"GET /{name}?{name} HTTP/1.1", None),
        (f"GET /v1/sessions/{name} HTTP/1.1", None),
        (f"GET /v1/sessions/{session} HTTP/1.1", None),
        (f"GET /v1/sessions?runtime={name} HTTP/1.1", None),
        (f"GET /v1/containers/{session}/files/{name}/content HTTP/1.1", None),
        (f"GET /v1/namespaces/{name}/code-interpreters/{name}/invocations/ HTTP/1.1", None),
        ("POST /v1/sessions HTTP/1.1", {"metadata": {EVIL: EVIL}}),
        ("POST /v1/sessions HTTP/1.1", {"runtime": EVIL, "name": EVIL}),
        (f"PATCH /v1/sessions/{session} HTTP/1.1", {"metadata": {EVIL: EVIL}}),
        ("POST /v1/containers HTTP/1.1", {"name": EVIL}),
        (f"POST /v1/tool_calls HTTP/1.1\nx-session-id: {session}", {"tool_calls": [chat_call("c", EVIL, a=1)]}),
        (
            f"POST /v1/tool_calls HTTP/1.1\nx-session-id: {session}",
            {"tool_calls": [chat_call(EVIL, "run_shell", command="x"), written]},
        ),
        (f"GET / HTTP/1.1\nx-session-id: {session}\nx-request-id: {name}\x1b[2J", None),
    ]  # fmt: skip
    for head, document in requests:
        body = b"" if document is None else orjson.dumps(document)
        fields = f"\nhost: h\ncontent-type: application/json\ncontent-length: {len(body)}"
        answer = await gateway.ask(head + fields, body)
        assert answer.all("x-evil") == [], head
        assert all(value.isprintable() for _, value in answer.fields), head
    assert sandbox.requests
    for request in sandbox.requests:
        assert request.all("x-evil") == []
        assert all(value.isprintable() or value.endswith("\x1b[2J") for _, value in request.fields)
    assert_unforged(log)


async def test_traceback_cannot_forge_log_lines(log: io.BytesIO) -> None:
    """A failure's text may be a sandbox's words; it stands indented below its line, and moves no cursor."""
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("x").exception("failed: %s", EVIL)
    assert_unforged(log)
    assert b"ValueError" in log.getvalue()


def test_download_of_a_file_names_it_in_one_field() -> None:
    """Whatever it is called, picod's answer has no field that the name made."""
    with picod_process("--auth", "none") as picod:
        for name in (EVIL.replace("/", "")[:100], '"; filename=b', "a\r\n\r\n<b>"):
            (picod.workspace / name).write_text("x")
            reply: httpx.Response = picod.client.get("/api/files/" + quote(name, safe=""))
            assert (reply.status_code, reply.text) == (200, "x")
            assert "x-evil" not in reply.headers
            assert reply.headers["content-disposition"].isprintable()
            assert reply.headers["content-disposition"].count('"') == 2

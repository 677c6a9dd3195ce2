"""What a stranger sends to each control surface: documents of all shapes, and names that are no names."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.scripted import SHARED, ScriptedSandbox, Served

ON_UVLOOP = True

BODIES = {
    "deep-list": b"[" * 400_000,
    "deep-object": b'{"a":' * 200_000,
    "deep-and-closed": b"[" * 900 + b"]" * 900,
    "deep-in-a-field": b'{"metadata":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "not-a-number": b'{"metadata":{"a":NaN}}',
    "long-number": b'{"ttl":' + b"9" * 5000 + b"}",
    "long-exponent": b'{"ttl":1e999999999,"idleTimeout":-1e999999999}',
    "lone-surrogate": b'{"metadata":{"a":"\\ud800"},"name":"\\udfff"}',
    "no-utf-8": b'{"name":"\xff\xfe"}',
    "text": b'"x"',
    "null": b"null",
    "true": b"true",
    "nothing": b"",
    "byte-order-mark": b"\xef\xbb\xbf5",
    "lists-for-texts": b'{"runtime":[[]],"name":[],"namespace":{},"ttl":[],"metadata":[],"tool_calls":{"a":[]}}',
    "read-and-not-written": b'{"metadata":{"a":' + b"[" * 300 + b"]" * 300 + b"}}",
    "many-keys": b"{" + b",".join(b'"%d":0' % each for each in range(50_000)) + b"}",
    "same-key": b"{" + b",".join(b'"runtime":[]' for _ in range(20_000)) + b"}",
}
CHOICES = ("lang", "language", "action", "type", "kind", "role", "format", "state", "policy")
DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
NAMES = ("..%2f..%2fetc%2fpasswd", "%00", "a%0d%0ax-evil:%201", "%2e%2e", "%ff", "a" * 3000, "*", "%F0%9F%98%80", "%25")
MIB = 1 << 20
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
PLACEHOLDER = re.compile(r"\{[a-zA-Z_]+\}")


async def paths(client: httpx.AsyncClient, method: str) -> list[str]:
    """Paths of the gateway's own document that take this method, so that a new one is attacked as well."""
    document = (await client.get("/openapi.json")).json()
    return sorted(path for path, operations in document["paths"].items() if method in operations)


# Jupyter's clients create a kernel with an empty body, and its server passes over fields that it does not know.
ANY_OBJECT = {("post", path) for path in ("/jupyter/api/kernels", "/jupyter/api/sessions", "/api/kernels")}
# AgentScope's manager makes the usual sandbox where nothing is said, and cleans up whatever is said.
NO_ARGUMENTS = {
    ("post", f"/agentscope/{verb}") for verb in ("create", "create_from_pool", "cleanup", "list_session_keys")
}
# Open Terminal's clients open one with whatever body they have; the chat that it makes has a session.
TERMINALS = ("post", "/open-terminal/api/terminals")


def _is_empty(body: bytes) -> bool:
    return body in {BODIES[name] for name in ("nothing", "null", "many-keys", "same-key")}


async def _spaces(count: int) -> AsyncIterator[bytes]:
    """So many MiB of white space, chunked: neither JSON nor its end."""
    for _ in range(count):
        yield b" " * MIB


@SHARED
async def test_no_path_holds_a_body_without_an_end(kept_gateway: tuple[Served, ScriptedSandbox]) -> None:
    """What an operation reads into memory is bounded, also where its body is optional: the rest is left unread."""
    gateway, _ = kept_gateway
    status = Path("/proc/self/status")
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        every = [
            (method, path) for method in ("post", "put", "patch", "delete") for path in await paths(client, method)
        ]
    for method, path in every:
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # the peak is that of this request; the gateway is in this process
        before = int(PEAK.findall(status.read_text())[0])
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # closed at the limit, while it is being sent
                await client.request(method, PLACEHOLDER.sub("no-such-name", path), content=_spaces(64))
        grown = int(PEAK.findall(status.read_text())[0]) - before
        assert grown < 40 << 10, (method, path, f"{grown} KiB more than before")


@SHARED
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_bad_document_is_a_4xx_on_every_path(kept_gateway: tuple[Served, ScriptedSandbox], body: bytes) -> None:
    """A 4xx in place of a traceback, whatever is deep, long, doubled or of another type; the gateway answers on."""
    gateway, _ = kept_gateway
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for method in ("post", "put", "patch"):
            for path in await paths(client, method):
                filled = PLACEHOLDER.sub("no-such-name", path)
                answer = await client.request(method, filled, content=body, headers=headers)
                if (method, path) in ANY_OBJECT and _is_empty(body) and answer.status_code == 201:
                    await client.delete(f"{path}/{answer.json()['id']}")
                    continue
                if (method, path) in NO_ARGUMENTS and answer.status_code == 200:
                    await client.post("/agentscope/cleanup", json={})
                    continue
                if (method, path) == TERMINALS and answer.status_code == 200:
                    # Its id begins with the session's, which would else take the names of the next test to a sandbox.
                    await client.delete(f"/v1/sessions/{answer.json()['id'].partition('.')[0]}")
                    continue
                assert 400 <= answer.status_code < 500, (method, path, answer.status_code, answer.text[:300])
                assert len(answer.content) < 16 << 10, (path, "the document is not sent back whole")
        assert (await client.get("/healthz")).status_code == 200


@SHARED
@pytest.mark.parametrize("value", [[], {}], ids=["list", "object"])
async def test_choice_of_another_type_is_no_error_of_ours(
    kept_gateway: tuple[Served, ScriptedSandbox], value: object
) -> None:
    """Where one of several words is expected: a list is in no table, and cannot be looked up in one."""
    gateway, _ = kept_gateway
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        for path in await paths(client, "post"):
            answer = await client.post(PLACEHOLDER.sub("no-such-name", path), json=dict.fromkeys(CHOICES, value))
            assert answer.status_code != 500, (path, answer.text)
        for session in (await client.get("/v1/sessions")).json()["sessions"]:  # some ask for nothing, and made one
            await client.delete(f"/v1/sessions/{session['id']}")


@SHARED
@pytest.mark.parametrize("value", [[], {}, [[]], 1.5, True, None, 10**30, DEEP], ids=lambda each: repr(each)[:8])
async def test_field_of_another_type_in_a_call_of_e2b_is_no_error_of_ours(
    kept_gateway: tuple[Served, ScriptedSandbox], value: object
) -> None:
    """Its calls are in no list of ours: each field of some, with a value of every type."""
    gateway, _ = kept_gateway
    session = await gateway.session()
    calls = {
        "process.Process/SendSignal": ("process", "signal"),
        "process.Process/SendInput": ("process", "input"),
        "process.Process/Update": ("process", "pty"),
        "filesystem.Filesystem/ListDir": ("path", "depth"),
        "filesystem.Filesystem/Move": ("source", "destination"),
        "filesystem.Filesystem/GetWatcherEvents": ("watcherId",),
    }
    headers = {"e2b-sandbox-id": session, "e2b-sandbox-port": "49983", "content-type": "application/json"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as client:
        for call, fields in calls.items():
            for field in fields:
                text = json.dumps({"process": {"pid": 1}, "path": "/x", field: value})
                answer = await client.post(f"/{call}", content=text)
                # 503: the scripted sandbox answers what is no answer of picod's.
                assert answer.status_code < 500 or answer.status_code == 503, (call, field, answer.text)


@SHARED
@pytest.mark.parametrize("name", NAMES, ids=[each[:12] for each in NAMES])
async def test_hostile_name_in_a_path_is_not_found_or_refused(
    kept_gateway: tuple[Served, ScriptedSandbox], name: str
) -> None:
    """Dots, line ends, NUL and long names in each parameter: a 4xx without a field of the sender's making."""
    gateway, sandbox = kept_gateway
    before = len(sandbox.requests)
    host, port = urlsplit(gateway.url).hostname, urlsplit(gateway.url).port
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        found = [(method, path) for method in ("get", "post", "delete") for path in await paths(client, method)]
    for method, path in found:
        if PLACEHOLDER.search(path) is None:
            continue
        target = PLACEHOLDER.sub(lambda _: name, path)
        answer = await gateway.ask(
            f"{method.upper()} {target} HTTP/1.1\nhost: {host}:{port}\ncontent-length: 0\nconnection: close\n\n"
        )
        assert 400 <= answer.status < 500, (method, path, answer)
        assert answer.all("x-evil") == []
    assert len(sandbox.requests) == before

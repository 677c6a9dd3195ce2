"""The tool-call endpoint over a sandbox that is played by a script: what a real one does only when it is attacked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from gateway.api.openai import tool_call_stream
from gateway.core.model import Kind, RuntimeKey
from gateway.runtimes.catalog import default_runtime
from tests.support.scripted import Call, OpenScripted, Script, ScriptedSandbox, Served
from tests.support.tool_calls import chat_call, item, tool_use
from tests.support.waiting import eventually

ON_UVLOOP = True
PRINTED = orjson.dumps({"stdout": "ok\n", "stderr": "", "exit_code": 0})


def commands(script: Script) -> Script:
    """The script for commands; the sandbox has no files."""

    async def answer(call: Call) -> None:
        if call.request.path == "/api/execute":
            await script(call)
        else:
            await call.body()
            await call.reply(b"{}", "404 Not Found")

    return answer


async def run_ok(call: Call) -> None:
    """Any command prints ok."""
    await call.body()
    await call.reply(PRINTED)


@asynccontextmanager
async def client_of(gateway: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=20) as client:
        yield client


def executions(sandbox: ScriptedSandbox) -> int:
    """How many commands it was given."""
    return sum(request.path == "/api/execute" for request in sandbox.requests)


async def content(client: httpx.AsyncClient, body: Any, **headers: str) -> str:
    """The only message's text."""
    reply = await client.post("/v1/tool_calls", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    (message,) = reply.json()["messages"]
    return str(message["content"])


@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        (b"not JSON", "200 OK", "Error (bad_answer)"),
        (b"[]", "200 OK", "Error (bad_answer)"),
        (b"{}", "200 OK", "Error (bad_answer)"),
        (b'{"error": "no room left"}', "507 Insufficient Storage", "Error (disk_full): no room left"),
        (b"<html>", "500 Internal Server Error", "Error (failed): the sandbox answered with status 500"),
    ],
)
async def test_odd_answers_of_a_sandbox_are_failures_for_the_model(
    open_gateway: OpenScripted, answer: bytes, status: str, expected: str
) -> None:
    """Whatever took picod's place says."""

    async def script(call: Call) -> None:
        await call.body()
        await call.reply(answer, status)

    gateway, _ = await open_gateway(commands(script))
    async with client_of(gateway) as client:
        assert (await content(client, [chat_call("a", "run_shell", command="x")])).startswith(expected)


async def test_call_in_a_sandbox_that_dies_fails_and_is_not_run_again(open_gateway: OpenScripted) -> None:
    """The call may have run, so its retry gets the same answer, and the sandbox no second request."""

    async def script(call: Call) -> None:
        await call.body()
        call.abort()

    gateway, sandbox = await open_gateway(commands(script))
    session = await gateway.session()
    async with client_of(gateway) as client:
        for attempt in ("0", "1"):
            headers = {"x-session-id": session, "x-stainless-retry-count": attempt}
            answer = await content(client, [chat_call("a", "run_shell", command="x")], **headers)
            assert answer.startswith("Error (sandbox_lost)")
            assert answer.endswith("it may or may not have run")
    assert executions(sandbox) == 1


async def test_client_that_leaves_finds_the_result_when_it_asks_again(open_gateway: OpenScripted) -> None:
    """A call outlives the request, streamed or not; nothing runs twice."""
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.body()
        await go.wait()
        await call.reply(PRINTED)

    gateway, sandbox = await open_gateway(commands(script))
    session = await gateway.session()
    body = {"session_id": session, "tool_calls": [chat_call("a", "run_shell", command="x")]}
    async with client_of(gateway) as client:
        async with client.stream("POST", "/v1/tool_calls", json={**body, "stream": True}) as reply:
            assert b"tool_calls.started" in await anext(reply.aiter_bytes())
            await eventually(lambda: executions(sandbox) == 1, "the call reaches the sandbox")
        again = asyncio.create_task(client.post("/v1/tool_calls", json={**body, "stream": True}))
        await asyncio.sleep(0)
        go.set()
        text = (await again).text
    assert '"replayed":true' in text
    assert text.endswith("data: [DONE]\n\n")
    assert executions(sandbox) == 1


async def test_quiet_stream_sends_heartbeats(open_gateway: OpenScripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """During a silent call comments are sent, so that no proxy closes the stream as dead."""
    monkeypatch.setattr(tool_call_stream, "HEARTBEAT_S", 0.02)
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await call.body()
        await go.wait()
        await call.reply(b'event: exit\ndata: {"exit_code":0}\n\n')

    gateway, _ = await open_gateway(commands(script))
    body = {"stream": True, "tool_calls": [chat_call("a", "run_shell", command="x")]}
    text = ""
    async with client_of(gateway) as client, client.stream("POST", "/v1/tool_calls", json=body) as reply:
        async for piece in reply.aiter_text():
            text += piece
            if text.count(": still running") == 2:
                go.set()
    assert text.endswith("data: [DONE]\n\n")
    assert '"content":"(no output)"' in text


async def test_idempotency_key_makes_one_session(open_gateway: OpenScripted) -> None:
    """Retries at once and later; another key, or no key, makes another."""
    gateway, sandbox = await open_gateway(run_ok)
    body = [chat_call("a", "run_shell", command="x")]
    async with client_of(gateway) as client:

        async def ask(key: str | None) -> str:
            headers = {} if key is None else {"idempotency-key": key}
            reply = await client.post("/v1/tool_calls", json=body, headers=headers)
            assert reply.status_code == 200, reply.text
            return str(reply.json()["session_id"])

        first, second = await asyncio.gather(ask("k" * 20), ask("k" * 20))
        assert first == second == await ask("k" * 20)
        assert executions(sandbox) == 1
        assert len({first, await ask("l" * 20), await ask(None), await ask(None)}) == 4
        short = await client.post("/v1/tool_calls", json=body, headers={"idempotency-key": "k"})
        assert (short.status_code, short.json()["error"]["param"]) == (400, "idempotency-key")


async def test_overload_is_an_http_error_because_nothing_was_run(open_gateway: OpenScripted) -> None:
    """With Retry-After, in OpenAI's shape; the same request works once there is room."""
    gateway, sandbox = await open_gateway(run_ok, max_sandboxes=1)
    kept = await gateway.session()
    body = [chat_call("a", "run_shell", command="x")]
    async with client_of(gateway) as client:
        refused = await client.post("/v1/tool_calls", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert refused.headers["retry-after"]
        assert sandbox.requests == []
        assert (await client.delete(f"/v1/sessions/{kept}")).status_code == 204
        assert await content(client, body) == "ok"


async def test_session_of_an_agent_has_no_tools(open_gateway: OpenScripted) -> None:
    """Its container has no picod, and the error says so."""
    key = RuntimeKey("default", "agent", Kind.AGENT_RUNTIME)
    agent = replace(default_runtime(1), key=key)
    gateway, _ = await open_gateway(run_ok, runtimes=[default_runtime(1), agent])
    session = (await gateway.gateway.lifecycle.create(key)).session.id
    async with client_of(gateway) as client:
        reply = await client.post(
            "/v1/tool_calls", json=[chat_call("a", "list_files")], headers={"x-session-id": session}
        )
        assert reply.status_code == 400
        assert "has no tools" in reply.json()["error"]["message"]


async def test_headers_and_body_that_name_two_sessions_are_refused(open_gateway: OpenScripted) -> None:
    """Rather than run in one of them."""
    gateway, _ = await open_gateway(run_ok)
    body = {"session_id": "a", "output": [item("x", "list_files")]}
    async with client_of(gateway) as client:
        reply = await client.post("/v1/tool_calls", json=body, headers={"x-session-id": "b"})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "session_id")


@pytest.mark.parametrize("shape", ["chat", "responses", "anthropic"])
async def test_reused_call_ids_run_anew_in_each_turn(open_gateway: OpenScripted, shape: str) -> None:
    """Models number their calls from call_0: an equal message after its answer is a new turn, in every shape."""
    gateway, sandbox = await open_gateway(commands(run_ok))
    session = await gateway.session()
    call = {
        "chat": {"tool_calls": [chat_call("call_0", "run_shell", command="date")]},
        "responses": {"output": [item("call_0", "run_shell", command="date")]},
        "anthropic": {"content": [tool_use("call_0", "run_shell", command="date")]},
    }[shape]
    async with client_of(gateway) as client:
        for count in range(1, 4):
            reply = await client.post("/v1/tool_calls", json={"session_id": session, **call})
            assert (reply.status_code, reply.json()["replayed"]) == (200, [])
            assert executions(sandbox) == count


async def test_idempotency_key_answers_its_message_alone(open_gateway: OpenScripted) -> None:
    """The same message is answered from memory also after other turns; another one under that key is refused, unrun."""
    gateway, sandbox = await open_gateway(commands(run_ok))
    session = await gateway.session()
    first, other = (
        {"session_id": session, "tool_calls": [chat_call("call_0", "run_shell", command=command)]}
        for command in ("date", "ls")
    )
    keyed = {"idempotency-key": "k" * 16}
    async with client_of(gateway) as client:
        assert (await client.post("/v1/tool_calls", json=first, headers=keyed)).json()["replayed"] == []
        assert (await client.post("/v1/tool_calls", json=other)).json()["replayed"] == []
        again = await client.post("/v1/tool_calls", json=first, headers=keyed)
        assert (again.json()["replayed"], again.headers["idempotency-replayed"]) == (["call_0"], "true")
        refused = await client.post("/v1/tool_calls", json=other, headers=keyed)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert executions(sandbox) == 2

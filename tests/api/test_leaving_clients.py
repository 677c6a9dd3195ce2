"""Clients that leave while their session is being made: no session is left that no client knows of."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import SessionState
from gateway.testing import ScriptedProvider
from tests.support.scripted import served
from tests.support.waiting import eventually

_CALL = {"id": "call_0", "type": "function", "function": {"name": "run_shell", "arguments": '{"command": "true"}'}}
_CLAIM = {
    "apiVersion": "extensions.agents.x-k8s.io/v1beta1",
    "kind": "SandboxClaim",
    "metadata": {"name": "mine"},
    "spec": {"warmPoolRef": {"name": "my-interpreter"}},
}
_FORM = (
    '--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\ncontent-type: text/plain\r\n\r\n'
    "text\r\n--b--\r\n"
)
# The line of a request and its body: as JSON, or a form.
CREATES: dict[str, tuple[str, dict[str, Any] | str]] = {
    "native": ("POST /v1/sessions", {"runtime": "default/my-interpreter"}),
    "agentcube": ("POST /v1/code-interpreter", {"namespace": "default", "name": "my-interpreter"}),
    "containers": ("POST /v1/containers", {"name": "mine"}),
    "one-shot run": ("POST /v1/run", {"command": "true"}),
    "data path": ("POST /v1/namespaces/default/code-interpreters/my-interpreter/invocations/api/execute", {}),
    "tool calls": ("POST /v1/tool_calls", {"tool_calls": [_CALL]}),
    "streamed tool calls": ("POST /v1/tool_calls", {"tool_calls": [_CALL], "stream": True}),
    "e2b": ("POST /v2/sandboxes", {"templateID": "base"}),
    "e2b, old": ("POST /sandboxes", {"templateID": "base"}),
    "jupyter kernel": ("POST /jupyter/api/kernels", {"name": "python3"}),
    "jupyter notebook": ("POST /jupyter/api/sessions", {"path": "a.ipynb", "name": "a", "type": "notebook"}),
    "agentscope": ("POST /agentscope/create", {"sandbox_type": "base"}),
    "agentscope, pool": ("POST /agentscope/create_from_pool", {"sandbox_type": "base"}),
    "agent-sandbox": (
        "POST /apis/extensions.agents.x-k8s.io/v1beta1/namespaces/default/sandboxclaims",
        _CLAIM,
    ),
    "dify": ("POST /v1/sandbox/run", {"language": "python3", "code": "1", "enable_network": False}),
    "librechat": ("POST /librechat/exec", {"lang": "py", "code": "1"}),
    "librechat upload": ("POST /librechat/upload", _FORM),
    "librechat batch": ("POST /librechat/upload/batch", _FORM),
}


@pytest.mark.parametrize("operation", CREATES)
@pytest.mark.parametrize("when", ["in the claim", "in the write"])
async def test_client_that_leaves_during_a_create_leaves_no_session(tmp_path: Path, operation: str, when: str) -> None:
    """During the cold start, or while the record is being written: sandbox and session are gone, nothing is counted."""
    provider = ScriptedProvider()
    async with served(tmp_path, provider) as gateway:
        sessions = gateway.gateway.sessions
        hold, reached = asyncio.Event(), asyncio.Event()
        if when == "in the claim":
            provider.hold = hold
        else:
            write = sessions.records.put

            async def slow_write(session):  # type: ignore[no-untyped-def]
                reached.set()
                await hold.wait()
                return await write(session)

            sessions.records.put = slow_write  # type: ignore[method-assign]
        line, fields = CREATES[operation]
        is_form = isinstance(fields, str)
        body = fields.encode() if isinstance(fields, str) else json.dumps(fields).encode()
        content_type = "multipart/form-data; boundary=b" if is_form else "application/json"
        client = await gateway.connect()
        client.writer.write(
            f"{line} HTTP/1.1\r\nhost: a\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await eventually(
            lambda: reached.is_set() or (when == "in the claim" and sessions.admission._claiming), "it is made"
        )
        client.abort()
        await asyncio.sleep(0.3)  # the gateway looks for clients that left ten times a second
        hold.set()
        await eventually(lambda: len(sessions.bindings) == 0, "no sandbox is bound")

        async def settled() -> bool:
            states = [each.state async for each in gateway.gateway.store.sessions()]
            bound = [each for each in await provider.list() if each.session_id is not None]
            return all(state is SessionState.TERMINATED for state in states) and not bound

        await eventually(settled, "the session ended, and its sandbox is gone")


async def test_client_that_stays_has_its_session(tmp_path: Path) -> None:
    """The watch for a client that leaves ends nothing else."""
    async with served(tmp_path, ScriptedProvider()) as gateway:
        body = json.dumps(CREATES["native"][1]).encode()
        reply = await gateway.ask(f"POST /v1/sessions HTTP/1.1\nhost: a\ncontent-length: {len(body)}", body)
        assert reply.status == 201
        states = [each.state async for each in gateway.gateway.store.sessions()]
        assert states == [SessionState.ACTIVE]

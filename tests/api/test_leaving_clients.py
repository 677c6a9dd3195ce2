"""Clients that leave while their session is being made: no session is left that no client knows of."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.core.model import SessionState
from gateway.testing import ScriptedProvider
from tests.support.scripted import served
from tests.support.waiting import eventually

CREATES = {
    "native": ("POST /v1/sessions", {"runtime": "default/my-interpreter"}),
    "agentcube": ("POST /v1/code-interpreter", {"namespace": "default", "name": "my-interpreter"}),
    "containers": ("POST /v1/containers", {"name": "mine"}),
    "one-shot run": ("POST /v1/run", {"command": "true"}),
    "data path": ("POST /v1/namespaces/default/code-interpreters/my-interpreter/invocations/api/execute", {}),
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
        body = json.dumps(fields).encode()
        client = await gateway.connect()
        client.writer.write(
            f"{line} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
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

"""The part of picod's API that tools use in one session: start a run, read and write files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import orjson

from gateway.api.sandbox_json import MAX_ANSWER_BYTES, parse_object
from gateway.api.tools.run_events import Progress, collect
from gateway.core.errors import UpstreamTimeoutError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId

MAX_RUN_BYTES = 48 << 20  # of a run's answer: picod keeps 10 MB of each stream and 16 MiB of results, here as JSON
MAX_REFUSAL_BYTES = 64 << 10
_JSON = {"content-type": "application/json"}
_WRITE_TIMEOUT_S = 600.0
_GRACE_S = 30.0  # on top of a command's own timeout, so that picod's timeout ends it and its answer arrives


class ToolSandbox:
    """Calls a session's picod. `progress` is called with output as it comes; None: no client wants it.

    With a `key`, picod executes the request at most once, and `replayed` tells whether it had executed it before. It
    keeps answers beside the session's files, so this also holds for retries through another gateway
    (picod/http/idempotency.py).
    """

    def __init__(
        self, caller: SandboxCaller, session_id: SessionId, progress: Progress | None = None, *, key: str = ""
    ) -> None:
        self._caller = caller
        self.session_id = session_id
        self._key = {"idempotency-key": key} if key else {}
        self.progress = progress
        self.replayed = False

    async def start(
        self, path: str, body: Mapping[str, Any], timeout: float, *, stream: bool = False
    ) -> SandboxReply | Mapping[str, Any]:
        """Run a command or code until it ends. Returns picod's answer, or its reply if that is an error.

        `stream`: read events even if no client wants progress, because they include the end of endless output.
        """
        limit = timeout + _GRACE_S
        if self.progress is None and not stream:
            reply = await self._caller.call(
                self.session_id,
                "POST",
                path,
                headers=_JSON | self._key,
                body=orjson.dumps(body),
                timeout=limit,
                limit=MAX_RUN_BYTES,
            )
            self._record_replay(reply)
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                return await collect(_chunks(reply.body), _ignore)  # the first attempt was streamed
            return await parse_object(reply.body) if reply.status == 200 else reply
        try:
            async with asyncio.timeout(limit):
                return await self._follow(path, orjson.dumps({**body, "stream": True}), self.progress or _ignore)
        except TimeoutError:
            raise UpstreamTimeoutError(f"the sandbox did not answer within {limit:g} s") from None

    async def _follow(self, path: str, body: bytes, progress: Progress) -> SandboxReply | Mapping[str, Any]:
        opened = self._caller.stream(self.session_id, "POST", path, headers=_JSON | self._key, body=body)
        async with opened as (reply, chunks):
            self._record_replay(reply)
            if reply.status == 200 and not reply.headers.get("content-type", "").startswith("application/json"):
                return await collect(chunks, progress)
            body = await _read(chunks, MAX_RUN_BYTES if reply.status == 200 else MAX_REFUSAL_BYTES)
            # Not a stream: a replay of an attempt that was not streamed, or an error.
            return await parse_object(body) if reply.status == 200 else replace(reply, body=body)

    def _record_replay(self, reply: SandboxReply) -> None:
        self.replayed = self.replayed or "idempotency-replayed" in reply.headers

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None, limit: int = MAX_ANSWER_BYTES
    ) -> SandboxReply:
        """Read an answer of at most `limit` bytes."""
        return await self._caller.call(self.session_id, "GET", path, headers=headers, limit=limit)

    async def put(self, path: str, body: bytes, *, once: bool = True) -> SandboxReply:
        """Write a file. `once`: send the key, which must not be used for a second request of the same call."""
        headers = self._key if once else {}
        reply = await self._caller.call(
            self.session_id, "PUT", path, headers=headers, body=body, timeout=_WRITE_TIMEOUT_S, limit=MAX_ANSWER_BYTES
        )
        if once:
            self._record_replay(reply)
        return reply


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _read(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    """Read at most `limit` bytes and drop the rest."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) >= limit:
            break
    return bytes(body[:limit])


async def _ignore(_: str, __: str) -> None:
    return None

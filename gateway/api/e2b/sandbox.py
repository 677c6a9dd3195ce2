"""One sandbox as the handlers of envd and of the code interpreter see it: requests to its picod."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.api.e2b.connect import ConnectError, from_status
from gateway.api.e2b.records import E2BRecord
from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, parse_object, text_of
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, SessionId

_MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class SandboxClient:
    """Sends requests to one session's picod, which wakes it if it sleeps."""

    session_id: SessionId
    record: E2BRecord
    caller: SandboxCaller

    async def call(self, method: str, target: str, body: Any = None) -> tuple[int, Mapping[str, Any]]:
        """A small request and its JSON answer: status and document. `body`: bytes as they are, anything else as JSON.

        Raises what SandboxCaller raises, and BadAnswerError.
        """
        data = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        reply = await self.caller.call(self.session_id, method, target, body=data, limit=MAX_ANSWER_BYTES)
        return reply.status, await parse_object(reply.body) if reply.body else {}

    async def require(self, method: str, target: str, body: Any = None) -> Mapping[str, Any]:
        """As `call`, for a request that should succeed. Raises ConnectError with picod's own message."""
        status, document = await self.call(method, target, body)
        if status >= 400:
            raise from_status(status, error_text(document, status))
        return document

    def stream(
        self,
        method: str,
        target: str,
        body: bytes | AsyncIterator[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[tuple[SandboxReply, AsyncIterator[bytes]]]:
        """A request whose answer is streamed."""
        return self.caller.stream(self.session_id, method, target, body=body, headers=headers)


def error_text(document: Mapping[str, Any], status: int) -> str:
    """The message of picod's error, bounded."""
    return text_of(document, "error", "")[:_MAX_ERROR_CHARS] or f"the sandbox answered {status}"


async def read_error(reply: SandboxReply, chunks: AsyncIterator[bytes]) -> ConnectError:
    """The error in an answer that was to be streamed."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:  # an error has no reason to be long, and its sender may be hostile
            break
    try:
        message = error_text(await parse_object(bytes(body)), reply.status)
    except BadAnswerError:
        message = f"the sandbox answered {reply.status}"  # an agent's own page of HTML, say
    return from_status(reply.status, message)

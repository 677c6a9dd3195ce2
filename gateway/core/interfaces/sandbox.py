"""The gateway's own requests to a sandbox."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.core.model import Readiness, Sandbox, SandboxReply, SessionId, SuspendReport


class Executor(Protocol):
    """The requests that the gateway itself sends to picod in a sandbox. Errors as for `WorkspaceKeeper.keep`."""

    def export(self, sandbox: Sandbox, session_id: SessionId) -> AsyncGenerator[bytes, None]:
        """The workspace as a stream, complete once it ends without an error."""
        ...

    async def fingerprint(self, sandbox: Sandbox, session_id: SessionId) -> str:
        """A text that stays the same while the workspace is unchanged; "" if the sandbox cannot tell."""
        ...

    async def restore(self, sandbox: Sandbox, session_id: SessionId, chunks: AsyncIterator[bytes]) -> None:
        """Replace the workspace by a stream that `export` produced. After an error the workspace is empty."""
        ...

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        """Have picod write its in-memory state into the workspace. Changes nothing else and may be repeated."""
        ...

    async def resume(self, sandbox: Sandbox, session_id: SessionId) -> None:
        """Tell picod that the workspace was restored, so that it loads the state `suspend` wrote."""
        ...

    async def busy(self, sandbox: Sandbox, session_id: SessionId) -> bool:
        """Whether the sandbox does work that no open request waits for, such as a background process."""
        ...


class SandboxCaller(Protocol):
    """Requests that the gateway itself sends to a session's sandbox; they wake it like a client's request.

    All raise SessionNotFoundError, the errors of the activator when no sandbox is ready in time (nothing was sent
    then), and UpstreamBrokenError when the connection breaks after something was sent. `path` is a percent-encoded
    request target.
    """

    def acknowledge(self, session_id: SessionId, restored: str) -> None:
        """Record that a client received `restored` (from a Readiness or SandboxReply), so that it is not sent again.

        Needed only by surfaces that report it in a body: a delivered x-wakegate-restored header counts by itself.
        """
        ...

    async def ready(self, session_id: SessionId) -> Readiness:
        """Make sure that the session has a live sandbox. Free if it has one already."""
        ...

    async def call(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
        timeout: float = 60.0,
        limit: int = 64 << 20,
    ) -> SandboxReply:
        """Send a request and read the whole response, at most `limit` bytes.

        Raises UpstreamTimeoutError after `timeout` seconds, and UpstreamBrokenError for a longer response; in both
        cases the connection is closed, and picod ends what the request started.
        """
        ...

    def stream(
        self,
        session_id: SessionId,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] = b"",
    ) -> AbstractAsyncContextManager[tuple[SandboxReply, AsyncIterator[bytes]]]:
        """Send a request and stream the response: its head, and its body as it arrives.

        Leaving the context early closes the connection, and picod ends what the request started.
        """
        ...

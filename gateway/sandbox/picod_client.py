"""What the gateway itself asks of picod: the workspace as a stream and back, and what is in memory into files.

The callers are the keeper of snapshots and the steps of sleep and wake. Users' requests take another way (routing/);
these are few, and each has a connection of its own, so that nothing of it stays at a sandbox. What answers is a
sandbox, so hostile: answers are read up to a bound, redirects are not followed, and nothing is decoded that may unfold.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import httpx
import orjson

from gateway.core.errors import (
    SnapshotCorruptError,
    SnapshotError,
    SnapshotUnsupportedError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
    WakegateError,
)
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Endpoint, Kind, Sandbox, SandboxId, SessionId, SuspendReport, Unsaved
from picod import wire

_MAX_ANSWER = 1 << 20  # bytes of an answer that is no snapshot
_EXPORT_RATE_BYTES = 64 << 10  # a second, the least of an export: 5 GiB take a day at most, not for ever
_MAX_ERROR_CHARS = 300  # characters of an error that picod gives and we pass on
_GONE = (ConnectionRefusedError, FileNotFoundError, ConnectionResetError)


class Tokens(Protocol):
    """What makes tokens for picod; gateway.sandbox.tokens.TokenIssuer does."""

    def issue(self, sandbox_id: SandboxId, session_id: SessionId) -> tuple[bytes, float]:
        """A token for that sandbox, and until when it may be used."""
        ...


class PicodExecutor:
    """The Executor over HTTP. One for a gateway; it holds nothing open between calls."""

    def __init__(
        self,
        catalog: RuntimeCatalog,
        tokens: Tokens,
        *,
        connect_timeout: float = 5.0,
        silence: float = 300.0,
        patience: float = 60.0,
    ) -> None:
        """`silence`: seconds that a sandbox may give or take no byte. picod bears a silence of ours as long.

        An export may be behind 64 KiB a second by as much, in all.
        `patience`: seconds that it may take over `suspend`, `resume` or `busy` in all, and over the words of its
        answer to a restore: a session waits for them to hibernate, and so does the sweep over all sessions.
        """
        self._patience, self._silence = patience, silence
        self._catalog = catalog
        self._tokens = tokens
        self._timeout = httpx.Timeout(silence, connect=connect_timeout)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used: made once, as httpx makes one per transport

    async def export(self, sandbox: Sandbox, session_id: SessionId) -> AsyncGenerator[bytes, None]:
        """See Executor. Raises SnapshotUnsupportedError, SnapshotError, and what a broken connection is."""
        async with self._call("GET", wire.SNAPSHOT_PATH, sandbox, session_id) as reply:
            if reply.status_code != 200:
                raise _refused(sandbox, "give its workspace", reply.status_code, await _error_text(reply))
            chunks = reply.aiter_raw()
            received, waited = 0, 0.0  # time that the sandbox took, not what the reader of this stream takes
            clock = asyncio.get_running_loop().time
            while True:
                began = clock()
                allowed = self._silence + received / _EXPORT_RATE_BYTES - waited
                async with _deadline(allowed, f"sandbox {sandbox.id} gives its workspace too slowly"):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                waited += clock() - began
                received += len(chunk)
                yield chunk

    async def restore(self, sandbox: Sandbox, session_id: SessionId, chunks: AsyncIterator[bytes]) -> None:
        """See Executor. Raises what `chunks` raises; SnapshotCorruptError for an archive that picod refuses."""
        # A warm sandbox may have written something of its own: the workspace is the session's alone, so it goes.
        path = wire.SNAPSHOT_PATH + "?replace=true"
        async with (
            self._call("PUT", path, sandbox, session_id, content=chunks) as reply,
            _deadline(self._patience, self._unanswered(sandbox, wire.SNAPSHOT_PATH)),
        ):
            said = await _error_text(reply)
        if reply.status_code == 400:
            raise SnapshotCorruptError(f"sandbox {sandbox.id} cannot unpack the snapshot: {_error(said)}")
        if reply.status_code != 200:
            raise _refused(sandbox, "take the workspace", reply.status_code, said)

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        """See Executor. A picod without that route has nothing to save."""
        status, said = await self._tell(wire.SUSPEND_PATH, sandbox, session_id)
        if status == 404:
            return SuspendReport()
        if status != 200:
            raise _refused(sandbox, "save what is in its memory", status, said)
        return _report(said)

    async def resume(self, sandbox: Sandbox, session_id: SessionId) -> None:
        """See Executor. A picod without that route has nothing to look for."""
        status, said = await self._tell(wire.RESUME_PATH, sandbox, session_id)
        if status not in (200, 204, 404):
            raise _refused(sandbox, "take up what was in memory", status, said)

    async def _tell(self, path: str, sandbox: Sandbox, session_id: SessionId) -> tuple[int, bytes]:
        """Status and body of a POST. Success in another form than JSON is not picod's: as if the route were missing.

        What stands in for picod may answer any path, and with a stream that does not end.
        """
        async with (
            _deadline(self._patience, self._unanswered(sandbox, path)),
            self._call("POST", path, sandbox, session_id) as reply,
        ):
            kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
            if reply.status_code == 200 and kind != "application/json":
                return 404, b""
            return reply.status_code, await _error_text(reply)

    def _unanswered(self, sandbox: Sandbox, path: str) -> str:
        return f"sandbox {sandbox.id} did not answer {path} within {self._patience:g} s"

    async def busy(self, sandbox: Sandbox, session_id: SessionId) -> bool:
        """Whether something runs there that no request waits for. A picod that cannot tell has nothing."""
        if sandbox.runtime.kind is Kind.AGENT_RUNTIME:
            return False  # it would be the agent that is asked
        async with (
            _deadline(self._patience, self._unanswered(sandbox, wire.ACTIVITY_PATH)),
            self._call("GET", wire.ACTIVITY_PATH, sandbox, session_id) as reply,
        ):
            said = await _error_text(reply)
        return reply.status_code == 200 and _json(said).get("busy") is True

    @asynccontextmanager
    async def _call(
        self, method: str, path: str, sandbox: Sandbox, session_id: SessionId, **request: Any
    ) -> AsyncGenerator[httpx.Response, None]:
        headers = {"accept-encoding": "identity"}
        runtime = self._catalog.get(sandbox.runtime)
        if runtime is None or runtime.auth:
            token, _ = self._tokens.issue(sandbox.id, session_id)
            headers["authorization"] = f"Bearer {token.decode('ascii')}"
        transport = httpx.AsyncHTTPTransport(uds=sandbox.endpoint.uds, verify=self._tls)
        with _translated(sandbox):
            async with (
                httpx.AsyncClient(transport=transport, timeout=self._timeout, trust_env=False) as client,
                client.stream(method, _origin(sandbox.endpoint) + path, headers=headers, **request) as reply,
            ):
                yield reply


def _origin(endpoint: Endpoint) -> str:
    if endpoint.uds is not None:
        return "http://picod"
    host = endpoint.host or ""
    return f"http://[{host}]:{endpoint.port}" if ":" in host else f"http://{host}:{endpoint.port}"


@asynccontextmanager
async def _deadline(seconds: float, error: str) -> AsyncIterator[None]:
    """Give up after `seconds` with UpstreamTimeoutError, however many bytes trickle in meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise UpstreamTimeoutError(error) from None


@contextmanager
def _translated(sandbox: Sandbox) -> Iterator[None]:
    """Say in our errors what httpx's mean."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise UpstreamConnectError(f"sandbox {sandbox.id} did not accept a connection in time") from error
    except httpx.ConnectError as error:
        raise UpstreamConnectError(f"sandbox {sandbox.id} cannot be reached: {error}", gone=_is_gone(error)) from error
    except httpx.TimeoutException as error:
        raise UpstreamTimeoutError(f"sandbox {sandbox.id} gave or took no byte for too long") from error
    except httpx.TransportError as error:
        raise UpstreamBrokenError(f"sandbox {sandbox.id} went away while it was asked: {error}") from error


def _is_gone(error: BaseException | None) -> bool:
    """Whether nobody listens there any more, which httpx knows only by its cause's cause."""
    while error is not None:
        if isinstance(error, _GONE):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _error_text(reply: httpx.Response) -> bytes:
    """The answer's body up to the bound, as it came."""
    said = bytearray()
    async for chunk in reply.aiter_raw():
        said += chunk
        if len(said) > _MAX_ANSWER:
            break
    return bytes(said[:_MAX_ANSWER])


def _json(said: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(said)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _error(said: bytes) -> str:
    """What picod gives as the reason, fit for one line of a log."""
    text = _json(said).get("error")
    text = text if isinstance(text, str) else said[: 4 * _MAX_ERROR_CHARS].decode("utf-8", "replace")
    return "".join(each if each.isprintable() else " " for each in text[:_MAX_ERROR_CHARS]).strip() or "no reason given"


def _refused(sandbox: Sandbox, what: str, status: int, said: bytes) -> WakegateError:
    if status in (404, 405, 501):
        return SnapshotUnsupportedError(
            f"sandbox {sandbox.id} of {sandbox.runtime} cannot {what}: its executor knows no snapshots; use an image"
            " with Wakegate's picod, or set spec.wakegate.hibernation to off"
        )
    if status == 401:
        return SnapshotError(
            f"sandbox {sandbox.id} refuses this gateway's token: {_error(said)}; it must see this gateway's key set"
        )
    return SnapshotError(f"sandbox {sandbox.id} cannot {what}: {_error(said)} (status {status})")


def _report(said: bytes) -> SuspendReport:
    """Read leniently: what a sandbox tells of its variables is for people, and no decision rests on it."""
    document = _json(said)
    saved, entries = document.get("saved"), document.get("unsaved")
    unsaved = tuple(
        Unsaved(*(str(entry.get(key, ""))[:_MAX_ERROR_CHARS] for key in ("context", "name", "reason")))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    )
    return SuspendReport(saved if isinstance(saved, int) else 0, unsaved)

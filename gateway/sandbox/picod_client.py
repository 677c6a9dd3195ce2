"""The gateway's own requests to picod: export and restore a workspace, suspend and resume in-memory state, ask if busy.

The callers are the snapshot keeper and the steps of hibernation and wake; users' requests go through routing/. These
requests are rare, so each opens a connection and closes it, and no idle connection keeps a sandbox's descriptor.

The peer is a sandbox and therefore hostile: responses are read up to a bound, redirects are not followed, and no
content encoding is decoded, which rules out compression bombs.
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
    SnapshotStoreFullError,
    SnapshotUnsupportedError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
    WakegateError,
)
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Endpoint, Kind, Sandbox, SandboxId, SessionId, SuspendReport, Unsaved
from picod import wire

_MAX_ANSWER_BYTES = 1 << 20  # of a response that is not a snapshot
# Slow enough for a loaded disk, and fast enough that an export which drips a byte each 20 s ends.
_MIN_EXPORT_RATE_BYTES = 64 << 10  # per second: at this rate 5 GiB, the default workspace limit, take 23 hours
_MAX_FINGERPRINT_CHARS = 64
_MAX_ERROR_CHARS = 300  # of picod's error text in ours
_NO_LISTENER = (ConnectionRefusedError, FileNotFoundError, ConnectionResetError)


class Tokens(Protocol):
    """Issues tokens for picod, as gateway.sandbox.tokens.TokenIssuer does."""

    def issue(self, sandbox_id: SandboxId, session_id: SessionId) -> tuple[bytes, float]:
        """A token for that sandbox, and the epoch second until which it may be used."""
        ...


class PicodExecutor:
    """An Executor over HTTP. One per gateway; it keeps no connection open between calls."""

    def __init__(
        self,
        catalog: RuntimeCatalog,
        tokens: Tokens,
        *,
        connect_timeout: float = 5.0,
        idle_timeout: float = 300.0,
        answer_timeout: float = 60.0,
    ) -> None:
        """All timeouts are seconds.

        `idle_timeout`: how long a sandbox may send or accept no byte; picod's own idle timeout is as long. It is also
        how far an export may fall behind 64 KiB per second in total.
        `answer_timeout`: how long `suspend`, `resume`, `busy` and the response to a restore may take in total. The
        sweep over all sessions waits for them, so one sandbox that sends a byte a minute must not hold it up.
        """
        self._answer_timeout, self._idle_timeout = answer_timeout, idle_timeout
        self._catalog = catalog
        self._tokens = tokens
        self._timeout = httpx.Timeout(idle_timeout, connect=connect_timeout)
        # Never used: all requests are plain HTTP. Without it httpx loads the CA bundle for each transport, 17 ms.
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    async def export(self, sandbox: Sandbox, session_id: SessionId) -> AsyncGenerator[bytes, None]:
        """Stream the workspace. Raises SnapshotUnsupportedError, SnapshotError, and the errors of a connection."""
        async with self._call("GET", wire.SNAPSHOT_PATH, sandbox, session_id) as reply:
            if reply.status_code != 200:
                raise _refused(sandbox, "export its workspace", reply.status_code, await _read_bounded(reply))
            chunks = reply.aiter_raw()
            received, waited = 0, 0.0  # only the time spent waiting for the sandbox, not that of this stream's reader
            clock = asyncio.get_running_loop().time
            while True:
                began = clock()
                # An idle timeout alone would let a sandbox that sends a byte every 299 s run for ever. Example: after
                # 64 MiB received, 300 + 1024 s may have been spent waiting.
                allowed = self._idle_timeout + received / _MIN_EXPORT_RATE_BYTES - waited
                async with _deadline(allowed, f"sandbox {sandbox.id} exports its workspace too slowly"):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                waited += clock() - began
                received += len(chunk)
                yield chunk

    async def fingerprint(self, sandbox: Sandbox, session_id: SessionId) -> str:
        """Ask for the workspace's fingerprint. "" from an executor without that route, or that answers nonsense."""
        path = wire.FINGERPRINT_PATH
        async with (
            _deadline(self._answer_timeout, self._unanswered(sandbox, path)),
            self._call("GET", path, sandbox, session_id) as reply,
        ):
            body = await _read_bounded(reply)
        # "" rather than a guess: without one the workspace is exported again, which costs time and loses nothing.
        text = _json(body).get("fingerprint") if reply.status_code == 200 else ""
        return text if isinstance(text, str) and len(text) <= _MAX_FINGERPRINT_CHARS else ""

    async def restore(self, sandbox: Sandbox, session_id: SessionId, chunks: AsyncIterator[bytes]) -> None:
        """Replace the workspace. Raises what `chunks` raises, and SnapshotCorruptError if picod rejects the archive."""
        # `replace`: a warm sandbox may have written files before it was claimed, which are not the session's.
        path = wire.SNAPSHOT_PATH + "?replace=true"
        async with (
            self._call("PUT", path, sandbox, session_id, content=chunks) as reply,
            _deadline(self._answer_timeout, self._unanswered(sandbox, wire.SNAPSHOT_PATH)),
        ):
            body = await _read_bounded(reply)
        if reply.status_code == 400:
            raise SnapshotCorruptError(f"sandbox {sandbox.id} cannot unpack the snapshot: {_error(body)}")
        if reply.status_code == 507:
            raise SnapshotStoreFullError(f"sandbox {sandbox.id} cannot import the workspace: {_error(body)}")
        if reply.status_code != 200:
            raise _refused(sandbox, "import the workspace", reply.status_code, body)

    async def bring(self, sandbox: Sandbox, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Send a pod that waits for an agent's files the archive of that digest. Raises what `chunks` raises."""
        path = wire.CODE_PATH + digest
        async with (
            self._call("PUT", path, sandbox, SessionId(""), always_signed=True, content=chunks) as reply,
            _deadline(self._answer_timeout, self._unanswered(sandbox, wire.CODE_PATH)),
        ):
            body = await _read_bounded(reply)
        if reply.status_code != 200:
            raise UpstreamBrokenError(f"sandbox {sandbox.id} does not take {digest}: {_error(body)}")

    async def suspend(self, sandbox: Sandbox, session_id: SessionId) -> SuspendReport:
        """Save in-memory state into the workspace. An executor without that route has nothing to save."""
        status, body = await self._post(wire.SUSPEND_PATH, sandbox, session_id)
        if status == 404:
            return SuspendReport()
        if status != 200:
            raise _refused(sandbox, "save its in-memory state", status, body)
        return _report(body)

    async def resume(self, sandbox: Sandbox, session_id: SessionId) -> None:
        """Load the state that `suspend` saved. An executor without that route has nothing to load."""
        status, body = await self._post(wire.RESUME_PATH, sandbox, session_id)
        if status not in (200, 204, 404):
            raise _refused(sandbox, "load its in-memory state", status, body)

    async def tell_egress(self, sandbox: Sandbox, session_id: SessionId, address: str, token: str) -> None:
        """Tell picod in a pod where the egress service is, and what to say there. Raises UpstreamError and the like."""
        body = orjson.dumps({"address": address, "token": token})
        async with (
            _deadline(self._answer_timeout, self._unanswered(sandbox, wire.EGRESS_PATH)),
            self._call("PUT", wire.EGRESS_PATH, sandbox, session_id, content=body) as reply,
        ):
            answer = await _read_bounded(reply)
        if reply.status_code != 200:
            raise UpstreamBrokenError(
                f"sandbox {sandbox.id} does not take the address of the egress service: {_error(answer)}"
            )

    async def _post(self, path: str, sandbox: Sandbox, session_id: SessionId) -> tuple[int, bytes]:
        """Status and body of a POST. A 200 that is not JSON counts as 404: picod did not send it.

        An image with another server in picod's place may answer any path, even with a stream that never ends.
        """
        async with (
            _deadline(self._answer_timeout, self._unanswered(sandbox, path)),
            self._call("POST", path, sandbox, session_id) as reply,
        ):
            kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
            if reply.status_code == 200 and kind != "application/json":
                return 404, b""
            return reply.status_code, await _read_bounded(reply)

    def _unanswered(self, sandbox: Sandbox, path: str) -> str:
        return f"sandbox {sandbox.id} did not answer {path} within {self._answer_timeout:g} s"

    async def busy(self, sandbox: Sandbox, session_id: SessionId) -> bool:
        """Whether work runs that no open request waits for. False for an executor without that route."""
        if sandbox.runtime.kind is Kind.AGENT_RUNTIME:
            return False  # the request would reach the agent, which has its own routes
        async with (
            _deadline(self._answer_timeout, self._unanswered(sandbox, wire.ACTIVITY_PATH)),
            self._call("GET", wire.ACTIVITY_PATH, sandbox, session_id) as reply,
        ):
            body = await _read_bounded(reply)
        return reply.status_code == 200 and _json(body).get("busy") is True

    @asynccontextmanager
    async def _call(
        self,
        method: str,
        path: str,
        sandbox: Sandbox,
        session_id: SessionId,
        *,
        always_signed: bool = False,
        **request: Any,
    ) -> AsyncGenerator[httpx.Response, None]:
        headers = {"accept-encoding": "identity"}
        runtime = self._catalog.get(sandbox.runtime)
        if always_signed or runtime is None or runtime.auth:
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
    """Raise UpstreamTimeoutError after `seconds`, even while bytes still arrive."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise UpstreamTimeoutError(error) from None


@contextmanager
def _translated(sandbox: Sandbox) -> Iterator[None]:
    """Map httpx's exceptions to the gateway's."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise UpstreamConnectError(f"sandbox {sandbox.id} did not accept a connection in time") from error
    except httpx.ConnectError as error:
        raise UpstreamConnectError(
            f"sandbox {sandbox.id} cannot be reached: {error}", no_listener=_has_no_listener(error)
        ) from error
    except httpx.TimeoutException as error:
        raise UpstreamTimeoutError(f"sandbox {sandbox.id} hit the idle timeout") from error
    except httpx.TransportError as error:
        raise UpstreamBrokenError(f"sandbox {sandbox.id} closed the connection mid-request: {error}") from error


def _has_no_listener(error: BaseException | None) -> bool:
    """Whether the endpoint refused the connection or does not exist. httpx keeps that only in the chain of causes."""
    while error is not None:
        if isinstance(error, _NO_LISTENER):
            return True
        error = error.__cause__ or error.__context__
    return False


async def _read_bounded(reply: httpx.Response) -> bytes:
    """The first `_MAX_ANSWER_BYTES` of a response's body, undecoded."""
    body = bytearray()
    async for chunk in reply.aiter_raw():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            break
    return bytes(body[:_MAX_ANSWER_BYTES])


def _json(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _error(body: bytes) -> str:
    """The error text of a response, truncated and printable, so that a sandbox cannot forge log lines."""
    text = _json(body).get("error")
    # A UTF-8 character has up to four bytes.
    text = text if isinstance(text, str) else body[: 4 * _MAX_ERROR_CHARS].decode("utf-8", "replace")
    return "".join(each if each.isprintable() else " " for each in text[:_MAX_ERROR_CHARS]).strip() or "no reason given"


def _refused(sandbox: Sandbox, what: str, status: int, body: bytes) -> WakegateError:
    if status in (404, 405, 501):
        return SnapshotUnsupportedError(
            f"sandbox {sandbox.id} of {sandbox.runtime} cannot {what}: its executor does not support snapshots; use an"
            " image with Wakegate's picod, or set spec.wakegate.hibernation to off"
        )
    if status == 401:
        return SnapshotError(
            f"sandbox {sandbox.id} rejects this gateway's token: {_error(body)}; it needs this gateway's key set"
        )
    return SnapshotError(f"sandbox {sandbox.id} cannot {what}: {_error(body)} (status {status})")


def _report(body: bytes) -> SuspendReport:
    """Parse leniently: the list of unsaved variables is shown to people, and no decision depends on it."""
    document = _json(body)
    saved, entries = document.get("saved"), document.get("unsaved")
    unsaved = tuple(
        Unsaved(*(str(entry.get(key, ""))[:_MAX_ERROR_CHARS] for key in ("context", "name", "reason")))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
    )
    return SuspendReport(saved if isinstance(saved, int) else 0, unsaved)

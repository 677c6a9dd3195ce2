"""Streams a file out of a sandbox, for all surfaces that have files."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.errors import ErrorShape, error_response
from gateway.api.http import session_headers
from gateway.api.loss_report import current_loss_report
from gateway.core.errors import WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId

_FORWARDED_HEADERS = ("content-type", "content-length", "content-range", "accept-ranges", "etag", "last-modified")


class Download(Response):
    """Streams a file out of the sandbox, and releases the sandbox's connection also when the client leaves.

    `path` is relative to the workspace; with `root="system"` it is an absolute path of the sandbox. `asked` are header
    fields of the request to picod. `absent` is the error for what is no file; `shape` is that of errors.
    `content_type` stands for picod's guess by the name.
    """

    def __init__(
        self,
        caller: SandboxCaller,
        session_id: SessionId,
        path: str,
        asked: Mapping[str, str],
        absent: WakegateError,
        *,
        shape: ErrorShape,
        content_type: str = "",
        root: str = "workspace",
    ) -> None:
        super().__init__()
        self._caller = caller
        self._session_id = session_id
        self._target = f"/api/files/{quote(path.lstrip('/'))}?root={root}"
        self._name = path.rpartition("/")[2]
        self._asked = asked
        self._absent = absent
        self._shape = shape
        self._content_type = content_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or an error as long as nothing has been sent. Raises WakegateError after that."""
        started = False
        try:
            opened = self._caller.stream(self._session_id, "GET", self._target, headers=self._asked)
            async with opened as (reply, chunks):
                # All four are answers about a file that exists; 416 has its size, from which a client goes on.
                if reply.status not in (200, 206, 304, 416):
                    raise self._absent
                fields = {name: reply.headers[name] for name in _FORWARDED_HEADERS if name in reply.headers}
                if self._content_type:
                    fields["content-type"] = self._content_type
                fields |= {**session_headers(self._session_id), **_download_headers(self._name)}
                # Not by `answering_errors`: the handler has returned before the sandbox was called.
                fields |= current_loss_report().headers()
                headers = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
                started = True
                await send({"type": "http.response.start", "status": reply.status, "headers": headers})
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except WakegateError as error:
            if started:
                raise  # the status is sent already; closing the connection shows the client that the body is incomplete
            response = error_response(error, self._shape)
            response.headers.update(current_loss_report().headers())
            await response(scope, receive, send)


def _download_headers(name: str) -> dict[str, str]:
    """Headers that prevent a file from running as a page of this gateway: code in a sandbox can write any HTML.

    `attachment` makes browsers save it. Where one renders it nevertheless (a frame, a plug-in), `sandbox` gives it an
    opaque origin and no scripts. The name is encoded by RFC 6266 and RFC 8187.
    """
    return {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
    }

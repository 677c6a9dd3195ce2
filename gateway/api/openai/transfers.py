"""Bytes of container files on their way in and out: multipart uploads, and downloads as streams."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.errors import ErrorShape, ParamError, error_response
from gateway.api.http import read_chunks, session_headers
from gateway.api.loss_report import current_loss_report
from gateway.core.errors import BadRequestError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId

MAX_UPLOAD_BYTES = 512 << 20  # the limit of OpenAI's Containers API
_FORWARDED_HEADERS = ("content-type", "content-length", "content-range", "accept-ranges", "etag", "last-modified")


class Download(Response):
    """Streams a file out of the sandbox, and releases the sandbox's connection also when the client leaves.

    `absent` is the error for a file that does not exist.
    """

    def __init__(
        self, caller: SandboxCaller, session_id: SessionId, path: str, asked: Mapping[str, str], absent: WakegateError
    ) -> None:
        super().__init__()
        self._caller = caller
        self._session_id = session_id
        self._target = f"/api/files/{quote(path)}"
        self._name = path.rpartition("/")[2]
        self._asked = asked
        self._absent = absent

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
            response = error_response(error, ErrorShape.OPENAI)
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


async def read_upload(request: Request) -> UploadFile:
    """Read the `file` of a multipart form; a large one goes to a temporary file.

    Raises ParamError, BadRequestError, TooLargeError, RequestTimeoutError.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise ParamError("file", "missing; send the file itself, as multipart/form-data (there is no Files API here)")
    try:
        # One file and a few fields: a form of a million tiny parts would be parsed for minutes.
        body = read_chunks(request, MAX_UPLOAD_BYTES)
        form = await MultiPartParser(request.headers, body, max_files=1, max_fields=16).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise BadRequestError(f"the body is not a multipart form: {getattr(error, 'message', error)}") from None
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise ParamError("file", "missing; expected a part with that name and a file name")
    return upload

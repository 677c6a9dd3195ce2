"""POST and PUT /api/files: write one file, from JSON, a form or the raw body."""

from __future__ import annotations

import asyncio
import binascii
import re
from typing import TYPE_CHECKING

from picod.files.listing import decode_path
from picod.files.staging import INLINE_BYTES, finish, flush, open_place, parse_mode, stage
from picod.http.json_fields import missing, parse_object, text_field
from picod.http.request import Request, RequestError

if TYPE_CHECKING:
    from picod.files.services import FileServices

_STRUCT = "UploadFileRequest"
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")


def decode_base64(text: str) -> bytes:
    """Decode standard base64 with padding; line ends are ignored. Raises RequestError 400 with the first bad index."""
    try:
        return binascii.a2b_base64(text.replace("\r", "").replace("\n", "").encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        # Go's decoder names the position, and clients show it.
        fault = _NOT_BASE64.search(text.rstrip("=\r\n"))
        where = fault.start() if fault else len(text)
        raise RequestError(400, f"Invalid base64 content: illegal base64 data at input byte {where}") from error


async def upload(services: FileServices, request: Request) -> None:
    """POST /api/files: a form with a file part, or JSON with base64."""
    if request.header(b"content-type").lower().startswith("multipart/form-data"):
        from picod.files.upload_form import upload_form

        await upload_form(services, request)
    else:
        await _upload_json(services, request)


async def _upload_json(services: FileServices, request: Request) -> None:
    body = await request.body(services.config.max_body)
    # Parsing the largest body, 32 MiB, takes more than a tenth of a second: too long for the loop.
    if len(body) <= INLINE_BYTES:
        path, content, mode = _parse_upload(body)
    else:
        path, content, mode = await asyncio.to_thread(_parse_upload, body)
    del body  # otherwise it would be held beside the content while the file is written
    with open_place(services.tree(request), path) as place, stage(place.dir_fd, path) as staged:
        staged.add(content)
        del content
        await finish(request, staged, place, mode)


def _parse_upload(body: bytes) -> tuple[str, bytes, int]:
    fields = parse_object(body, _STRUCT)
    path, content = text_field(fields, _STRUCT, "path"), text_field(fields, _STRUCT, "content")
    mode = text_field(fields, _STRUCT, "mode")
    if not path:
        raise missing(_STRUCT, "path")
    if content is None:
        raise missing(_STRUCT, "content")
    return path, decode_base64(content), parse_mode(mode)


async def upload_raw(services: FileServices, request: Request) -> None:
    """PUT /api/files/{path}: the body is the file; `?mode=` as in the other forms."""
    path, mode = decode_path(request.tail), parse_mode(request.query("mode"))
    with open_place(services.tree(request), path) as place, stage(place.dir_fd, path) as staged:
        async for chunk in request.chunks():
            if staged.add(chunk):
                await flush(staged, path)
        await finish(request, staged, place, mode)

"""Bytes of container files on their way in: multipart uploads. Downloads are `api/downloads`."""

from __future__ import annotations

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from gateway.api.errors import ParamError
from gateway.api.http import read_chunks
from gateway.core.errors import BadRequestError

MAX_UPLOAD_BYTES = 512 << 20  # the limit of OpenAI's Containers API


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

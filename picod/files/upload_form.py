"""The form of an upload: fields `path` and `mode`, and the part `file`, which is streamed to disk.

`path` may come after the file. Then the file is staged in the workspace's root and moved into place at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from picod.files.staging import Staged, finish, flush, open_place, parse_mode, stage
from picod.filesystem.paths import Place
from picod.http.request import Request, RequestError

if TYPE_CHECKING:
    from picod.files.services import FileServices

_MAX_FIELD_BYTES = 64 << 10
_FIELDS = (b"path", b"mode")


async def upload_form(services: FileServices, request: Request) -> None:
    """Parse the form and write its file. Raises RequestError, ClientGoneError."""
    _, options = parse_options_header(request.header(b"content-type"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(400, "no multipart boundary param in Content-Type")
    with _Form(services, boundary) as form:
        async for chunk in request.chunks():
            if form.feed(chunk):
                assert form.staged is not None
                await flush(form.staged, form.fields.get(b"path", b"").decode("utf-8", "replace"))
        staged, place = form.complete()
        await finish(request, staged, place, parse_mode(form.fields.get(b"mode", b"").decode("latin-1")))


class _Form:
    """The part of the form that has arrived. Leaving the context removes a file that is not in place."""

    def __init__(self, services: FileServices, boundary: bytes) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.place: Place | None = None
        self.staged: Staged | None = None
        self._services = services
        self._ended = False
        self._header = b""
        self._value = b""
        self._disposition: dict[bytes, bytes] = {}
        self._sink: bytearray | Staged | None = None  # where the present part goes; None: it is skipped
        self._full = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:  # for example a boundary longer than the 70 characters of RFC 2046
            raise RequestError(400, f"Failed to parse multipart form: {error}") from error

    def feed(self, chunk: bytes) -> bool:
        """Parse a piece of the body. Returns whether to flush the staged file. Raises RequestError."""
        self._full = False
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise RequestError(400, f"Failed to parse multipart form: {error}") from error
        return self._full

    def complete(self) -> tuple[Staged, Place]:
        """The staged file and its target, after the whole body. Raises RequestError for what is missing."""
        if not self._ended:
            raise RequestError(400, "Failed to parse multipart form: unexpected end, the closing boundary is missing")
        if not self.fields.get(b"path"):
            raise RequestError(400, "Missing 'path' field")
        if self.staged is None:
            raise RequestError(400, "Failed to get file: http: no such file")
        if self.place is None:
            self.place = self._open_place()
        return self.staged, self.place

    def __enter__(self) -> _Form:
        return self

    def __exit__(self, *_: object) -> None:
        if self.staged is not None:
            self.staged.__exit__(None, None, None)
        if self.place is not None:
            self.place.close()

    def _open_place(self) -> Place:
        try:
            return open_place(self._services.workspace, self.fields[b"path"].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise RequestError(400, "the path is not valid UTF-8") from error

    # Called by the parser.

    def _part_begin(self) -> None:
        self._disposition = {}
        self._header = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]  # in pieces, wherever the body was cut

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = parse_options_header(self._value)[1]
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        name = self._disposition.get(b"name", b"")
        self._sink = None
        # A part with a filename is a file (RFC 7578 4.2), one without is a field, whatever their names are.
        if b"filename" in self._disposition:
            if name == b"file" and self.staged is None:
                self._sink = self.staged = self._stage()
        elif name in _FIELDS and name not in self.fields:  # the first of two counts, as in Go's FormValue
            self._sink = bytearray()

    def _stage(self) -> Staged:
        if self.fields.get(b"path"):
            self.place = self._open_place()
            return stage(self.place.dir_fd, self.place.path)
        return stage(self._services.workspace.fd, ".")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if isinstance(self._sink, bytearray):
            self._sink += data[start:end]
            if len(self._sink) > _MAX_FIELD_BYTES:
                raise RequestError(
                    400, f"Failed to parse multipart form: a field has more than {_MAX_FIELD_BYTES} bytes"
                )
        elif self._sink is not None:
            self._full = self._sink.add(memoryview(data)[start:end])

    def _part_end(self) -> None:
        if isinstance(self._sink, bytearray):
            self.fields[self._disposition[b"name"]] = bytes(self._sink)
        self._sink = None

    def _end(self) -> None:
        self._ended = True

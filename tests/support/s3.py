"""An S3 server small enough to read: what the object store's driver asks of one, over real HTTP, in memory.

Objects, ranges, multipart uploads and paged lists of one bucket; no signatures are checked. `fault` decides which
requests fail. Source: the S3 API reference (PutObject, UploadPart, CompleteMultipartUpload, GetObject,
DeleteObjects, ListObjectsV2).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

import uvicorn

Fault = Callable[[str, dict[str, list[str]]], Awaitable[bool]]
BUCKET = "/bucket/"


class Objects:
    """The app and what it keeps."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.fault: Fault | None = None  # (method, query) -> whether to answer 500, or to cut an object in its middle
        self._ids = itertools.count(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        query = parse_qs(scope["query_string"].decode(), keep_blank_values=True)
        key = unquote(scope["path"])[len(BUCKET) :]
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        breaks = self.fault is not None and await self.fault(scope["method"], query)
        if breaks and (scope["method"] != "GET" or "list-type" in query):
            raise ConnectionError("refused on purpose")  # uvicorn answers 500
        status, answer, fields = self._answer(scope["method"], key, query, bytes(body))
        ranges = dict(scope["headers"]).get(b"range", b"").removeprefix(b"bytes=").split(b"-")
        if len(ranges) == 2 and status == 200:
            start, size = int(ranges[0]), len(answer)
            answer = answer[start : int(ranges[1] or size) + 1]
            fields.append((b"content-range", b"bytes %d-%d/%d" % (start, start + len(answer) - 1, size)))
            status = 206
        headers = [(b"content-length", b"%d" % len(answer)), *fields]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if breaks:
            await send({"type": "http.response.body", "body": answer[: len(answer) // 2], "more_body": True})
            raise ConnectionError("broken off on purpose")  # uvicorn closes the connection
        await send({"type": "http.response.body", "body": answer})

    def _answer(
        self, method: str, key: str, query: dict[str, list[str]], body: bytes
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        upload = query.get("uploadId", [""])[0]
        match method:
            case "POST" if "uploads" in query:
                upload = f"upload-{next(self._ids)}"
                self.uploads[upload] = {}
                return 200, _xml("InitiateMultipartUploadResult", UploadId=upload), []
            case "PUT" if upload:
                self.uploads[upload][int(query["partNumber"][0])] = body
                return 200, b"", [_etag(body)]
            case "POST" if upload:
                parts = self.uploads.pop(upload)
                assert re.findall(rb"<PartNumber>(\d+)<", body) == [b"%d" % number for number in sorted(parts)]
                self.objects[key] = b"".join(parts[number] for number in sorted(parts))
                return 200, _xml("CompleteMultipartUploadResult", ETag='"x"'), []
            case "DELETE" if upload:
                self.uploads.pop(upload, None)
                return 204, b"", []
            case "POST" if "delete" in query:
                keys = [unquote(found.decode()) for found in re.findall(rb"<Key>(.*?)</Key>", body)]
                for each in keys:
                    self.objects.pop(each, None)
                return 200, b"<DeleteResult>%s</DeleteResult>" % b"".join(_xml("Deleted", Key=k) for k in keys), []
            case "GET" if "list-type" in query:
                return 200, self._list(query), []
            case "GET" if key in self.objects:
                data = self.objects[key]
                return 200, data, [_etag(data), (b"last-modified", formatdate(usegmt=True).encode())]
        return 404, _xml("Error", Code="NoSuchKey", Message="The specified key does not exist."), []

    def _list(self, query: dict[str, list[str]]) -> bytes:
        """Answer ListObjectsV2 with two keys per page, so that clients have to page."""
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        more = len(keys) > 2
        items = b"".join(
            _xml(
                "Contents",
                Key=key,
                Size=str(len(self.objects[key])),
                LastModified="2026-01-02T03:04:05.000Z",
                ETag='"x"',
            )
            for key in keys[:2]
        )
        told = _xml("IsTruncated", "true" if more else "false")
        token = _xml("NextContinuationToken", keys[1]) if more else b""
        return b"<ListBucketResult>%s%s%s</ListBucketResult>" % (told, token, items)


def _xml(tag: str, text: str = "", **fields: str) -> bytes:
    inner = escape(text).encode() + b"".join(_xml(name, value) for name, value in fields.items())
    return b"<%s>%s</%s>" % (tag.encode(), inner, tag.encode())


def _etag(data: bytes) -> tuple[bytes, bytes]:
    return b"etag", f'"{hashlib.md5(data).hexdigest()}"'.encode()


@asynccontextmanager
async def s3() -> AsyncIterator[tuple[Objects, str]]:
    """A server that runs, and its URL."""
    objects = Objects()
    config = uvicorn.Config(objects, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield objects, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving

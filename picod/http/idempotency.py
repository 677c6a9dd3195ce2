"""Requests with an Idempotency-Key: asked again with the same key, they are not run again but answered the same.

Above app.py's routes: a handler runs here in a task of its own, so that it outlives a client that leaves, and its
answer is written down before it is sent. It lies in the workspace, so it sleeps, wakes, and survives a gateway that is
killed, as the files do that the request made; a session that comes back from an older snapshot has forgotten both.

A file is made when a request begins, and filled when it has ended: one that is empty is of a request that ended with
its sandbox, and whose asker can only be told so. The session's own code may write there what it likes; that is its
own loss.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from picod.filesystem.paths import PathError, Place, Workspace
from picod.http.request import ClientGoneError, Request, RequestError, to_json

FOLDER = ".wakegate/answers"
KEEP_S = 600.0
MAX_ANSWER = 16 << 20  # bytes of one answer that is kept; of a larger one only that it was given
_MAX_ALL = 64 << 20
_MAX_FILES = 256
_TIDY_EVERY = 32  # requests
_LARGE = 1 << 20  # bytes of an answer after which the folder is looked at again
_MAX_KEY = 256  # characters
_REPLAYED = (b"idempotency-replayed", b"true")


Handler = Callable[[Request], Awaitable[None]]


class _Answering:
    """One request under way: its answer as far as it is there, and the client that asked first, while it stays."""

    def __init__(self, digest: str, client: Request) -> None:
        self.digest = digest
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.size = 0
        self.complete = False
        self.client: Request | None = client
        self.task: asyncio.Task[None]

    def record(self, message: MutableMapping[str, Any]) -> None:
        """A piece of the answer, as ASGI's send has it."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.size += len(message["body"])
            self.complete = not message.get("more_body", False)
            if self.size <= MAX_ANSWER:
                self.body += message["body"]

    async def pass_on(self, message: MutableMapping[str, Any]) -> None:
        """To the first client, at its pace; one that has left may ask for all of it again."""
        client = self.client
        if client is None:
            return
        try:
            if message["type"] == "http.response.start":
                await client.start(message["status"], message["headers"])
            else:
                await client.write(message["body"], more=message.get("more_body", False))
        except ClientGoneError:
            self.client = None


class IdempotentRequests:
    """The requests with a key of one picod. On the loop's thread only."""

    def __init__(self, workspace: Workspace, max_body: int) -> None:
        self._workspace = workspace
        self._max_body = max_body
        self._running: dict[str, _Answering] = {}
        self._begun = 0

    @property
    def unattended(self) -> int:
        """How many run on although their client has left."""
        return sum(answering.client is None for answering in self._running.values())

    async def run(self, request: Request, handler: Handler, key: str) -> None:
        """Answer a request that has a key. Raises RequestError, ClientGoneError."""
        if len(key) > _MAX_KEY:
            raise RequestError(400, f"Idempotency-Key may have {_MAX_KEY} characters at most")
        body = await request.body(self._max_body)
        name, digest = hashlib.blake2b(key.encode("latin-1"), digest_size=16).hexdigest(), _digest(request, body)
        answering = self._running.get(name)
        if answering is None:
            kept = self._read(name)
            if kept is not None:
                await _replay(request, kept, digest)
                return
            answering = self._begin(request, handler, name, digest, body)
        await _finished(request, answering)
        if answering.client is request:
            if not answering.complete:
                raise ClientGoneError  # a fault of ours amid the answer: it must not pass for a whole one
            return
        _check(answering.digest, digest)
        if not answering.complete:
            raise _interrupted()
        if answering.size > MAX_ANSWER:
            raise _too_large(answering.size)
        await request.start(answering.status, (*answering.headers, _REPLAYED))
        await request.write(bytes(answering.body), more=False)

    def _begin(
        self,
        request: Request,
        handler: Handler,
        name: str,
        digest: str,
        body: bytes,
    ) -> _Answering:
        if self._begun % _TIDY_EVERY == 0:
            self._tidy()
        self._begun += 1
        self._write(name, digest, None)
        answering = self._running[name] = _Answering(digest, request)
        answering.task = asyncio.get_running_loop().create_task(self._answer(request, handler, name, answering, body))
        return answering

    async def _answer(
        self,
        request: Request,
        handler: Handler,
        name: str,
        answering: _Answering,
        body: bytes,
    ) -> None:
        inner = Request(request.scope, _body_only(body), self._sender(name, answering), request.tail)
        try:
            await handler(inner)
        except RequestError as error:
            if not inner.started:
                await inner.answer_json(error.status, error.body)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not inner.started:
                await inner.answer_json(
                    500, {"code": 500, "error": "internal error; the sandbox's log has the details"}
                )
        finally:
            del self._running[name]

    def _sender(self, name: str, answering: _Answering) -> Callable[[MutableMapping[str, Any]], Awaitable[None]]:
        async def send(message: MutableMapping[str, Any]) -> None:
            answering.record(message)
            if answering.complete:
                # Before its end is sent: who saw it must find it again.
                self._write(name, answering.digest, answering)
            await answering.pass_on(message)

        return send

    # Files.

    def _write(self, name: str, digest: str, answering: _Answering | None) -> None:
        """Note that a request began, or what its answer is. One that was refused did nothing and is forgotten."""
        refused = answering is not None and (400 <= answering.status < 500 or answering.status == 503)
        try:
            with self._place(name) as place:
                if refused:
                    os.unlink(place.name, dir_fd=place.dir_fd)
                    return
                temporary = f"{place.name}.new"
                fd = os.open(
                    temporary,
                    os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o600,
                    dir_fd=place.dir_fd,
                )
                with open(fd, "wb") as file:
                    file.write(_head(digest, answering))
                    if answering is not None and answering.size <= MAX_ANSWER:
                        file.write(answering.body)
                os.rename(temporary, place.name, src_dir_fd=place.dir_fd, dst_dir_fd=place.dir_fd)
        except (OSError, PathError) as error:
            # No room, or the session's code has put something in the way: then a retry may run again.
            print(f"picod: an answer cannot be kept: {error}", file=sys.stderr, flush=True)  # noqa: T201
        if answering is not None and answering.size > _LARGE:
            self._tidy()

    def _read(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """What is kept of a request, its head and its body; None: nothing, or nothing that could be read."""
        try:
            with self._place(name) as place:
                fd = place.open(os.O_RDONLY | os.O_NONBLOCK)  # a pipe put there would hold us
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_mtime < time.time() - KEEP_S:
                    return None
                head, _, body = file.read(MAX_ANSWER + (64 << 10)).partition(b"\n")
            document = json.loads(head)
        except (OSError, PathError, ValueError, RecursionError):
            return None
        return (document, body) if _is_head(document) else None

    def _tidy(self) -> None:
        """Drop what is old, and the oldest of what is too much."""
        now = time.time()
        try:
            with self._place("any") as place:
                folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.dir_fd)
        except (OSError, PathError):
            return
        try:
            with os.scandir(folder) as entries:
                found = [(entry.stat(follow_symlinks=False), entry.name) for entry in entries]
            kept = 0
            newest = sorted(((status.st_mtime, status.st_size, name) for status, name in found), reverse=True)
            for index, (changed, size, name) in enumerate(newest):
                kept += size
                stale = changed < now - KEEP_S or kept > _MAX_ALL or index >= _MAX_FILES
                if stale and name not in self._running:
                    _remove(name, folder)
        except OSError:
            pass  # it is the session's own room
        finally:
            os.close(folder)

    def _place(self, name: str) -> Place:
        return self._workspace.resolve(f"{FOLDER}/{name}", make_parents=True)


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # a folder that code put there, say


def _digest(request: Request, body: bytes) -> str:
    """What was asked. Whether its answer was to be streamed is not part of it."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        fields.pop("stream", None)
        body = json.dumps(fields, sort_keys=True).encode()
    asked = (request.method.encode(), request.scope["raw_path"], request.scope["query_string"], body)
    return hashlib.blake2b(b"\0".join(asked), digest_size=16).hexdigest()


def _head(digest: str, answering: _Answering | None) -> bytes:
    document: dict[str, object] = {"digest": digest}
    if answering is not None:
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answering.headers]
        document |= {"status": answering.status, "headers": headers, "size": answering.size}
    return to_json(document) + b"\n"


def _is_head(document: Any) -> bool:
    """Whether it is what `_head` wrote, as far as its use needs."""
    if not isinstance(document, dict) or not isinstance(document.get("digest"), str):
        return False
    if "status" not in document:
        return True
    headers = document.get("headers")
    return (
        isinstance(document["status"], int)
        and 200 <= document["status"] < 600
        and isinstance(document.get("size"), int)
        and isinstance(headers, list)
        and all(
            isinstance(each, list)
            and len(each) == 2
            and all(isinstance(text, str) and text.isprintable() for text in each)
            for each in headers
        )
    )


async def _replay(request: Request, kept: tuple[dict[str, Any], bytes], digest: str) -> None:
    document, body = kept
    _check(document["digest"], digest)
    if "status" not in document:
        raise _interrupted()
    if document["size"] != len(body):
        raise _too_large(document["size"])
    headers = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in document["headers"]
    ]
    await request.start(document["status"], (*headers, _REPLAYED))
    await request.write(body, more=False)


async def _finished(request: Request, answering: _Answering) -> None:
    """Until the answer is complete. Raises ClientGoneError."""
    gone = asyncio.create_task(request.gone())
    try:
        await asyncio.wait({answering.task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not answering.task.done() and answering.client is request:
            answering.client = None
    if not answering.task.done():
        raise ClientGoneError


def _check(first: str, digest: str) -> None:
    if first != digest:
        raise RequestError(422, "this Idempotency-Key was used for another request; use a new one for each")


def _interrupted() -> RequestError:
    return RequestError(
        409,
        "a request with this Idempotency-Key began before and did not come to its end: "
        "it may or may not have done its work; look, and ask with a new key",
        code="INTERRUPTED",
    )


def _too_large(size: int) -> RequestError:
    return RequestError(
        409,
        f"the request was run before; its answer had {size} bytes and was not kept ({MAX_ANSWER} at most)",
        code="ANSWER_NOT_KEPT",
    )


def _body_only(body: bytes) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """ASGI's receive of a client that has sent its body and never leaves."""
    first: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if first:
            return first.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive

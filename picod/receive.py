"""Takes the files of an agent before it starts: an init container's picod, which ends once it has all of them.

The gateway brings each archive with a token for this pod alone, so the pod holds no credential and reaches nothing. An
archive is named by the digest of its bytes, which are compared before anything is unpacked.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import sys
import zlib
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from picod import wire
from picod.archive.formats import Read, read_tar
from picod.archive.source import Source, counted
from picod.archive.tar_members import TarballError
from picod.archive.unpack import unpack
from picod.config import PicodConfig
from picod.filesystem.safe_walk import remove
from picod.http.auth import Guard
from picod.http.request import Receive, Request, RequestError, Scope, Send, TooLargeError, os_failure
from picod.http.server import Connection
from picod.http.thread_stream import in_thread

_MAX_FILES = 250_000  # more than the gateway takes (agents/environments.py)
_READ_BYTES = 256 << 10
_ANSWER_S = 2.0  # for the last answer to leave


class Receiver:
    """An ASGI app: PUT /api/code/DIGEST. `complete` is set once every folder of the configuration has its files."""

    def __init__(self, config: PicodConfig) -> None:
        self._guard = Guard(config.keys_file, config.audience) if config.auth == "jwt" else None
        self._limit = config.max_unpack
        self._folders = {digest: folder for folder, digest in config.receive}
        self._missing = set(self._folders)
        self._taken: set[str] = set()  # on their way in
        self.complete = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ClientGoneError."""
        request = Request(scope, receive, send, b"")
        path = unquote_to_bytes(scope["raw_path"]).decode("ascii", "replace")
        try:
            digest = path.removeprefix(wire.CODE_PATH)
            if request.method != "PUT" or path == digest or digest not in self._folders:
                raise RequestError(404, "this picod waits for the files of an agent, and answers nothing else")
            if self._guard is not None:
                self._guard.check(request)
            await self._take(request, digest)
        except RequestError as error:
            if not request.started:
                await request.answer_json(error.status, error.body, error.headers)

    async def _take(self, request: Request, digest: str) -> None:
        if digest in self._missing:
            if digest in self._taken:
                raise RequestError(409, "another gateway is bringing it")
            self._taken.add(digest)
            try:
                await self._keep(request, digest)
            except OSError as error:
                raise os_failure(error, f"Failed to keep {digest}") from error
            finally:
                self._taken.discard(digest)
            self._missing.discard(digest)
        await request.answer_json(200, {"digest": digest})
        if not self._missing:
            self.complete.set()

    async def _keep(self, request: Request, digest: str) -> None:
        """Write the body beside its target, compare it, unpack it. Raises RequestError, OSError."""
        root = os.open(self._folders[digest], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            await in_thread(lambda: _clear(root))
            with _scratch_file(root) as file:
                hashed, size = hashlib.sha256(), 0
                async for chunk in request.chunks():
                    size += len(chunk)
                    if size > self._limit:
                        raise TooLargeError(self._limit)
                    hashed.update(chunk)
                    file.write(chunk)
                if f"sha256:{hashed.hexdigest()}" != digest:
                    raise RequestError(400, "the bytes are not those that the digest names")
                file.seek(0)
                await in_thread(lambda: self._unpack(root, file.read))
        finally:
            os.close(root)

    def _unpack(self, root: int, read: Read) -> None:
        """Blocks. Raises RequestError, OSError."""
        try:
            stream = counted(read_tar(bytes(read(_READ_BYTES)), read), self._limit)
            unpack(root, Source(stream), max_files=_MAX_FILES)
        except (TarballError, zlib.error) as error:
            raise RequestError(400, f"the archive is refused: {error}") from error


def _scratch_file(root: int) -> BinaryIO:
    """A file on the volume without a name: the disk has its room again, however this ends."""
    name = ".wakegate.part"
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=root)
    os.unlink(name, dir_fd=root)
    return os.fdopen(descriptor, "w+b")


def _clear(root: int) -> None:
    """Remove what an earlier try of this container has left: a volume outlives it."""
    for name in os.listdir(root):
        remove(os.fsencode(name), root)


async def receive(config: PicodConfig, listener: socket.socket) -> int:
    """Serve until all files are there, or SIGTERM. Returns the exit status."""
    app = Receiver(config)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tasks: set[asyncio.Task[None]] = set()
    server = await loop.create_server(lambda: Connection(app, tasks), sock=listener)
    waits = [asyncio.ensure_future(event.wait()) for event in (app.complete, stopped)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    server.close()
    if tasks:
        await asyncio.wait(tasks, timeout=_ANSWER_S)
    if not app.complete.is_set():
        print("picod: ended before the files of the agent came", file=sys.stderr)  # noqa: T201 - the container's log
    return 0 if app.complete.is_set() else 1

"""GET /api/fs/watch: what changes below a directory, as events.

The kernel tells of single directories (inotify), so each one below is watched, and new ones as they come: what was put
in them before they were watched is found by listing them. The events of 50 ms are merged into few changes
(changes.py). When the kernel's queue overflows, the client gets `overflow` and every directory is listed again.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from picod.archive.pack import UPLOAD
from picod.files import inotify
from picod.files.changes import CREATED, DELETED, MODIFIED, Change, Changes
from picod.files.inotify import Happened, Inotify
from picod.files.names import name_fields
from picod.filesystem.paths import PathError, Place
from picod.filesystem.safe_walk import SafeWalk
from picod.http.request import Request, RequestError, os_failure, query_flag
from picod.http.sse import EventStream
from picod.http.thread_stream import in_thread

if TYPE_CHECKING:
    from picod.files.services import FileServices

MAX_WATCHERS = 8  # clients; a user has 128 queues on most machines, and may have many sandboxes there
_MAX_DIRECTORIES = 8192  # of one client
_COLLECT_S = 0.05  # seconds that events are collected for
_READ_BYTES = 256 << 10  # bytes of events taken at once: some thousands
_EVENTS = (
    inotify.MODIFY | inotify.ATTRIB | inotify.CLOSE_WRITE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.CREATE
    | inotify.DELETE
)  # fmt: skip


async def watch(services: FileServices, request: Request) -> None:
    """Events `ready` first, then `change` {"type", "path", "is_dir"}, `overflow`, `incomplete`; `gone` at last.

    404 for a directory that is not there, 429 when too many watch, 503 when the kernel has no more watches.
    """
    path = request.query("path") or "."
    recursive = not request.query("recursive") or query_flag(request, "recursive")
    if services.watchers >= MAX_WATCHERS:
        raise RequestError(429, f"{MAX_WATCHERS} clients watch files already", code="TOO_MANY_WATCHERS")
    services.watchers += 1
    watcher: Watcher | None = None
    try:
        watcher = await in_thread(lambda: _open(services, path, recursive))
        await _tell(request, watcher)
    except PathError as error:
        raise RequestError(400, str(error)) from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENOSPC):
            raise RequestError(503, "this machine has no more inotify queues or watches for this user") from error
        raise os_failure(error, f"Failed to watch {path}") from error
    finally:
        services.watchers -= 1
        if watcher is not None:
            watcher.close()


def _open(services: FileServices, path: str, recursive: bool) -> Watcher:
    with services.workspace.resolve(path) as place:
        watcher = Watcher(place.open(os.O_PATH | os.O_DIRECTORY), recursive=recursive)
        try:
            watcher.begin(place)
        except BaseException:
            watcher.close()
            raise
    return watcher


async def _tell(request: Request, watcher: Watcher) -> None:
    loop = asyncio.get_running_loop()
    async with EventStream(request) as events:
        await events.send("ready", {"directories": watcher.directories})
        while not watcher.gone:
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(watcher.fd, lambda: None if readable.done() else readable.set_result(None))  # noqa: B023
            try:
                await events.until(readable)
            finally:
                loop.remove_reader(watcher.fd)
            await asyncio.sleep(_COLLECT_S)
            changes = await in_thread(watcher.take)
            if watcher.overflowed:
                await events.send("overflow", {"error": "more changed than could be told; list the directory again"})
            if watcher.incomplete:
                await events.send(
                    "incomplete", {"error": "some directories are not watched", "watched": watcher.directories}
                )
            watcher.overflowed = watcher.incomplete = False
            for change in changes:
                await events.send("change", _describe(change))
        await events.send("gone", {"error": "the directory was deleted or moved"})


def _describe(change: Change) -> dict[str, object]:
    shown: dict[str, object] = {
        "type": change.kind,
        **name_fields("path", change.path),
        "is_dir": change.is_dir,
    }
    if change.source is not None:
        shown |= name_fields("from", change.source)
    if change.modified:
        shown["modified"] = True
    return shown


class Watcher:
    """Watches below a directory, whose descriptor it owns. One thread at a time.

    `overflowed`, `incomplete` and `gone` are what there is to say besides changes.
    """

    def __init__(self, root_fd: int, *, recursive: bool) -> None:
        self.overflowed = self.incomplete = self.gone = False
        self._root_fd = root_fd
        self._recursive = recursive
        self._paths: dict[int, bytes] = {}  # of each watched directory, below the root; the root's is empty
        self._above = -1  # the watch of the directory that holds the root, and the root's name there
        self._name = b""
        self._changes = Changes()
        self._leaving: dict[int, tuple[bytes, bool]] = {}  # moves whose second half has not come: cookie -> what
        try:
            self._queue = Inotify()
        except OSError:
            os.close(root_fd)
            raise

    @property
    def fd(self) -> int:
        """Readable when `take` has something to take."""
        return self._queue.fd

    @property
    def directories(self) -> int:
        """How many directories are watched."""
        return len(self._paths)

    def begin(self, place: Place) -> None:
        """Watch all there is at the root's place. Raises OSError."""
        if place.name != ".":
            # That the root is deleted is heard above it only: to itself it lives on, as we hold it open.
            above = inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
            self._above, self._name = self._queue.add(place.dir_fd, above), place.name.encode()
        self._paths[self._queue.add(self._root_fd, _EVENTS)] = b""
        if self._recursive:
            self._watch_below(b"", tell=False)

    def take(self) -> list[Change]:
        """What has changed since the last time. Raises OSError."""
        heard = -1
        while heard and not self.gone:
            heard = 0
            for happened in self._queue.read(_READ_BYTES):
                heard += 1
                self._hear(happened)
            if heard > 1000:
                break  # it goes on: tell what there is
        if not heard:
            for path, is_dir in self._leaving.values():
                self._left(path, is_dir)  # to a place that is not watched
            self._leaving.clear()
        return self._changes.take()

    def close(self) -> None:
        """Close the inotify queue and the directory."""
        self._queue.close()
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def _hear(self, happened: Happened) -> None:
        mask = happened.mask
        if mask & inotify.OVERFLOW:
            self.overflowed = True
            if self._recursive:
                self._watch_below(b"", tell=False)
            return
        if happened.watch == self._above:
            self.gone = self.gone or happened.name == self._name
            return
        if mask & inotify.IGNORED:
            self._paths.pop(happened.watch, None)
            return
        folder = self._paths.get(happened.watch)
        if folder is None or not happened.name or UPLOAD.fullmatch(happened.name):
            return
        path = folder + b"/" + happened.name if folder else happened.name
        is_dir = bool(mask & inotify.IS_DIR)
        if mask & inotify.MOVED_FROM:
            self._leaving[happened.cookie] = (path, is_dir)
        elif mask & inotify.MOVED_TO and happened.cookie in self._leaving:
            self._moved(self._leaving.pop(happened.cookie)[0], path, is_dir)
        elif mask & (inotify.CREATE | inotify.MOVED_TO):
            self._changes.note(CREATED, path, is_dir=is_dir, over=bool(mask & inotify.MOVED_TO))
            if is_dir and self._recursive:
                self._watch_below(path, tell=True)
        elif mask & inotify.DELETE:
            self._changes.note(DELETED, path, is_dir=is_dir)
        elif not is_dir:
            self._changes.note(MODIFIED, path, is_dir=False)

    def _moved(self, source: bytes, path: bytes, is_dir: bool) -> None:
        self._changes.move(source, path, is_dir=is_dir)
        if is_dir:
            for watch, watched in self._below(source):
                self._paths[watch] = path + watched[len(source) :]

    def _left(self, path: bytes, is_dir: bool) -> None:
        self._changes.note(DELETED, path, is_dir=is_dir)
        if is_dir:
            for watch, _ in self._below(path):
                self._queue.remove(watch)
                del self._paths[watch]

    def _below(self, path: bytes) -> list[tuple[int, bytes]]:
        return [
            (watch, watched)
            for watch, watched in self._paths.items()
            if watched == path or watched.startswith(path + b"/")
        ]

    def _watch_below(self, path: bytes, *, tell: bool) -> None:
        """Watch a directory and those below it; with `tell`, what is in it already counts as created."""
        try:
            with SafeWalk(self._root_fd, 0) as walk:
                for name in filter(None, path.split(b"/")):
                    walk.enter(name)
                base = walk.depth
                pending = [self._look(walk, tell)]
                while pending:
                    if pending[-1]:
                        try:
                            walk.enter(pending[-1].pop())
                        except (FileNotFoundError, NotADirectoryError, PermissionError):
                            continue  # gone, or not ours to look at
                        pending.append(self._look(walk, tell))
                    else:
                        pending.pop()
                        if walk.depth > base:
                            walk.leave()
        except FileNotFoundError:
            pass  # gone again
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOTDIR, errno.EACCES):
                raise
            self.incomplete = True  # it was moved from under us: what comes of that is heard, what was in it may not be

    def _look(self, walk: SafeWalk, tell: bool) -> list[bytes]:
        """Watch where the walk stands; returns the directories in it."""
        path = b"/".join(walk.names)
        if walk.depth:
            if len(self._paths) >= _MAX_DIRECTORIES:
                self.incomplete = True
                return []
            try:
                self._paths[self._queue.add(walk.fd, _EVENTS)] = path
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EACCES):
                    raise
                self.incomplete = True
                return []
        inside: list[bytes] = []
        with os.scandir(walk.fd) as entries:
            for entry in entries:
                name, is_dir = os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)
                if UPLOAD.fullmatch(name):
                    continue
                if tell:
                    self._changes.note(CREATED, path + b"/" + name, is_dir=is_dir)
                if is_dir:
                    inside.append(name)
        return inside

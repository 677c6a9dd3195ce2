"""GET /api/fs/watch: changes below a directory, as events.

inotify reports on single directories, so each one below is watched, and new ones as they appear: what was put into them
before that is found by listing them. The events of 50 ms are merged into few changes (changes.py). When the kernel's
queue overflows, the client gets `overflow` and every directory is listed again. fanotify would report on a whole file
system, but needs CAP_SYS_ADMIN.
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
from picod.filesystem.paths import PathError, Place, Workspace
from picod.filesystem.safe_walk import SafeWalk
from picod.http.request import Request, RequestError, os_failure, query_flag
from picod.http.sse import EventStream
from picod.http.thread_stream import in_thread

if TYPE_CHECKING:
    from picod.files.services import FileServices

MAX_WATCHERS = 8  # of one sandbox; a user has 128 queues on most machines, which many sandboxes may share
_MAX_DIRECTORIES = 8192  # of one client
_COLLECT_S = 0.05  # for which events are collected before they are merged
_READ_BYTES = 256 << 10  # of events in one read: some thousands
_MAX_EVENTS = 1000  # merged before the changes are sent, while events keep coming
_EVENTS = (
    inotify.MODIFY | inotify.ATTRIB | inotify.CLOSE_WRITE | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.CREATE
    | inotify.DELETE
)  # fmt: skip


async def watch(services: FileServices, request: Request) -> None:
    """Send `ready`, then `change` {"type", "path", "is_dir"}, `overflow` and `incomplete`, and `gone` at the end.

    404 for a directory that does not exist, 429 for too many watchers, 503 when the kernel has no more watches.
    """
    path = request.query("path") or "."
    recursive = not request.query("recursive") or query_flag(request, "recursive")
    if services.watchers >= MAX_WATCHERS:
        raise RequestError(429, f"{MAX_WATCHERS} clients watch files already", code="TOO_MANY_WATCHERS")
    services.watchers += 1
    watcher: Watcher | None = None
    try:
        tree = services.tree(request)
        watcher = await in_thread(lambda: _open(tree, path, recursive))
        await _send_events(request, watcher)
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


def _open(tree: Workspace, path: str, recursive: bool) -> Watcher:
    with tree.resolve(path) as place:
        watcher = Watcher(place.open(os.O_PATH | os.O_DIRECTORY), recursive=recursive)
        try:
            watcher.begin(place)
        except BaseException:
            watcher.close()
            raise
    return watcher


async def _send_events(request: Request, watcher: Watcher) -> None:
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
            # Then everything since is read at once: the create, writes and close of one file become one change.
            await asyncio.sleep(_COLLECT_S)
            changes = await in_thread(watcher.take)
            if watcher.overflowed:
                await events.send(
                    "overflow", {"error": "there were too many changes to report; list the directory again"}
                )
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
    """The watches below a directory, whose descriptor it owns. For one thread at a time.

    `overflowed`, `incomplete` and `gone` are to be reported besides the changes.
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
        """The descriptor that is readable when `take` has something to return."""
        return self._queue.fd

    @property
    def directories(self) -> int:
        """How many directories are watched."""
        return len(self._paths)

    def begin(self, place: Place) -> None:
        """Watch the root, and everything below it if recursive. Raises OSError."""
        if place.name != ".":
            # The deletion of the root is reported by the directory above only: the root itself exists on, as long as
            # it is open here.
            above = inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
            self._above, self._name = self._queue.add(place.dir_fd, above), place.name.encode()
        # Watched first and listed after: what appears in between is reported twice, which is merged, and never missed.
        self._paths[self._queue.add(self._root_fd, _EVENTS)] = b""
        if self._recursive:
            self._watch_below(b"", report=False)

    def take(self) -> list[Change]:
        """The changes since the last call. Raises OSError."""
        count = -1
        while count and not self.gone:
            count = 0
            for happened in self._queue.read(_READ_BYTES):
                count += 1
                self._handle(happened)
            if count > _MAX_EVENTS:
                break  # events keep coming: send what there is
        if not count:
            # The queue is empty, so the second half of these moves will not come.
            for path, is_dir in self._leaving.values():
                self._moved_out(path, is_dir)
            self._leaving.clear()
        return self._changes.take()

    def close(self) -> None:
        """Close the inotify queue and the directory."""
        self._queue.close()
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def _handle(self, happened: Happened) -> None:
        mask = happened.mask
        if mask & inotify.OVERFLOW:
            # Among the lost events may be new directories, which nobody watches then.
            self.overflowed = True
            if self._recursive:
                self._watch_below(b"", report=False)
            return
        if happened.watch == self._above:
            self.gone = self.gone or happened.name == self._name
            return
        if mask & inotify.IGNORED:  # the kernel has removed the watch: the directory is gone
            self._paths.pop(happened.watch, None)
            return
        folder = self._paths.get(happened.watch)
        if folder is None or not happened.name or UPLOAD.fullmatch(happened.name):
            return  # of a directory that is watched no more, of a directory itself, or of an unfinished upload
        path = folder + b"/" + happened.name if folder else happened.name
        is_dir = bool(mask & inotify.IS_DIR)
        if mask & inotify.MOVED_FROM:
            self._leaving[happened.cookie] = (path, is_dir)
        elif mask & inotify.MOVED_TO and happened.cookie in self._leaving:
            self._moved(self._leaving.pop(happened.cookie)[0], path, is_dir)
        elif mask & (inotify.CREATE | inotify.MOVED_TO):
            self._changes.note(CREATED, path, is_dir=is_dir, over=bool(mask & inotify.MOVED_TO))
            if is_dir and self._recursive:
                self._watch_below(path, report=True)
        elif mask & inotify.DELETE:
            self._changes.note(DELETED, path, is_dir=is_dir)
        elif not is_dir:
            self._changes.note(MODIFIED, path, is_dir=False)

    def _moved(self, source: bytes, path: bytes, is_dir: bool) -> None:
        self._changes.move(source, path, is_dir=is_dir)
        if is_dir:
            for watch, watched in self._below(source):
                self._paths[watch] = path + watched[len(source) :]

    def _moved_out(self, path: bytes, is_dir: bool) -> None:
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

    def _watch_below(self, path: bytes, *, report: bool) -> None:
        """Watch a directory and those below it; with `report`, what is in it already is reported as created."""
        try:
            with SafeWalk(self._root_fd, 0) as walk:
                for name in filter(None, path.split(b"/")):
                    walk.enter(name)
                base = walk.depth
                pending = [self._watch_here(walk, report)]
                while pending:
                    if pending[-1]:
                        try:
                            walk.enter(pending[-1].pop())
                        except (FileNotFoundError, NotADirectoryError, PermissionError):
                            continue  # deleted meanwhile, or another user's
                        pending.append(self._watch_here(walk, report))
                    else:
                        pending.pop()
                        if walk.depth > base:
                            walk.leave()
        except FileNotFoundError:
            pass  # deleted meanwhile
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOTDIR, errno.EACCES):
                raise
            self.incomplete = True  # it was moved during the walk: the move is reported, its contents may not be

    def _watch_here(self, walk: SafeWalk, report: bool) -> list[bytes]:
        """Watch the directory where the walk is. Returns the names of the directories in it."""
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
                if report:
                    self._changes.note(CREATED, path + b"/" + name, is_dir=is_dir)
                if is_dir:
                    inside.append(name)
        return inside

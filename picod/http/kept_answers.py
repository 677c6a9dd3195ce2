"""Answers to requests with an Idempotency-Key, kept as files in the workspace for a while.

They are files so that they share the fate of the work that the request did: both hibernate, wake and survive a killed
gateway. The session's own code can write anything there: what is read is checked, and a forged answer harms that
session only.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Container, MutableMapping
from typing import Any

from picod.filesystem.paths import PathError, Place, Workspace
from picod.http.request import to_json

FOLDER = ".wakegate/answers"
KEEP_S = 600.0
MAX_ANSWER_BYTES = 16 << 20  # of one answer that is kept; a larger one is only noted as given
_MAX_TOTAL_BYTES = 64 << 20
_MAX_FILES = 256
_MAX_HEAD_BYTES = 64 << 10
_TIDY_EVERY = 32  # requests
_LARGE_BYTES = 1 << 20  # of an answer, above which the folder is tidied at once


class Answer:
    """The answer to one request, recorded as it is sent. `size` counts all of the body, `body` has what may be kept."""

    def __init__(self, digest: str) -> None:
        self.digest = digest  # of the request
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.size = 0
        self.complete = False

    def record(self, message: MutableMapping[str, Any]) -> None:
        """Add a message that was passed to ASGI's send."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            self.size += len(message["body"])
            self.complete = not message.get("more_body", False)
            if self.size <= MAX_ANSWER_BYTES:
                self.body += message["body"]

    @property
    def is_refusal(self) -> bool:
        """Whether the request was refused and did nothing, so that it may be tried again."""
        return 400 <= self.status < 500 or self.status == 503


class KeptAnswers:
    """The folder of answers. `running` are the names of requests under way, whose files stay. Blocking, and short."""

    def __init__(self, workspace: Workspace, running: Container[str]) -> None:
        self._workspace = workspace
        self._running = running
        self._begun = 0

    def begin(self, name: str, digest: str) -> None:
        """Note that a request begins. A file that stays like this belongs to a request whose sandbox ended first."""
        if self._begun % _TIDY_EVERY == 0:  # the first too: a session that woke brings old files along
            self._tidy()
        self._begun += 1
        self._write(name, digest, None)

    def finish(self, name: str, answer: Answer) -> None:
        """Keep an answer; that of a refused request is deleted instead."""
        self._write(name, answer.digest, answer)
        if answer.size > _LARGE_BYTES:
            self._tidy()

    def _write(self, name: str, digest: str, answer: Answer | None) -> None:
        try:
            with self._place(name) as place:
                # A refused request did nothing, and its cause may pass: the same key may try again.
                if answer is not None and answer.is_refusal:
                    os.unlink(place.name, dir_fd=place.dir_fd)
                    return
                # Written whole and renamed: a sandbox that is killed in between leaves the note of `begin`, never half.
                temporary = f"{place.name}.new"
                fd = os.open(
                    temporary,
                    os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o600,
                    dir_fd=place.dir_fd,
                )
                with open(fd, "wb") as file:
                    file.write(_head(digest, answer))
                    if answer is not None and answer.size <= MAX_ANSWER_BYTES:
                        file.write(answer.body)
                os.rename(temporary, place.name, src_dir_fd=place.dir_fd, dst_dir_fd=place.dir_fd)
        except (OSError, PathError) as error:
            # The disk is full, or the session's code has put something in the way: then a retry runs the request again.
            print(f"picod: an answer cannot be kept: {error}", file=sys.stderr, flush=True)  # noqa: T201

    def read(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """Head and body of what is kept of a request; None if there is nothing, or it is too old or damaged."""
        try:
            with self._place(name) as place:
                fd = place.open(os.O_RDONLY | os.O_NONBLOCK)  # opening a FIFO would otherwise block
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                # By the file's own time: picod may have been started since, and its memory with it.
                if not stat.S_ISREG(status.st_mode) or status.st_mtime < time.time() - KEEP_S:
                    return None
                head, _, body = file.read(MAX_ANSWER_BYTES + _MAX_HEAD_BYTES).partition(b"\n")
            document = json.loads(head)
        except (OSError, PathError, ValueError, RecursionError):
            return None
        return (document, body) if _is_head(document) else None

    def _tidy(self) -> None:
        """Delete answers that are too old, and the oldest beyond the limits on bytes and files."""
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
                stale = changed < now - KEEP_S or kept > _MAX_TOTAL_BYTES or index >= _MAX_FILES
                if stale and name not in self._running:
                    _remove(name, folder)
        except OSError:
            pass  # the session's own code may change the folder's mode or remove it
        finally:
            os.close(folder)

    def _place(self, name: str) -> Place:
        return self._workspace.resolve(f"{FOLDER}/{name}", make_parents=True)


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # for example a folder that the session's code has put there


def _head(digest: str, answer: Answer | None) -> bytes:
    document: dict[str, object] = {"digest": digest}
    if answer is not None:
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers]
        document |= {"status": answer.status, "headers": headers, "size": answer.size}
    return to_json(document) + b"\n"


def _is_head(document: Any) -> bool:
    """Whether a document has the fields and types that `_head` writes, as far as they are used."""
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

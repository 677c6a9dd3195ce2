"""What a request's body was, without keeping it: its size, its hash, and as much of its beginning as is asked for."""

from __future__ import annotations

import re
from hashlib import sha256

HASHED_BYTES = 1 << 20  # of a larger body, what follows passes by: hashing a MiB takes the event loop a millisecond
_NAMES_IN_BYTES = 4096
_MAX_NAMES = 4
# The field of an upload that names its file, of a form or of JSON. Each begins with fixed text, so it is linear.
_NAME = re.compile(
    rb'name="?path"?\r\n(?:[A-Za-z][^\r\n]{0,200}\r\n){0,4}\r\n([^\r\n]{1,512})\r\n'
    rb'|"(?:path|from|to)"[ \t\r\n]{0,8}:[ \t\r\n]{0,8}"((?:[^"\\]|\\.){1,512})"'
)


class BodyDigest:
    """Fed with a body as it passes. `text_bytes`: how much of its beginning `text` has."""

    __slots__ = ("_hash", "_head", "_kept", "size")

    def __init__(self, text_bytes: int = 0) -> None:
        self.size = 0
        self._hash = sha256()
        self._head = bytearray()
        self._kept = max(text_bytes, _NAMES_IN_BYTES)

    def feed(self, piece: bytes | bytearray | memoryview) -> None:
        """The next piece, which may be changed once this returns."""
        if self.size < HASHED_BYTES:
            self._hash.update(piece[: HASHED_BYTES - self.size])
            if len(self._head) < self._kept:
                self._head += piece[: self._kept - len(self._head)]
        self.size += len(piece)

    def detail(self) -> dict[str, str | int]:
        """For the detail of an event; empty without a body. `hashed`: how many bytes the hash is of, if not all."""
        if not self.size:
            return {}
        found: dict[str, str | int] = {"bytes": self.size, "sha256": self._hash.hexdigest()}
        if self.size > HASHED_BYTES:
            found["hashed"] = HASHED_BYTES
        return found

    @property
    def text(self) -> str:
        """Its beginning as text; bytes that are not UTF-8 become U+FFFD."""
        return self._head.decode("utf-8", "replace")

    def names(self) -> str:
        """Names of files that the first 4 KiB of an upload's form, or of a JSON body, have; separated by commas."""
        found = _NAME.finditer(self._head[:_NAMES_IN_BYTES])
        names = [(match[1] or match[2]).decode("utf-8", "replace") for match, _ in zip(found, range(_MAX_NAMES))]  # noqa: B905
        return ", ".join(names)

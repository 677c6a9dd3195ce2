"""The keys snapshots are encrypted with, as an operator writes them.

One key a line (or separated by commas): `NAME:BASE64`, 32 bytes each; the first encrypts, all decrypt. To rotate, put
a new line first and take an old one away when no snapshot needs it any more. `openssl rand -base64 32` makes one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.errors import SettingsError

KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class SnapshotKeys:
    """Keys by name. `current` is the name of the one that encrypts. The keys themselves show in no text of ours."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def fingerprint(self, name: str) -> bytes:
        """Sixteen bytes that tell a key from another of the same name, and tell nothing else about it."""
        return hashlib.sha256(b"wakegate snapshot key\0" + self.keys[name]).digest()[:16]

    @classmethod
    def parse(cls, text: str, source: str) -> SnapshotKeys:
        """Read them; `source` says in errors where the text came from. Raises SettingsError with all that is wrong."""
        keys: dict[str, bytes] = {}
        problems = []
        for number, line in enumerate(re.split(r"[\n,]", text), 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            name, colon, encoded = entry.rpartition(":")
            where = f"{source}: key {number}"
            if not colon:
                name = "default"
            key = _decode(encoded)
            if not _NAME.fullmatch(name):
                problems.append(f"{where}: a name has up to 64 letters, digits, dots, dashes and underscores")
            elif key is None:
                problems.append(
                    f"{where} ({name}): must be base64 of {KEY_BYTES} bytes; openssl rand -base64 32 makes one"
                )
            elif name in keys:
                problems.append(f"{where}: the name {name} is there twice")
            else:
                keys[name] = key
        if not keys and not problems:
            problems.append(f"{source}: holds no key; openssl rand -base64 32 makes one")
        if problems:
            raise SettingsError(problems)
        return cls(next(iter(keys)), keys)

    @classmethod
    def read(cls, path: Path) -> SnapshotKeys:
        """Read them from a file that is closed to others. Raises SettingsError."""
        try:
            with open(path, encoding="ascii") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f"{path}: the snapshot keys cannot be read: {error}"]) from error
        # Its group may read it: that is how Kubernetes gives a Secret to a process that is not root (fsGroup).
        if mode & 0o027:
            raise SettingsError(
                [f"{path}: others may read or change the snapshot keys (mode {mode:04o}); chmod 600 {path}"]
            )
        return cls.parse(text, str(path))


def _decode(encoded: str) -> bytes | None:
    try:
        key = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return None
    return key if len(key) == KEY_BYTES else None

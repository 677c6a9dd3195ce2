"""The key file for encrypted snapshots.

One key per line (or separated by commas): `NAME:BASE64`, 32 bytes each. The first encrypts, all decrypt. To rotate, add
a new line at the top, and remove an old one once no snapshot uses it. `openssl rand -base64 32` generates a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.core.errors import SettingsError
from gateway.core.read_file import read_file

KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class SnapshotKeys:
    """Keys by name. `current` names the one that encrypts. repr() and errors never contain the keys."""

    current: str
    keys: Mapping[str, bytes] = field(repr=False)

    def fingerprint(self, name: str) -> bytes:
        """Sixteen bytes that distinguish a key from another one of the same name without revealing it."""
        return hashlib.sha256(b"wakegate snapshot key\0" + self.keys[name]).digest()[:16]

    @classmethod
    def parse(cls, text: str, source: str) -> SnapshotKeys:
        """Parse the text of a key file; errors name `source`. Raises SettingsError with every problem."""
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
                problems.append(f"{where}: a name must have up to 64 letters, digits, dots, dashes and underscores")
            elif key is None:
                problems.append(
                    f"{where} ({name}): must be base64 of {KEY_BYTES} bytes; openssl rand -base64 32 generates one"
                )
            elif name in keys:
                problems.append(f"{where}: the name {name} occurs twice")
            else:
                keys[name] = key
        if not keys and not problems:
            problems.append(f"{source}: contains no key; openssl rand -base64 32 generates one")
        if problems:
            raise SettingsError(problems)
        return cls(next(iter(keys)), keys)

    @classmethod
    def read(cls, path: Path) -> SnapshotKeys:
        """Read a key file that other users cannot read. Raises SettingsError."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = read_file(path).decode("ascii")
        except OSError as error:
            raise SettingsError([f"{path}: the snapshot keys cannot be read: {error.strerror}"]) from error
        except UnicodeDecodeError as error:
            raise SettingsError([f"{path}: the snapshot keys cannot be read: {error}"]) from error
        # Group read is allowed: with fsGroup, Kubernetes gives a mounted Secret to a non-root process that way.
        if mode & 0o027:
            raise SettingsError(
                [f"{path}: other users can read or change the snapshot keys (mode {mode:04o}); chmod 600 {path}"]
            )
        return cls.parse(text, str(path))


def _decode(encoded: str) -> bytes | None:
    try:
        key = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return None
    return key if len(key) == KEY_BYTES else None

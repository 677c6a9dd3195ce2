"""Signatures that the operator provides as files: what `cosign download signature IMAGE` prints, a JSON object a line.

For clusters without a way to the registry, and for gateways that shall start while it is away. A ConfigMap will do.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path

import orjson

from gateway.images.signature import MAX_PAYLOAD_BYTES, MAX_SIGNATURE_CHARS, Signed

MAX_FILES = 1000
MAX_FILE_BYTES = 1 << 20  # as a ConfigMap
_MAX_TOTAL_BYTES = 64 << 20


def read_bundles(folder: Path) -> Iterator[Signed]:
    """The signatures in the files of a folder, in the order of their names; what is none is left out. Blocks.

    Names that begin with a dot are left out: a ConfigMap's volume has its versions in such folders.
    Raises OSError if the folder cannot be read.
    """
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    total = 0
    for path in files[:MAX_FILES]:
        try:
            if not path.is_file():
                continue
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError:
            continue  # it was replaced meanwhile; the others count
        total += len(content)  # one file that is too large, or too many of them, must not hide those that are well
        if len(content) > MAX_FILE_BYTES or total > _MAX_TOTAL_BYTES:
            continue
        for line in content.splitlines():
            if (found := _read_line(line)) is not None:
                yield found


def _read_line(line: bytes) -> Signed | None:
    try:
        entry = orjson.loads(line)
        signature, payload = entry["Base64Signature"], entry["Payload"]
        if len(signature) > MAX_SIGNATURE_CHARS or len(payload) > 2 * MAX_PAYLOAD_BYTES:
            return None
        return Signed(base64.b64decode(payload, validate=True), str(signature))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, binascii.Error):
        return None

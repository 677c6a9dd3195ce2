"""The format of the trail. Pure.

A line is one JSON object. Each has `seq`, which counts from 0, `prev`, the SHA-256 of the line before it (without its
newline; 64 zeros for seq 0) and `type`:

    open       the first line of every file: the chain's id (`chain`) and public key (`key`)
    event      what happened (event.py)
    head       signed: `sig` is Ed25519 over _DOMAIN and the line's own bytes before `,"sig"`
    gap        `lost` events could not be written
    recovered  a gateway was killed while it wrote: the line before this one is torn, `torn_bytes` and `torn_sha256`
               say what it was. `cut_after`: a signed head with that seq had been written, and is no longer there

So a changed line does not fit the next one, a missing or moved one breaks `seq` and `prev`, and a head's signature
covers all lines before it. Whoever has the key can make another chain; whoever has not can only cut off what follows a
head.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAX_LINE_BYTES = 1 << 20  # an event of the largest texts, every character of them escaped, has 640 KB
GENESIS = "0" * 64
VERSION = 1
_DOMAIN = b"wakegate audit head v1\n"
_SIGNATURE = re.compile(rb',"sig":"([0-9a-f]{128})"\}')
TYPES = frozenset(("open", "event", "head", "gap", "recovered"))


@dataclass(frozen=True, slots=True)
class Position:
    """Where a chain stands: the number of the next line, and the hash that it has to name."""

    seq: int = 0
    prev: str = GENESIS

    def after(self, line: bytes) -> Position:
        """Once this line (without its newline) is written."""
        return Position(self.seq + 1, line_hash(line))


def line_hash(line: bytes) -> str:
    """What the next line calls `prev`."""
    return sha256(line).hexdigest()


def encode(position: Position, kind: str, fields: dict[str, Any]) -> bytes:
    """A line, without its newline."""
    return orjson.dumps({"seq": position.seq, "prev": position.prev, "type": kind, **fields})


def sign(position: Position, fields: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """A line of type head, which ends with the signature over all of its other bytes."""
    body = encode(position, "head", fields)[:-1]
    return body + b',"sig":"%b"}' % key.sign(_DOMAIN + body).hex().encode()


def is_signed(line: bytes, key: Ed25519PublicKey) -> bool:
    """Whether a head's signature is right. Every byte of the line counts: none of it can be written in two ways."""
    # `,"sig":"` and `"}` are ten bytes, the hex digits 128.
    body, found = line[:-138], _SIGNATURE.fullmatch(line[-138:])
    if found is None:
        return False
    try:
        key.verify(bytes.fromhex(found[1].decode()), _DOMAIN + body)
    except InvalidSignature:
        return False
    return True


def decode(line: bytes) -> dict[str, Any] | None:
    """The fields of a line (without its newline) that has the form of one; None for anything else."""
    if len(line) > MAX_LINE_BYTES or not line.startswith(b'{"seq":'):
        return None
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    has_form = type(fields.get("seq")) is int and type(fields.get("prev")) is str and fields.get("type") in TYPES
    return fields if has_form else None

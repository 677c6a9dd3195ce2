"""The trail on standard output (`--audit-log -`), for collectors that read it there: a new chain with each start."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import VERSION, Position, encode, sign
from gateway.audit.event import timestamp
from gateway.audit.file import Entry
from gateway.audit.keys import public_hex
from gateway.core.clock import Clock


class AuditStream:
    """As AuditFile, over a descriptor that is only written to."""

    path: Path | None = None  # a stream cannot be read back

    def __init__(self, descriptor: int, key: Ed25519PrivateKey, clock: Clock) -> None:
        self.unsigned = 0
        self._descriptor = descriptor
        self._key = key
        self._clock = clock
        self._position = Position()
        self._chain = secrets.token_hex(8)
        self._rest = b""  # of a write that failed half-way

    def open(self) -> int:
        """Write the line that names chain and key. Returns 0: nothing of an earlier run can be read back."""
        key = public_hex(self._key.public_key())
        self.append([("open", {"time": timestamp(self._clock.now()), "v": VERSION, "chain": self._chain, "key": key})])
        return 0

    def append(self, entries: Sequence[Entry]) -> None:
        """Write lines. After an OSError, call it with the same ones: none is written twice."""
        if not self._rest:
            for kind, fields in entries:
                self._add(encode(self._position, kind, fields))
            self.unsigned += len(entries)
        self._flush()

    def sign_head(self) -> None:
        """Vouch for all lines until now, unless nothing was written since the latest head."""
        if self.unsigned and not self._rest:  # half a line is out: a head in between would be inside of it
            fields = {"time": timestamp(self._clock.now()), "chain": self._chain}
            self._add(sign(self._position, fields, self._key))
            self.unsigned = 0
            self._flush()

    def close(self) -> None:
        """Sign what is not. The descriptor is another's."""
        self.sign_head()

    def _add(self, line: bytes) -> None:
        self._position = self._position.after(line)
        self._rest += line + b"\n"

    def _flush(self) -> None:
        while self._rest:
            self._rest = self._rest[os.write(self._descriptor, self._rest) :]

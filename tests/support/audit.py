"""Audit trails made for a test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.event import Actor, AuditEvent, event_fields
from gateway.audit.file import AuditFile, Entry
from gateway.audit.verify import Report, verify
from gateway.testing import ManualClock

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def audit_file(folder: Path, *, max_bytes: int = 1 << 20, keep: int = 0) -> AuditFile:
    """A file `audit.log` in the folder, not opened."""
    return AuditFile(
        folder / "audit.log", KEY, ManualClock(), folder / "audit.log.head", max_bytes=max_bytes, keep=keep
    )


def entries(numbers: Iterable[int]) -> list[Entry]:
    """Events that can be told apart."""
    return [
        ("event", event_fields(AuditEvent(n, "session.create", Actor("ann"), 201, session=f"s{n}"))) for n in numbers
    ]


def files_of(folder: Path) -> list[Path]:
    """The current file and the full ones."""
    return [path for path in sorted(folder.glob("audit.log*")) if not path.name.endswith(".head")]


def check(folder: Path, *, files: Sequence[Path] | None = None, anchored: bool = True) -> Report:
    """The report of the one chain in a folder. `anchored`: the copy of the latest head is known."""
    heads = [(folder / "audit.log.head").read_bytes().rstrip(b"\n")] if anchored else []
    (report,) = verify(files_of(folder) if files is None else files, KEY.public_key(), heads)
    return report

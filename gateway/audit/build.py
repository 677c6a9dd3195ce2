"""From settings to an audit trail."""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.audit.file import AuditFile
from gateway.audit.keys import key_folder, make_key
from gateway.audit.log import AuditLog, Sink
from gateway.audit.stream import AuditStream
from gateway.core.clock import Clock
from gateway.core.settings import Settings


def make_audit_log(settings: Settings, clock: Clock) -> AuditLog | None:
    """As the settings say, not started; None: there is none. Raises SettingsError for the key."""
    if not settings.audit_log:
        return None
    key = make_key(settings.state_dir)
    sink: Sink
    if settings.audit_log == "-":
        sink = AuditStream(sys.stdout.fileno(), key, clock)
    else:
        path = Path(settings.audit_log).expanduser().absolute()
        # Beside the key and not beside the file: whoever can shorten the trail must not be able to take this back too.
        head_copy = key_folder(settings.state_dir) / f"{path.name}.head"
        sink = AuditFile(path, key, clock, head_copy, max_bytes=settings.audit_max_bytes, keep=settings.audit_keep)
    return AuditLog(
        sink,
        clock,
        where=settings.audit_log,
        refuse=settings.audit_on_error == "refuse",
        text=settings.audit_content == "text",
    )

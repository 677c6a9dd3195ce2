"""From events to lines: order, batches, and what happens while the file cannot be written."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.audit import log as module
from gateway.audit.event import Actor, AuditEvent
from gateway.audit.file import Entry
from gateway.audit.log import AuditLog, AuditUnavailableError
from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError
from tests.support.audit import audit_file, check
from tests.support.waiting import wait_until


class Breakable:
    """A sink that can be full. State: what was appended, and whether it fails."""

    path: Path | None = None

    def __init__(self) -> None:
        self.unsigned = 0
        self.lines: list[Entry] = []
        self.is_full = False
        self.signed = 0

    def open(self) -> int:
        self._fail()
        return 0

    def append(self, entries: Sequence[Entry]) -> None:
        self._fail()
        self.lines += entries
        self.unsigned += len(entries)

    def sign_head(self) -> None:
        self._fail()
        self.signed += 1
        self.unsigned = 0

    def close(self) -> None:
        self.sign_head()

    def sessions(self) -> list[str]:
        return [fields["session"] for kind, fields in self.lines if kind == "event"]

    def _fail(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


def event(number: int) -> AuditEvent:
    return AuditEvent(number, "session.create", Actor(), 201, session=f"s{number}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.02)


def started(sink: Breakable, *, refuse: bool = True) -> AuditLog:
    audit = AuditLog(sink, SystemClock(), where="audit.log", refuse=refuse)
    audit.start()
    return audit


async def test_events_are_written_in_their_order_and_signed_at_the_end(tmp_path: Path) -> None:
    """Into a file that verifies."""
    audit = AuditLog(audit_file(tmp_path), SystemClock(), where="audit.log", refuse=True)
    audit.start()
    for number in range(2500):
        audit.record(event(number))
    await audit.aclose()
    report = check(tmp_path)
    assert (report.problem, report.events, report.unsigned, report.lost) == ("", 2500, 0, 0)


async def test_full_disk_refuses_requests_until_it_has_room_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Fail closed; said once in the log, not once a second."""
    sink = Breakable()
    audit = started(sink)
    audit.check()
    sink.is_full = True
    audit.record(event(1))
    wait_until(lambda: bool(audit.problem), "the problem is known")
    with pytest.raises(AuditUnavailableError, match="refused while the audit trail cannot be written"):
        audit.check()
    assert "No space left" in audit.unready
    audit.record(event(2))
    sink.is_full = False
    wait_until(lambda: not audit.problem, "it works again")
    audit.check()
    assert audit.unready == ""
    await audit.aclose()
    assert sink.sessions() == ["s1", "s2"]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


async def test_failed_signature_does_not_refuse_requests_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request comes to try it again while all are refused, so the log does."""
    monkeypatch.setattr(module, "HEAD_EVERY_LINES", 1)
    sink = Breakable()
    audit = started(sink)
    append = sink.append

    def then_full(entries: Sequence[Entry]) -> None:
        append(entries)
        sink.is_full = True

    monkeypatch.setattr(sink, "append", then_full)
    audit.record(event(1))
    wait_until(lambda: bool(audit.problem), "the problem is known")
    monkeypatch.setattr(sink, "append", append)
    sink.is_full = False
    audit._wake.set()
    wait_until(lambda: not audit.problem, "it works again")
    await audit.aclose()


async def test_dropped_events_are_counted_in_a_gap_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `continue` requests go on; a gap line after the kept records states how many are missing."""
    monkeypatch.setattr(module, "QUEUED", 3)
    sink = Breakable()
    audit = started(sink, refuse=False)
    sink.is_full = True
    audit.record(event(0))
    wait_until(lambda: bool(audit.problem), "the problem is known")
    audit.check()
    assert audit.unready == ""
    for number in range(1, 9):
        audit.record(event(number))
    sink.is_full = False
    wait_until(lambda: any(kind == "gap" for kind, _ in sink.lines), "the gap is told")
    audit.record(event(9))
    await audit.aclose()
    assert sink.sessions() == ["s0", "s1", "s2", "s3", "s9"]
    assert [(kind, fields.get("lost")) for kind, fields in sink.lines][4] == ("gap", 5)
    assert audit.lost == 5


async def test_end_does_not_wait_for_a_disk_that_stays_full(caplog: pytest.LogCaptureFixture) -> None:
    """What could not be written is reported."""
    sink = Breakable()
    audit = started(sink)
    sink.is_full = True
    audit.record(event(1))
    wait_until(lambda: bool(audit.problem), "the problem is known")
    await audit.aclose()
    assert "1 audit events could not be written before the end" in caplog.text


async def test_event_that_cannot_be_rendered_does_not_stop_the_others() -> None:
    """It is a gap of one."""
    sink = Breakable()
    audit = started(sink)
    audit.record(AuditEvent("noon", "a", Actor(), 200))  # type: ignore[arg-type]
    audit.record(event(2))
    await audit.aclose()
    assert [kind for kind, _ in sink.lines] == ["gap", "event"]


def test_file_that_cannot_be_opened_keeps_a_gateway_from_starting(tmp_path: Path) -> None:
    """A gateway that was to be audited must not run unaudited."""
    audit = AuditLog(audit_file(tmp_path / "nowhere"), SystemClock(), where="x/audit.log", refuse=False)
    with pytest.raises(SettingsError, match=r"--audit-log x/audit\.log: cannot be written: No such file or directory"):
        audit.start()

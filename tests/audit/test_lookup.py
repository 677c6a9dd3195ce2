"""The newest lines about one session: over files that are put aside, torn, huge or hostile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.audit import lookup
from gateway.audit.disk import full_files
from gateway.audit.event import Actor, AuditEvent, event_fields
from gateway.audit.file import Entry
from gateway.audit.lookup import Found, newest_events
from tests.support.audit import audit_file, files_of

NAMES = ["s1", "s2"]


def events(numbers: range, **detail: Any) -> list[Entry]:
    """Event N is of session s1 where N is odd, else of s2."""
    return [
        ("event", event_fields(AuditEvent(n, f"act.{n}", Actor("ann"), 200, session=NAMES[(n + 1) % 2], detail=detail)))
        for n in numbers
    ]


def numbers(found: Found) -> list[int]:
    return [int(each["action"].partition(".")[2]) for each in found.events]


@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
def test_newest_events_come_first_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Each once, however files and blocks cut them; others' lines and signed heads are passed over."""
    monkeypatch.setattr(lookup, "_BLOCK_BYTES", block)
    file = audit_file(tmp_path, max_bytes=4000)
    file.open()
    for n in range(60):
        file.append(events(range(n, n + 1)))
    file.close()
    assert len(files_of(tmp_path)) > 3
    path = tmp_path / "audit.log"
    assert numbers(newest_events(path, "s1", 100)) == list(range(59, 0, -2))
    assert newest_events(path, "s1", 100).complete
    few = newest_events(path, "s2", 3)
    assert (numbers(few), few.complete) == ([58, 56, 54], False)
    assert newest_events(path, "s", 100) == Found([], complete=True)
    assert newest_events(tmp_path / "none", "s1", 100) == Found([], complete=True)


def test_no_text_within_a_line_makes_it_one_of_the_session(tmp_path: Path) -> None:
    """Neither a quoted field, nor one of the detail, nor a line that is torn or is no event."""
    file = audit_file(tmp_path)
    file.open()
    planted = 'x","session":"s9","y":"'
    file.append(events(range(2), path=planted, session="s9"))
    file.close()
    with open(tmp_path / "audit.log", "ab") as raw:
        raw.write(b'{"seq":99,"prev":"' + b"0" * 64 + b'","type":"head","session":"s9"}\n')
        raw.write(b'{"seq":100,"session":"s9"')
    assert newest_events(tmp_path / "audit.log", "s9", 10).events == []
    (found,) = newest_events(tmp_path / "audit.log", "s1", 10).events
    assert found["detail"] == {"path": planted, "session": "s9"}
    assert newest_events(tmp_path / "audit.log", planted, 10).events == []


def test_reading_is_bounded_in_bytes_read_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said as incomplete; a line that never ends is not collected in memory."""
    monkeypatch.setattr(lookup, "_BLOCK_BYTES", 1000)
    file = audit_file(tmp_path)
    file.open()
    file.append(events(range(40)))
    file.close()
    path = tmp_path / "audit.log"
    size = path.stat().st_size
    monkeypatch.setattr(lookup, "MAX_READ_BYTES", size // 2)
    half = newest_events(path, "s1", 100)
    assert numbers(half)[:3] == [39, 37, 35]
    assert 5 < len(half.events) < 15
    assert not half.complete
    monkeypatch.setattr(lookup, "MAX_READ_BYTES", 10 * size)
    monkeypatch.setattr(lookup, "MAX_FOUND_BYTES", 2 * len(orjson.dumps(half.events[0])) + 200)
    few = newest_events(path, "s1", 100)
    assert numbers(few)[:2] == [39, 37]
    assert len(few.events) < 4
    assert not few.complete
    monkeypatch.setattr(lookup, "MAX_FOUND_BYTES", 1)
    assert numbers(newest_events(path, "s1", 100)) == [39]
    monkeypatch.setattr(lookup, "MAX_LINE_BYTES", 3000)
    with open(path, "ab") as raw:
        raw.write(b'"session":"s1"' * 1000 + b"\n")
    assert numbers(newest_events(path, "s1", 100)) == [39]


def test_file_that_is_put_aside_meanwhile_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rename comes between opening the current file and listing the full ones."""
    file = audit_file(tmp_path)
    file.open()
    file.append(events(range(6)))
    file.close()
    path = tmp_path / "audit.log"

    def renamed(asked: Path) -> list[Path]:
        os.rename(path, f"{path}.00000000-000000000000")
        return full_files(asked)

    monkeypatch.setattr(lookup, "full_files", renamed)
    assert numbers(newest_events(path, "s1", 100)) == [5, 3, 1]

"""The trail as files: whatever is done to them afterwards is found, and whatever happens to the gateway is survived."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.audit.verify import verify
from tests.support.audit import KEY, audit_file, check, entries, files_of
from tests.support.examples import examples


def written(folder: Path, events: int = 12, max_bytes: int = 1 << 20) -> list[Path]:
    """A trail that was ended in order, in the order of its lines; with a head in the middle."""
    audit = audit_file(folder, max_bytes=max_bytes)
    audit.open()
    for number in range(events):
        audit.append(entries([number]))
        if number == events // 2:
            audit.sign_head()
    audit.close()
    rotated = [path for path in files_of(folder) if path.name != "audit.log"]
    return [*sorted(rotated), folder / "audit.log"]


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """The files of a trail of three files, by name, the oldest first."""
    files = written(tmp_path_factory.mktemp("trail"), max_bytes=1500)
    assert len(files) == 3
    return [(path.name, path.read_bytes()) for path in files]


def head_of(trail: list[tuple[str, bytes]]) -> bytes:
    return trail[-1][1].splitlines()[-1]


def is_found(trail: list[tuple[str, bytes]], head: bytes | None) -> bool:
    """Whether something is wrong with files of this content."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, data in trail:
            files.append(Path(folder) / name)
            files[-1].write_bytes(data)
        reports = verify(files, KEY.public_key(), [head] if head else [])
    return len(reports) != 1 or bool(reports[0].problem) or bool(reports[0].unsigned)


def test_untouched_trail_is_ok(trail: list[tuple[str, bytes]]) -> None:
    """With the counts of what is in it."""
    assert not is_found(trail, head_of(trail))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(300))
@given(data=st.data())
def test_any_byte_that_changes_is_found(trail: list[tuple[str, bytes]], data: st.DataObject) -> None:
    """In every file, at every place, also the last line, and also a newline."""
    which = data.draw(st.integers(0, len(trail) - 1))
    name, content = trail[which]
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(1, 255))
    changed = content[:at] + bytes([content[at] ^ other]) + content[at + 1 :]
    assert is_found([*trail[:which], (name, changed), *trail[which + 1 :]], None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(200))
@given(data=st.data())
def test_lines_that_are_removed_moved_or_repeated_are_found(
    trail: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    """Any one of them, in any file."""
    which = data.draw(st.integers(0, len(trail) - 1))
    name, content = trail[which]
    lines = content.splitlines(keepends=True)
    one, two = sorted(data.draw(st.lists(st.integers(0, len(lines) - 1), min_size=2, max_size=2, unique=True)))
    changes = {
        "removed": lines[:one] + lines[one + 1 :],
        "range removed": lines[:one] + lines[two:],
        "swapped": [*lines[:one], lines[two], *lines[one + 1 : two], lines[one], *lines[two + 1 :]],
        "repeated": [*lines[: two + 1], lines[one], *lines[two + 1 :]],
    }
    changed = b"".join(changes[data.draw(st.sampled_from(sorted(changes)))])
    assert is_found([*trail[:which], (name, changed), *trail[which + 1 :]], head_of(trail))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(200))
@given(data=st.data())
def test_end_that_is_cut_off_is_found(trail: list[tuple[str, bytes]], data: st.DataObject) -> None:
    """At any byte of any file, where the latest signed head is known."""
    which = data.draw(st.integers(0, len(trail) - 1))
    name, content = trail[which]
    kept = content[: data.draw(st.integers(0, len(content) - 1))]
    assert is_found([*trail[:which], (name, kept)], head_of(trail))
    assert is_found([*trail[:which], (name, kept), *trail[which + 1 :]], head_of(trail))


def test_file_that_is_missing_is_found_but_older_ones_may_be_gone(trail: list[tuple[str, bytes]]) -> None:
    """Old ones are deleted by --audit-keep; one in the middle never is."""
    head = head_of(trail)
    assert is_found([trail[0], trail[2]], head)
    assert is_found(trail[:2], head)
    assert not is_found(trail[1:], head)


def test_report_names_file_and_line(tmp_path: Path) -> None:
    """Of a change, a removal, and a repetition."""
    written(tmp_path)
    path = tmp_path / "audit.log"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole).replace(b'"session":"s3"', b'"session":"s9"', 1))
    assert check(tmp_path).problem.startswith(f"{path}, line 6: does not follow from what is before it: {path}, line 5")
    path.write_bytes(b"".join([*whole[:4], *whole[6:]]))
    assert f"{path}, line 5: lines 4 to 5 of the chain were removed before it" in check(tmp_path).problem
    path.write_bytes(b"".join([*whole[:4], whole[5], whole[4], *whole[6:]]))
    assert f"{path}, line 5" in check(tmp_path).problem
    path.write_bytes(b"")
    assert "is empty" in check(tmp_path).problem


def test_trail_signed_with_another_key_is_refused(tmp_path: Path) -> None:
    """A trail that somebody wrote anew is whole in itself, and not the gateway's."""
    files = written(tmp_path)
    (report,) = verify(files, Ed25519PrivateKey.generate().public_key())
    assert "signature" in report.problem
    assert verify(files, None)[0].problem == ""


def test_chain_goes_on_over_restarts_and_full_files(tmp_path: Path) -> None:
    """One chain, whose files can be named in any order."""
    for _ in range(3):
        written(tmp_path, events=10, max_bytes=1500)
    report = check(tmp_path, files=list(reversed(files_of(tmp_path))))
    assert (report.problem, report.events, report.unsigned) == ("", 30, 0)
    assert len(report.files) > 4


def test_only_so_many_full_files_are_kept(tmp_path: Path) -> None:
    """The newest ones; what is left is whole."""
    audit = audit_file(tmp_path, max_bytes=1000, keep=2)
    audit.open()
    for number in range(40):
        audit.append(entries([number]))
    audit.close()
    assert len(files_of(tmp_path)) == 3
    report = check(tmp_path)
    assert report.problem == ""
    assert report.first_seq > 0


@pytest.mark.parametrize("left", [1, 40, -1])
def test_line_that_a_kill_tore_is_marked_and_the_chain_goes_on(tmp_path: Path, left: int) -> None:
    """After a kill -9 in the middle of a write; also where only its newline is missing."""
    audit = audit_file(tmp_path)
    audit.open()
    audit.append(entries([1, 2]))
    path = tmp_path / "audit.log"
    before = path.stat().st_size
    audit.append(entries([3]))
    audit._close()
    size = path.stat().st_size
    os.truncate(path, before + left if left > 0 else size + left)
    again = audit_file(tmp_path)
    again.open()
    again.append(entries([4]))
    again.close()
    report = check(tmp_path)
    assert (report.problem, report.recovered, report.unsigned) == ("", 1, 0)
    assert report.events == (3 if left > 0 else 4)
    torn = path.read_bytes().replace(b'{"seq":3,"prev":"', b'{"seq":3,"prev":"0', 1)
    if left > 0:
        path.write_bytes(torn.replace(b'{"seq":3', b'{"seq":5', 1))
        assert check(tmp_path).problem != ""


def test_signed_lines_removed_before_a_restart_stay_detected(tmp_path: Path) -> None:
    """The latest signed head is kept apart from the file, so a missing file is noticed too."""
    written(tmp_path)
    path = tmp_path / "audit.log"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]))
    written(tmp_path)
    assert "that had been signed were missing" in check(tmp_path).problem
    path.unlink()
    written(tmp_path)
    assert "that had been signed were missing" in check(tmp_path).problem


def test_file_that_is_no_trail_is_put_aside(tmp_path: Path) -> None:
    """Nothing of another's is appended to, or lost."""
    path = tmp_path / "audit.log"
    path.write_text("hello\nworld\n")
    written(tmp_path)
    assert check(tmp_path, files=[path]).problem == ""
    assert [file.read_text() for file in tmp_path.glob("audit.log.damaged-*")] == ["hello\nworld\n"]


def test_kill_during_the_first_line_is_no_finding(tmp_path: Path) -> None:
    """The file had said nothing yet."""
    (tmp_path / "audit.log").write_bytes(b'{"seq":0,"prev":"000')
    written(tmp_path)
    assert check(tmp_path).problem == ""


def test_file_is_its_owners_only_and_has_one_writer(tmp_path: Path) -> None:
    """Two would fork the chain."""
    audit = audit_file(tmp_path)
    audit.open()
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="another gateway writes to it"):
        audit_file(tmp_path).open()
    audit.close()


def test_link_or_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    """Neither does a link lead elsewhere, nor a pipe keep the gateway waiting for a reader."""
    path = tmp_path / "audit.log"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        audit_file(tmp_path).open()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"not a regular file|No such device"):
        audit_file(tmp_path).open()


def test_write_that_fails_half_way_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes a part of a batch; what landed of it is not written again."""
    audit = audit_file(tmp_path)
    audit.open()
    audit.append(entries([1]))
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        monkeypatch.setattr(os, "write", fails)
        return write(descriptor, bytes(data)[: len(data) // 2])

    def fails(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    batch = entries(range(2, 9))
    with pytest.raises(OSError, match="No space left"):
        audit.append(batch)
    with pytest.raises(OSError, match="No space left"):
        audit.append(batch)
    monkeypatch.setattr(os, "write", full)  # a part of what says that a line is torn
    with pytest.raises(OSError, match="No space left"):
        audit.append(batch)
    monkeypatch.setattr(os, "write", write)
    audit.append(batch)
    audit.close()
    report = check(tmp_path)
    assert (report.problem, report.events) == ("", 8)


def test_file_that_is_moved_away_is_followed_by_another_of_the_same_chain(tmp_path: Path) -> None:
    """As the system's log rotation does it; the check reports a deleted file, unless only later ones are checked."""
    audit = audit_file(tmp_path)
    audit.open()
    audit.append(entries([1]))
    os.rename(audit.path, tmp_path / "audit.log-moved")
    audit.append(entries([2]))
    os.unlink(audit.path)
    audit.append(entries([3]))
    os.rename(audit.path, tmp_path / "audit.log-again")
    audit.append(entries([4]))
    audit.close()
    report = check(tmp_path)
    assert "were removed before it" in report.problem  # the one that was deleted
    kept = [tmp_path / "audit.log-again", tmp_path / "audit.log"]
    report = check(tmp_path, files=kept)
    assert (report.problem, report.events) == ("", 2)

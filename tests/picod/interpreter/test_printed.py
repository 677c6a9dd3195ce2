"""Printed text: folded as a terminal shows it, and cut in its middle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from picod.interpreter.printed import LineFolder, Printed, fold
from tests.support.interpreters import interpreter_process, run_code
from tests.support.picod import Executor

LINES = [
    ("plain", "plain"),
    ("10%\r20%\r100%", "100%"),
    ("abc\rx", "xbc"),
    ("abc\r\r\r", "abc"),
    ("\x1b[2K\rfetching", "fetching"),
    ("long line\r\x1b[Kshort", "short"),
    ("old\x1b[2K\rnew", "new"),
    ("\r ██  \r ███ ", " ███ "),
]


@pytest.mark.parametrize(("line", "shown"), LINES)
def test_line_is_what_a_terminal_shows(line: str, shown: str) -> None:
    """Carriage returns begin it anew, erasures erase."""
    assert fold(line) == shown


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_stream_is_folded_however_it_is_cut(step: int) -> None:
    """Lines that end in CR LF stay as they are; characters of several bytes stay whole."""
    data = "a\r\nbar ██\rbar ███\nend\r\r\n".encode() + b"\xff\xfe\rz" + "é\n".encode()
    folder = LineFolder()
    folded = b"".join(folder.feed(data[i : i + step]) for i in range(0, len(data), step)) + folder.finish()
    assert folded == "a\r\nbar ███\nend\nzé\n".encode()


def test_bar_without_end_takes_little_memory() -> None:
    """A million updates of one line are one line."""
    folder = LineFolder()
    size = sum(len(folder.feed(f"\r{n} of many".encode() * 100)) for n in range(10_000))
    assert (size, folder.finish()) == (0, b"9999 of many")


async def test_long_output_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    """The file has all of it; between the two parts stands how much is missing, and where it is."""
    path = tmp_path / "all"
    holds: list[bool] = []
    printed = Printed(
        100,
        path="all",
        max_file=1 << 20,
        open_file=lambda: os.open(path, os.O_WRONLY | os.O_CREAT),
        hold=holds.append,
    )
    whole = "".join(f"line {n} ä\n" for n in range(1000))
    for start in range(0, len(whole.encode()), 7):
        printed.take(whole.encode()[start : start + 7])
    await printed.finish()
    text = json.loads(b'"' + b"".join(printed.as_json()) + b'"')
    assert text.startswith("line 0 ä\nline 1 ä\n")
    assert text.endswith("line 998 ä\nline 999 ä\n")
    assert "bytes left out; all of it is in all" in text
    assert "\ufffd" not in text
    assert printed.fields("stdout") == {"stdout_truncated": True, "stdout_file": "all"}
    assert path.read_text() == whole


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One picod for all tests of this module."""
    with interpreter_process(tmp_path_factory.mktemp("home")) as executor:
        yield executor


@pytest.mark.parametrize("language", ["python", "bash"])
def test_flood_of_a_run_is_in_a_file(picod: Executor, language: str) -> None:
    """30 MB: the answer has the first line and the last, the file every byte."""
    code = "print('first')\nprint(('x' * 99 + '\\n') * 300_000, end='')\nprint('last')"
    if language == "bash":
        code = "echo first; yes $(printf 'x%.0s' {1..99}) | head -n 300000; echo last"
    answer = run_code(picod, code, language=language)
    assert answer["stdout_truncated"] is True
    assert answer["stdout"].startswith("first\nxxx")
    assert answer["stdout"].endswith("xxx\nlast\n")
    assert answer["stdout_file"] in answer["stdout"]
    kept = (picod.workspace / answer["stdout_file"]).read_bytes()
    assert len(kept) == len("first\n") + 300_000 * 100 + len("last\n")
    assert kept.endswith(b"x\nlast\n")


def test_progress_bar_is_its_last_state(picod: Executor) -> None:
    """A bar on stderr does not fill the answer."""
    code = "import sys\nfor n in range(2000): print(f'\\r{n} of 2000', end='', file=sys.stderr)\nprint('done')"
    answer = run_code(picod, code)
    assert (answer["stdout"], answer["stderr"]) == ("done\n", "1999 of 2000")


def test_long_traceback_keeps_first_frames_last_frames_and_the_error(picod: Executor) -> None:
    """Where it began, where it ended, and what was wrong; a text of the error that is too long keeps its end."""
    code = "def down(n):\n    if n: return down(n - 1)\n    raise ValueError('a' * 200_000 + 'the end')\ndown(400)"
    error = run_code(picod, code)["error"]
    trace = "".join(error["traceback"])
    assert "down(400)" in trace
    assert "frames left out" in trace
    assert "raise ValueError" in trace
    assert error["value"].endswith("the end")
    assert trace.rstrip().endswith("the end")
    assert len(trace) < 2 << 20

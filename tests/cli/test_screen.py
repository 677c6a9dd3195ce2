"""How the commands that use a gateway write durations."""

from __future__ import annotations

from operator import itemgetter

import pytest
from rich.console import Console

from gateway.cli.remote.screen import print_table, span, table_of


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.9, "59s"),
        (89, "1m29s"),
        (120, "2m"),
        (11 * 60 + 40, "11m"),
        (3600 + 59, "1h"),
        (3 * 3600 + 5 * 60, "3h5m"),
        (23 * 3600 + 59 * 60, "23h"),
        (86400 * 2 + 3600 * 4, "2d4h"),
        (86400 * 30, "30d"),
    ],
)
def test_duration_is_cut_and_not_rounded_up(seconds: float, text: str) -> None:
    """What is 23 hours and 59 minutes old is not a day old; of few units the next one is shown too."""
    assert span(seconds) == text


def test_short_cells_are_shown_whole_beside_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow the terminal is that a sentence has to be cut for."""
    monkeypatch.setenv("COLUMNS", "80")
    row = {"NAME": "code-interpreters/default/interpreter", "MODE": "fixed", "READY": 2, "WHY": "because " * 40}
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(table_of([row], {name: itemgetter(name) for name in row}))
    head, line = shown.get().splitlines()
    assert head.split() == ["NAME", "MODE", "READY", "WHY"]
    assert line.split()[:3] == ["code-interpreters/default/interpreter", "fixed", "2"]
    assert len(line.rstrip()) <= 80
    assert line.rstrip().endswith("…")


def test_terminal_narrower_than_the_titles_shows_the_whole_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which it wraps; a table would have columns without anything in them."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    row = {"ID": "607597ec-f6d3-43a8-b369-345041f9ba1a", "STATE": "active", "RUNTIME": "default/x", "LAST USE": "3s"}
    columns = {name: itemgetter(name) for name in row}
    for width, whole in ((20, True), (100, True), (40, False)):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table([row], columns)
        shown = capsys.readouterr().out
        assert all(cell in shown for cell in row.values()) is whole

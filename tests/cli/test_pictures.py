"""Pictures of `wakegate code`: inline on a terminal that can show them, else a file; nothing of a sandbox's own."""

from __future__ import annotations

from base64 import b64decode, b64encode
from pathlib import Path

import pytest

from gateway.cli.remote.pictures import Pictures, Way, iterm, kitty, way_of

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
JPEG = b"\xff\xd8\xff" + bytes(100)


@pytest.mark.parametrize(
    ("environ", "way"),
    [
        ({"TERM": "xterm-256color"}, Way.SAVE),
        ({"TERM": "xterm-kitty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Way.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1", "TERM_PROGRAM": "vscode"}, Way.SAVE),
        ({"TERM": "xterm-ghostty"}, Way.KITTY),
        ({"TERM_PROGRAM": "ghostty"}, Way.KITTY),
        ({"KONSOLE_VERSION": "220401"}, Way.KITTY),
        ({"KONSOLE_VERSION": "211200"}, Way.SAVE),
        ({"KONSOLE_VERSION": "9" * 5000}, Way.SAVE),
        ({"TERM_PROGRAM": "iTerm.app"}, Way.ITERM),
        ({"TERM_PROGRAM": "WezTerm"}, Way.ITERM),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, Way.ITERM),
        ({"TERM_PROGRAM": "Apple_Terminal"}, Way.SAVE),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "1"}, Way.SAVE),
        ({"TERM": "screen", "LC_TERMINAL": "iTerm2"}, Way.SAVE),
        ({}, Way.SAVE),
    ],
)
def test_environment_tells_what_a_terminal_can_show(environ: dict[str, str], way: Way) -> None:
    """And a pipe shows nothing, wherever it was started."""
    assert way_of(environ, on_terminal=True) is way
    assert way_of(environ, on_terminal=False) is Way.SAVE


def test_protocols_carry_the_picture_whole() -> None:
    """Kitty's in pieces of at most 4096 characters, the last of which says that it is; iTerm2's in one."""
    text = kitty(PNG)
    pieces = [piece.removeprefix("\x1b_G").partition(";") for piece in text.rstrip("\n").split("\x1b\\")[:-1]]
    assert [head for head, _, _ in pieces] == ["f=100,a=T,q=2,m=1", "m=1", "m=1", "m=0"]
    assert all(len(data) <= 4096 for _, _, data in pieces)
    assert b64decode("".join(data for _, _, data in pieces)) == PNG
    head, _, data = iterm(PNG).partition(":")
    assert head == f"\x1b]1337;File=inline=1;size={len(PNG)};width=auto"
    assert b64decode(data.removesuffix("\a\n")) == PNG


def test_what_cannot_be_shown_is_saved_and_what_is_no_picture_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A JPEG on kitty, what is too large, and the magic of a type decide; a folder that is not there is made."""
    shown = Pictures(Way.KITTY, tmp_path / "new")
    assert shown.show("image/png", b64encode(PNG).decode())
    assert capsys.readouterr().out.startswith("\x1b_G")
    assert shown.show("image/jpeg", b64encode(JPEG).decode())
    assert shown.show("image/png", b64encode(PNG + bytes(8 << 20)).decode())
    assert capsys.readouterr().out == ""
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == ["wakegate-1.jpg", "wakegate-2.png"]
    for hostile in ("!", "\x1b]0;owned\a", b64encode(b"\x1b]0;owned\a").decode(), b64encode(JPEG).decode()):
        assert not shown.show("image/png", hostile)
    assert capsys.readouterr().out == ""

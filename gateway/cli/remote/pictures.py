"""Pictures on a terminal: inline where it can show them, else as files under names of our own.

What a terminal can is told by its environment. To ask it (kitty's query, DA1 for sixel) would need raw mode and wait
for an answer that most never send. Not inside of tmux or screen: they inherit the environment of the terminal around
them and drop, or print, what they do not know. No sixel: it would need each picture decoded here, and a sandbox's
pictures are hostile input.
"""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from gateway.cli.remote.screen import note

# Type -> ending, and how such a file begins.
KINDS = {"image/png": ("png", b"\x89PNG\r\n\x1a\n"), "image/jpeg": ("jpg", b"\xff\xd8\xff")}
_KITTY_CHUNK = 4096  # characters of base64 that one escape sequence of its protocol may have
_MOST_INLINE_BYTES = 8 << 20  # a terminal holds what it shows in memory; what is larger becomes a file
_OF_ITERM = {"iTerm.app", "WezTerm", "mintty", "WarpTerminal", "rio"}
_OF_KITTY = {"ghostty"}
_KONSOLE = 220_400  # the first version that knows kitty's protocol


class Way(StrEnum):
    """How pictures are shown."""

    AUTO = "auto"
    KITTY = "kitty"
    ITERM = "iterm"
    SAVE = "save"


def way_of(environ: Mapping[str, str], *, on_terminal: bool) -> Way:
    """The way that the terminal of this environment understands; SAVE where none is known."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if not on_terminal or "TMUX" in environ or "STY" in environ or term.startswith(("screen", "tmux", "dumb")):
        return Way.SAVE
    konsole = environ.get("KONSOLE_VERSION", "")
    if (
        program in _OF_KITTY
        or term in ("xterm-kitty", "xterm-ghostty")
        or (not program and "KITTY_WINDOW_ID" in environ)  # also where an editor's terminal was started from kitty
        or (konsole.isascii() and konsole.isdigit() and len(konsole) < 10 and int(konsole) >= _KONSOLE)
    ):
        return Way.KITTY
    if program in _OF_ITERM or environ.get("LC_TERMINAL") == "iTerm2":  # the latter goes over ssh
        return Way.ITERM
    return Way.SAVE


class Pictures:
    """Shows pictures in this way, which is not AUTO, and saves in the folder what cannot be shown."""

    def __init__(self, way: Way, folder: Path) -> None:
        self._way, self._folder, self._number = way, folder, 0

    def show(self, kind: str, encoded: str) -> bool:
        """False for what is no such picture: a sandbox may say anything. Raises OSError for a folder that is none."""
        ending, magic = KINDS[kind]
        # Not validated: old versions of IPython break the lines of base64, as MIME does.
        try:
            data = b64decode(encoded, validate=False)
        except (Base64Error, ValueError):
            return False
        # By its first bytes: the type is the sandbox's word, and a terminal that draws pictures has decoders to attack.
        if not data.startswith(magic):
            return False
        small = len(data) <= _MOST_INLINE_BYTES
        if small and self._way is Way.KITTY and ending == "png":  # it takes no other format that is compressed
            sys.stdout.write(kitty(data))
        elif small and self._way is Way.ITERM:
            sys.stdout.write(iterm(data))
        else:
            self._save(data, ending)
        sys.stdout.flush()
        return True

    def _save(self, data: bytes, ending: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            self._number += 1
            path = self._folder / f"wakegate-{self._number}.{ending}"
            try:
                with open(path, "xb") as file:  # never over a file that is there
                    file.write(data)
            except FileExistsError:
                continue
            note(f"saved {path}")
            return


def kitty(png: bytes) -> str:
    """A PNG in the graphics protocol of kitty. Base64 made here: what the sandbox sent goes to no terminal."""
    text = b64encode(png).decode()
    pieces = [text[start : start + _KITTY_CHUNK] for start in range(0, len(text), _KITTY_CHUNK)]
    last = len(pieces) - 1
    # q=2: no answers, which would be read as if they had been typed.
    heads = ("f=100,a=T,q=2," if number == 0 else "" for number in range(len(pieces)))
    lines = (
        f"\x1b_G{head}m={int(n < last)};{piece}\x1b\\"
        for n, (head, piece) in enumerate(zip(heads, pieces, strict=True))
    )
    return "".join(lines) + "\n"


def iterm(data: bytes) -> str:
    """A picture in iTerm2's protocol, for a terminal at most as wide as it is."""
    return f"\x1b]1337;File=inline=1;size={len(data)};width=auto:{b64encode(data).decode()}\a\n"

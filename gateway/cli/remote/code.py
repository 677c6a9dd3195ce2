"""code: run code in a session. Text goes to standard output, pictures into the terminal or into files."""

from __future__ import annotations

import os
import sys
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import SessionId, over_api
from gateway.cli.remote.screen import note, plain_lines
from wakegate_client import Client

_PNG = b"\x89PNG\r\n\x1a\n"
_PICTURES = {"image/png": ("png", _PNG), "image/jpeg": ("jpg", b"\xff\xd8\xff")}
_KITTY_CHUNK = 4096  # characters of base64 that one escape sequence of its protocol may have
_FAILED = 1


@over_api
def code(
    gateway: Client,
    session: SessionId,
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="The code; - or nothing: standard input.")] = "-",
    text: Annotated[str, typer.Option("--command", "-c", metavar="CODE", help="The code itself.")] = "",
    language: Annotated[str, typer.Option(help="python or bash.")] = "python",
    save: Annotated[Path, typer.Option(help="The folder for pictures that the terminal cannot show.")] = Path(),
) -> None:
    """Run code in a session's interpreter, which keeps its variables from one call to the next.

    The exit status is 0, or 1 if the code raised an error.

    \b
    wakegate code ID -c 'x = 20'
    echo 'print(x + 1)' | wakegate code ID
    """
    source = text or (sys.stdin.read() if file == "-" else Path(file).read_text())
    # For a program its bytes as they are; a terminal would obey what code that a model wrote prints.
    raw = not sys.stdout.isatty()
    pictures = _Pictures(save)
    failed = False
    body = {"code": source, "language": language, "stream": True}
    with gateway.events("POST", "/api/run_code", session, json=body) as events:
        for event in events:
            if event.name in ("stdout", "stderr"):
                stream = sys.stdout if event.name == "stdout" else sys.stderr
                text = str(event.data["text"])
                stream.write(text if raw else plain_lines(text))
                stream.flush()
            elif event.name == "result":
                _show_result(event.data["data"], pictures, raw=raw)
            elif event.name == "error":
                failed = True
                for line in event.data["traceback"] or [f"{event.data['name']}: {event.data['value']}"]:
                    print(plain_lines(str(line)), file=sys.stderr)
            elif event.name == "exit":
                failed = failed or bool(event.data.get("exit_code"))
                if event.data.get("notice"):
                    note(str(event.data["notice"]))
    raise typer.Exit(_FAILED if failed else 0)


def _show_result(data: Mapping[str, Any], pictures: _Pictures, *, raw: bool) -> None:
    for kind, (ending, magic) in _PICTURES.items():
        if kind in data and pictures.show(str(data[kind]), ending, magic):
            return
    if "text/plain" in data:
        text = str(data["text/plain"])
        print(text if raw else plain_lines(text))


class _Pictures:
    """Shows pictures where the terminal can, else saves them under names of our own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        term = os.environ.get("TERM_PROGRAM", "")
        self._iterm = sys.stdout.isatty() and term in ("iTerm.app", "WezTerm")
        self._kitty = sys.stdout.isatty() and ("KITTY_WINDOW_ID" in os.environ or term == "ghostty")
        self._number = 0

    def show(self, encoded: str, ending: str, magic: bytes) -> bool:
        """False for what is no such picture: a sandbox may say anything."""
        # Not validated: old versions of IPython break the lines of base64, as MIME does.
        try:
            data = b64decode(encoded, validate=False)
        except (Base64Error, ValueError):
            return False
        # By its first bytes: the type is the sandbox's word, and a terminal that draws pictures has decoders to attack.
        if not data.startswith(magic):
            return False
        # Base64 made here, since what the sandbox sent goes to no terminal.
        from base64 import b64encode

        text = b64encode(data).decode()
        if self._kitty and ending == "png":
            pieces = [text[start : start + _KITTY_CHUNK] for start in range(0, len(text), _KITTY_CHUNK)]
            for number, piece in enumerate(pieces):
                head = "f=100,a=T," if number == 0 else ""
                more = int(number < len(pieces) - 1)
                sys.stdout.write(f"\x1b_G{head}m={more};{piece}\x1b\\")
            print()
        elif self._iterm:
            print(f"\x1b]1337;File=inline=1;size={len(data)}:{text}\a")
        else:
            self._save(data, ending)
        return True

    def _save(self, data: bytes, ending: str) -> None:
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

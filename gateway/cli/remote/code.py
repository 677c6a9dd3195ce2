"""code: run code in a session. Text goes to standard output, pictures into the terminal or into files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import SessionId, over_api
from gateway.cli.remote.pictures import KINDS, Pictures, Way, way_of
from gateway.cli.remote.screen import note, plain_lines
from gateway.core.errors import SettingsError
from wakegate_client import Client

_FAILED = 1


@over_api
def code(
    gateway: Client,
    session: SessionId,
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="The code; - or nothing: standard input.")] = "-",
    text: Annotated[
        str | None, typer.Option("--command", "-c", metavar="CODE", help="The code itself.", show_default=False)
    ] = None,
    language: Annotated[str, typer.Option(help="python or bash.")] = "python",
    save: Annotated[Path, typer.Option(help="The folder for pictures that the terminal cannot show.")] = Path(),
    pictures: Annotated[
        Way, typer.Option(help="auto: in the terminal where its environment says that it can, else saved.")
    ] = Way.AUTO,
) -> None:
    """Run code in a session's interpreter, which keeps its variables from one call to the next.

    The exit status is 0, or 1 if the code raised an error.

    \b
    wakegate code ID -c 'x = 20'
    echo 'print(x + 1)' | wakegate code ID
    """
    source = _source(file) if text is None else text
    # For a program its bytes as they are; a terminal would obey what code that a model wrote prints.
    raw = not sys.stdout.isatty()
    shown = Pictures(way_of(os.environ, on_terminal=not raw) if pictures is Way.AUTO else pictures, save)
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
                _show_result(event.data["data"], shown, raw=raw)
            elif event.name == "error":
                failed = True
                for line in event.data["traceback"] or [f"{event.data['name']}: {event.data['value']}"]:
                    print(plain_lines(str(line)), file=sys.stderr)
            elif event.name == "exit":
                failed = failed or bool(event.data.get("exit_code"))
                if event.data.get("notice"):
                    note(str(event.data["notice"]))
    raise typer.Exit(_FAILED if failed else 0)


def _source(file: str) -> str:
    """The code in a file or on standard input. Raises SettingsError for what is not UTF-8."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode("utf-8-sig")  # without the mark that Windows puts before it
    except UnicodeDecodeError as error:
        where = "standard input" if file == "-" else file
        raise SettingsError([f"{where}: is no code in UTF-8: {error.reason} at byte {error.start}"]) from None


def _show_result(data: Mapping[str, Any], pictures: Pictures, *, raw: bool) -> None:
    for kind in KINDS:
        if kind in data and pictures.show(kind, str(data[kind])):
            return
    if "text/plain" in data:
        text = str(data["text/plain"])
        print(text if raw else plain_lines(text))

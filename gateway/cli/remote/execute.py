"""run and exec: a command in a new session, or in one that is there, as if it ran here."""

from __future__ import annotations

import os
import signal
import sys
import threading
from base64 import b64decode
from contextlib import suppress
from typing import Annotated, Any, Protocol

import typer

from gateway.cli.remote.connection import SessionId, Target, over_api
from gateway.cli.remote.screen import note, plain
from gateway.cli.remote.sessions import Runtime
from gateway.cli.remote.terminal import attach, command_line
from gateway.core.errors import SettingsError
from wakegate_client import APIError, Client, UnreachableError
from wakegate_client.calls import in_sandbox

_CHUNK_BYTES = 64 << 10


def _words(command: list[str]) -> list[str]:
    """The command without the `--` that kubectl has before it, as people are used to."""
    words = command[1:] if command[0] == "--" else command
    if not words or not words[0]:
        raise typer.BadParameter("there is no command behind it" if not words else "the command is an empty word")
    return words


Command = Annotated[
    list[str],
    typer.Argument(metavar="CMD...", show_default=False, callback=_words, help="The command and its words."),
]
Interactive = Annotated[bool, typer.Option("--interactive", "-i", help="Send standard input to it.")]
Tty = Annotated[bool, typer.Option("--tty", "-t", help="Run it on a terminal; with -i.")]
WorkDir = Annotated[str, typer.Option("--workdir", "-w", metavar="PATH", help="Where it runs.")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="May be repeated.")]


@over_api
def run(
    gateway: Client,
    target: Target,
    command: Command,
    runtime: Runtime = "",
    keep: Annotated[bool, typer.Option("--keep", help="Do not end the session; its id is printed last.")] = False,
    interactive: Interactive = False,
    tty: Tty = False,
    workdir: WorkDir = "",
    env: Env = None,
) -> None:
    """Run a command in a new session, show what it prints, and end the session.

    The exit status is the command's; 125 if it could not be run.

    \b
    wakegate run python3 -c 'print(1)'
    cat data.csv | wakegate run -i wc -l
    wakegate run -it bash
    """
    session = gateway.create_session(runtime or None)["id"]
    try:
        status = _execute(gateway, target, session, command, interactive, tty, workdir, env)
    finally:
        # After Ctrl-C and errors as well: nobody knows the id of this session, which would stay until its timeout.
        if keep:
            note(f"session {session}")
        else:
            gateway.end_session(session)
    raise typer.Exit(status)


@over_api
def execute(
    gateway: Client,
    target: Target,
    session: SessionId,
    command: Command,
    interactive: Interactive = False,
    tty: Tty = False,
    workdir: WorkDir = "",
    env: Env = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running; print its id.")] = False,
) -> None:
    """Run a command in a session, which wakes if it sleeps.

    The exit status is the command's; 125 if it could not be run. Ctrl-C goes to the command.

    \b
    wakegate exec ID ls -l
    wakegate exec -it ID python3
    wakegate exec -i ID tar x < files.tar
    wakegate exec -d ID python3 -m http.server 8000
    """
    if detach:
        # Not the stream below, which is answered to the end of the command: this is answered with the id, at once.
        body = {"command": command, "working_dir": workdir, "env": dict(_variable(each) for each in env or ())}
        print(plain(gateway.send(in_sandbox("POST", session, "/api/processes", json=body))["id"]))
        return
    raise typer.Exit(_execute(gateway, target, session, command, interactive, tty, workdir, env))


def _execute(
    gateway: Client, target: Target, session: str, command: list[str], interactive: bool, tty: bool, workdir: str,
    env: list[str] | None,
) -> int:  # fmt: skip
    variables = dict(_variable(each) for each in env or ())
    if tty:
        if not (interactive and sys.stdin.isatty()):
            raise SettingsError(["-t: goes with -i, and needs a terminal on standard input"])
        return attach(gateway, target, session, command=command_line(command, variables), cwd=workdir)
    return _stream(gateway, session, command, interactive, workdir, variables)


class _Output(Protocol):
    """Where bytes are written, as sys.stdout.buffer."""

    def write(self, data: bytes, /) -> Any: ...
    def flush(self) -> None: ...


def _stream(
    gateway: Client, session: str, command: list[str], interactive: bool, workdir: str, env: dict[str, str]
) -> int:
    """Run it on pipes: its bytes come here as they are, standard input goes there with `interactive`."""
    body = {"command": command, "env": env, "stdin": interactive, "working_dir": workdir or "."}
    outputs: dict[str, _Output] = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    process = ""
    with (
        _Interrupts(gateway, session) as interrupts,
        gateway.events("POST", "/api/processes/stream", session, json=body) as events,
    ):
        for event in events:
            if event.name == "start":
                process = interrupts.process = str(event.data["id"])
                if interactive:
                    # A daemon: a read from a terminal ends with a key, which may not come once the command is over.
                    threading.Thread(target=_feed, args=(gateway, session, process), daemon=True).start()
            elif event.name in outputs:
                # In base64: what a command prints need not be UTF-8, and an event is JSON. Flushed at each piece, as
                # its writer did not wait for more either; a progress bar would come all at once.
                outputs[event.name].write(b64decode(event.data["data"]))
                outputs[event.name].flush()
            elif event.name == "exit":
                break
        else:
            raise UnreachableError("the command's output broke off; it may run on")
    # Its entry in the list of processes, which picod keeps for who comes back; nobody comes back to this one. That it
    # could not be deleted is no reason to lose the status.
    with suppress(APIError, UnreachableError):
        gateway.send(in_sandbox("DELETE", session, f"/api/processes/{process}"))
    return int(event.data["exit_code"])


def _feed(gateway: Client, session: str, process: str) -> None:
    """Send standard input, as it comes, until it ends or the process has."""
    path = f"/api/processes/{process}/stdin"
    with suppress(APIError, UnreachableError, OSError, ValueError):
        while chunk := os.read(sys.stdin.fileno(), _CHUNK_BYTES):
            gateway.send(in_sandbox("POST", session, path, content=chunk, slow=True))
        gateway.send(in_sandbox("POST", session, path, content=b"", params={"eof": "true"}))


class _Interrupts:
    """While it is entered, the first Ctrl-C goes to the process, and the second ends it and this command.

    A handler, since KeyboardInterrupt would end the stream that it is raised in.
    """

    def __init__(self, gateway: Client, session: str) -> None:
        self._gateway, self._session, self._count = gateway, session, 0
        self.process = ""

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, *_: object) -> None:
        self._count += 1
        if self._count > 1 or not self.process:
            self._send("DELETE", "")
            raise KeyboardInterrupt
        threading.Thread(target=self._send, args=("POST", "/signal"), daemon=True).start()

    def _send(self, method: str, tail: str) -> None:
        if self.process:
            with suppress(APIError, UnreachableError):
                path = f"/api/processes/{self.process}{tail}"
                self._gateway.send(in_sandbox(method, self._session, path, json={"signal": "INT"} if tail else None))


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SettingsError([f"--env {text}: expected NAME=VALUE"])
    return name, value

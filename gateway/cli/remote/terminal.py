"""shell: this terminal, connected to one in a session's sandbox. Raw mode, resizes, detaching and coming back."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from gateway.cli.remote.connection import SessionId, Target, over_api, tls_of
from gateway.cli.remote.screen import note, plain
from gateway.core.errors import SettingsError
from wakegate_client import APIError, Client, UnreachableError
from wakegate_client.calls import in_sandbox

DETACH = b"\x1d"  # Ctrl-], as telnet's
_DETACHED = -1
_READ_BYTES = 4096


@over_api
def shell(
    gateway: Client,
    target: Target,
    session: SessionId,
    attach_to: Annotated[
        str, typer.Option("--attach", metavar="TERMINAL", help="Come back to this terminal; `last`: the newest.")
    ] = "",
    keep: Annotated[bool, typer.Option("--list", help="List the session's terminals.")] = False,
) -> None:
    """Open a terminal in a session, which wakes if it sleeps. Ctrl-] leaves it running.

    \b
    wakegate shell ID
    wakegate shell ID --attach last
    """
    if keep or attach_to == "last":
        found = gateway.send(in_sandbox("GET", session, "/api/terminals"))["terminals"]
        if keep:
            for each in found:
                print(plain(each["id"]))
            return
        if not found:
            raise SettingsError([f"session {session} has no terminal to come back to"])
        attach_to = str(found[-1]["id"])
    if not sys.stdin.isatty():
        raise SettingsError(["shell needs a terminal on standard input; `wakegate exec` runs a command without one"])
    raise typer.Exit(attach(gateway, target, session, terminal=attach_to))


def command_line(command: list[str], env: Mapping[str, str]) -> str:
    """A command for the shell that starts a terminal."""
    variables = [f"{name}={value}" for name, value in env.items()]
    return "exec " + shlex.join((["env", *variables] if variables else []) + command)


def attach(
    gateway: Client, target: Target, session: str, *, terminal: str = "", command: str = "", cwd: str = ""
) -> int:
    """Connect this terminal until the other ends or is left; returns its exit status, 0 when it was left.

    A `command` that is left is ended: nobody knows its terminal. Raises APIError, UnreachableError.
    """
    from websockets.exceptions import InvalidStatus, WebSocketException
    from websockets.sync.client import connect

    size = _window()
    query = {"cols": size.columns, "rows": size.lines, "id": terminal, "command": command, "cwd": cwd}
    url = gateway.terminal_url(session, "?" + urlencode({name: value for name, value in query.items() if value}))
    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    try:
        with connect(url, additional_headers=headers, ssl=tls_of(target), max_size=None, proxy=None) as socket:
            ended = _Attached(socket).run()
    except InvalidStatus as error:
        raise APIError(error.response.status_code, "", _reason(error.response.body)) from error
    except (OSError, WebSocketException) as error:
        raise UnreachableError(f"{gateway.url}: {error}") from error
    if ended.status != _DETACHED:
        return ended.status
    if command:
        with suppress(APIError, UnreachableError):
            gateway.send(in_sandbox("DELETE", session, f"/api/terminals/{ended.terminal}"))
        return 130
    note(f"\r\ndetached; `wakegate shell {session} --attach {ended.terminal}` comes back".strip())
    return 0


def _reason(body: bytes | bytearray | None) -> str:
    try:
        return str(json.loads(body or b"")["error"])
    except (ValueError, KeyError, TypeError):
        return "the terminal was refused"


def _window() -> os.terminal_size:
    """The size of this terminal, and not what COLUMNS and LINES say: they are of the shell that started us."""
    try:
        return os.get_terminal_size(sys.stdin.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()


class _Attached:
    """Both directions: keys from here in this thread, what is printed there in another."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.status = _DETACHED
        self.terminal = ""
        # select() waits for descriptors alone, so what else happens becomes a byte in a pipe: e, the other side has
        # ended; r, the window's size changed. A time-out instead would look ten times a second, for nothing.
        self._woken, self._wake = os.pipe()

    def run(self) -> _Attached:
        """Until one side ends. Raises UnreachableError if the connection broke."""
        printing = threading.Thread(target=self._print, daemon=True)
        # In raw mode before the first byte comes, or that is echoed; the handler goes when the terminal is ours again.
        before = signal.signal(signal.SIGWINCH, lambda *_: os.write(self._wake, b"r"))
        try:
            with _raw():
                printing.start()
                self._type()
        finally:
            signal.signal(signal.SIGWINCH, before)
        return self

    def _type(self) -> None:
        stdin = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([stdin, self._woken], [], [])
            if self._woken in ready:
                if b"e" in os.read(self._woken, 64):
                    return
                size = _window()
                self._socket.send(json.dumps({"type": "resize", "cols": size.columns, "rows": size.lines}))
            if stdin in ready:
                typed = os.read(stdin, _READ_BYTES)
                # In one read with other keys where text is pasted: what stands before it is still typed.
                before, detach, _ = typed.partition(DETACH)
                if before:
                    self._socket.send(before)
                if detach or not typed:
                    return

    def _print(self) -> None:
        from websockets.exceptions import ConnectionClosed

        out = sys.stdout.fileno()
        with suppress(ConnectionClosed, OSError):
            for message in self._socket:
                if isinstance(message, bytes):
                    _write_all(out, message)
                    continue
                told = json.loads(message)
                if told.get("type") == "ready":
                    self.terminal = plain(told["id"])
                elif told.get("type") == "exit":
                    self.status = int(told["exit_code"])
        # Raw mode ends the line for nobody.
        if self.status == _DETACHED and self._socket.close_reason:
            _write_all(2, f"\r\nwakegate: {plain(self._socket.close_reason)}\r\n".encode())
        os.write(self._wake, b"e")


def _write_all(descriptor: int, data: bytes) -> None:
    # os.write takes a part where the terminal is slow, or is held by Ctrl-S; print() would keep the rest in a buffer
    # of this process and show escape sequences torn in two.
    while data:
        data = data[os.write(descriptor, data) :]


@contextmanager
def _raw() -> Iterator[None]:
    """Every key as it is typed, Ctrl-C too; the terminal as it was at the end."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    try:
        tty.setraw(stdin, termios.TCSADRAIN)  # the usual one would throw away what was typed ahead
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)

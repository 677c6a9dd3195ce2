"""A terminal in a real sandbox, through a real gateway, with a real WebSocket client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.serve import Server, serve

LIMIT = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("terminal") / "state", "--warm-pool", "1") as running:
        yield running


def attach(server: Server, session: str, query: str = "") -> ClientConnection:
    """By path alone, as a browser does."""
    url = server.url.replace("http", "ws") + f"/v1/sessions/{session}/terminal{query}"
    return connect(url, proxy=None, max_size=None)


def ready(socket: ClientConnection) -> dict[str, Any]:
    """Read the first frame, which must be `ready`."""
    told: dict[str, Any] = json.loads(socket.recv(LIMIT))
    assert told["type"] == "ready"
    return told


def until(socket: ClientConnection, text: bytes) -> bytes:
    """Read until the terminal has printed `text`."""
    printed = b""
    while text not in printed:
        message = socket.recv(LIMIT)
        assert isinstance(message, bytes), message
        printed += message
    return printed


def test_terminal_in_a_sandbox_survives_its_connection(server: Server) -> None:
    """A shell with job control in the workspace; a second connection finds the first one's variable and output."""
    session = server.session()
    with attach(server, session, "?cols=132&rows=50") as socket:
        first = ready(socket)
        socket.send(b"export KEPT=still; tty; pwd; stty size; echo d''one\n")
        printed = until(socket, b"done\r\n")
        assert b"/dev/pts/" in printed
        assert b"/workspace\r\n" in printed
        assert b"50 132\r\n" in printed
        assert b"cannot set terminal process group" not in printed
    with attach(server, session, f"?id={first['id']}&offset={first['offset'] + len(printed)}") as socket:
        assert ready(socket)["dropped"] == 0
        socket.send(b"echo $KEPT''here\n")
        until(socket, b"stillhere\r\n")
        socket.send(json.dumps({"type": "signal", "signal": "HUP"}))
        while isinstance(message := socket.recv(LIMIT), bytes):
            pass
        assert json.loads(message)["type"] == "exit"
    state = server.client.get("/api/terminals", headers={"x-session-id": session}).json()
    assert [terminal["state"] for terminal in state["terminals"]] == ["exited"]


def test_terminals_end_with_their_session(server: Server) -> None:
    """The client sees its connection end, and a terminal of another session is not found."""
    session, other = server.session(), server.session()
    with attach(server, session) as socket:
        name = ready(socket)["id"]
        with pytest.raises(Exception, match="HTTP 404"), attach(server, other, f"?id={name}"):
            pass
        assert server.client.delete(f"/v1/sessions/{session}").status_code == 204
        with contextlib.suppress(ConnectionClosed):
            while True:
                socket.recv(LIMIT)
        assert socket.close_code in (1000, 1014)  # the shell's end may or may not have been told before picod's own

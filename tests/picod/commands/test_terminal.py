"""/api/terminal over a real picod with a real WebSocket client: typing, sizes, signals, leaving and coming back."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect

from tests.support.picod import Executor, picod_process, running
from tests.support.waiting import wait_until

LIMIT = 20.0


@pytest.fixture(autouse=True)
def clear(picod: Executor) -> Iterator[None]:
    """Each test ends without terminals."""
    yield
    for terminal in picod.client.get("/api/terminals").json()["terminals"]:
        picod.client.delete(f"/api/terminals/{terminal['id']}")


class Screen:
    """A client of a terminal: what it was told and what was printed."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.printed = bytearray()
        self.ready = self.hear("ready")

    @property
    def id(self) -> str:
        return str(self.ready["id"])

    def hear(self, kind: str) -> dict[str, Any]:
        """The next text frame, which must be of that kind; what is printed before it is kept."""
        deadline = time.monotonic() + LIMIT
        while True:
            message = self.socket.recv(max(0.0, deadline - time.monotonic()))
            if isinstance(message, bytes):
                self.printed += message
                continue
            told: dict[str, Any] = json.loads(message)
            assert told["type"] == kind, told
            return told

    def until(self, text: bytes) -> bytes:
        """Read until it is printed; returns all up to and with it."""
        deadline = time.monotonic() + LIMIT
        while text not in self.printed:
            message = self.socket.recv(max(0.0, deadline - time.monotonic()))
            assert isinstance(message, bytes), message
            self.printed += message
        head, _, self.printed = self.printed.partition(text)
        return bytes(head) + text

    def until_closed(self) -> None:
        """Read what there is until the other side closes."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.socket.recv(LIMIT)

    def type(self, text: str) -> None:
        self.socket.send(text.encode())

    def say(self, **told: Any) -> None:
        self.socket.send(json.dumps(told))


@contextlib.contextmanager
def attach(picod: Executor, query: str = "") -> Iterator[Screen]:
    """Open or reopen a terminal."""
    with unix_connect(str(picod.uds), f"ws://picod/api/terminal{query}", max_size=None) as socket:
        yield Screen(socket)


def test_shell_runs_on_a_terminal_of_its_own(picod: Executor) -> None:
    """What is typed is echoed and run, job control works, and it stands in the workspace."""
    with attach(picod) as screen:
        screen.type("tty; pwd; echo $TERM; set -o | grep monitor; echo d''one\n")
        said = screen.until(b"\r\ndone\r\n").decode()
    assert "/dev/pts/" in said
    assert str(picod.workspace) in said
    assert "xterm-256color" in said
    assert "monitor" in said
    assert "no job control" not in said


def test_size_is_what_was_asked_for_and_follows(picod: Executor) -> None:
    """At the start and after a resize, which sends the program SIGWINCH."""
    with attach(picod, "?cols=100&rows=30") as screen:
        screen.type("stty size; trap 'echo resized' WINCH\n")
        screen.until(b"30 100\r\n")
        screen.say(type="resize", cols=90, rows=20)
        screen.type("stty size\n")
        assert b"20 90\r\n" in screen.until(b"20 90\r\n")
    wait_until(lambda: not picod.client.get("/api/terminals").json()["terminals"][0]["attached"], "its client has left")
    [listed] = picod.client.get("/api/terminals").json()["terminals"]
    assert (listed["cols"], listed["rows"]) == (90, 20)


def test_signals_reach_the_foreground_and_leave_the_shell(picod: Executor) -> None:
    """By the keyboard's control-C and by a message."""
    with attach(picod) as screen:
        screen.type("PS1='<''p>'\n")
        screen.until(b"<p>")
        for by_key in (True, False):
            # It says itself that it runs: a shell's child that is in front but has not become its program yet still
            # has the shell's handlers, and a signal that comes then is lost.
            screen.type("sh -c 'echo nap''ping; exec sleep 300'\n")
            screen.until(b"napping\r\n")
            [terminal] = picod.client.get("/api/terminals").json()["terminals"]
            assert picod.client.get("/api/activity").json()["terminals"] == [screen.id]
            if by_key:
                screen.type("\x03")
            else:
                screen.say(type="signal", signal="INT")
            screen.until(b"<p>")
            screen.type("echo code $?\n")
            screen.until(b"code 130\r\n")
            screen.until(b"<p>")
    assert terminal["pid"] == picod.client.get("/api/terminals").json()["terminals"][0]["pid"]


def test_exit_is_reported_and_the_connection_closes(picod: Executor) -> None:
    """After all that was printed."""
    with attach(picod, "?command=echo%20last;exit%203") as screen:
        assert screen.hear("exit") == {"type": "exit", "exit_code": 3, "signal": None}
        assert screen.printed == b"last\r\n"
        with pytest.raises(ConnectionClosed):
            screen.socket.recv(LIMIT)
        assert screen.socket.close_code == 1000
    with attach(picod, f"?id={screen.id}") as again:
        assert again.hear("exit")["exit_code"] == 3
        assert again.printed == b"last\r\n"


def test_terminal_keeps_running_without_a_client_and_sends_what_was_missed(picod: Executor) -> None:
    """From the offset that the client has, nothing twice and nothing lost."""
    with attach(picod) as screen:
        screen.type("PS1=; read line; echo after $line\n")
        screen.until(b"$line\r\n")
        seen = screen.ready["offset"]
    picod.client.get("/api/terminals")
    with attach(picod, f"?id={screen.id}&offset={seen}") as screen:
        assert (screen.ready["offset"], screen.ready["dropped"]) == (seen, 0)
        screen.until(b"echo after $line\r\n")
        screen.type("this\n")
        screen.until(b"after this\r\n")


def test_latest_client_takes_the_terminal_over(picod: Executor) -> None:
    """The previous client is closed with code 4001; input of the new one arrives."""
    with attach(picod) as first, attach(picod, f"?id={first.id}") as second:
        first.until_closed()
        assert first.socket.close_code == 4001
        second.type("echo h''ere\n")
        second.until(b"here\r\n")
        assert picod.client.get("/api/terminals").json()["terminals"][0]["attached"] is True


def test_flood_reaches_a_slow_client_whole_and_without_a_client_is_bounded(picod: Executor) -> None:
    """An attached client makes the program wait; scrollback keeps the last 256 KiB for one that left."""
    count = 1_000_000
    before = picod.memory()
    with attach(picod, f"?command=seq%20{count}") as screen:
        time.sleep(0.3)  # slow, not stuck: the flood has to wait for us
        assert screen.hear("exit")["exit_code"] == 0
        assert screen.printed == b"".join(b"%d\r\n" % number for number in range(1, count + 1))
    with attach(picod, "?command=read%20x;seq%20300000") as screen:
        screen.type("go\n")
        screen.until(b"go\r\n")
    wait_until(
        lambda: picod.client.get("/api/terminals").json()["terminals"][-1]["state"] == "exited", "the flood is over"
    )
    with attach(picod, f"?id={screen.id}") as again:
        assert again.hear("exit")["exit_code"] == 0
        assert len(again.printed) == 256 << 10
        assert again.printed.endswith(b"\r\n300000\r\n")
        assert again.ready["dropped"] == again.ready["offset"] > 0
    assert picod.memory() - before < 24 << 20


def test_paste_larger_than_the_kernel_holds_arrives_whole(picod: Executor) -> None:
    """And a signal is not stuck behind it."""
    with attach(picod, "?command=stty%20raw%20-echo;echo%20ready;head%20-c%201000000|cksum") as screen:
        screen.until(b"ready")
        screen.socket.send(b"x" * 500_000)
        screen.socket.send(b"x" * 500_000)
        said = screen.until(b" 1000000")
    assert said.strip().split()[0] == b"".join([b"%d" % _cksum(b"x" * 1_000_000)])


def _cksum(data: bytes) -> int:
    """The checksum that cksum(1) prints (POSIX, CRC-32)."""
    crc = 0
    table = []
    for index in range(256):
        value = index << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    length, tail = len(data), b""
    while length:
        tail += bytes([length & 255])
        length >>= 8
    for byte in data + tail:
        crc = ((crc << 8) & 0xFFFFFFFF) ^ table[(crc >> 24) ^ byte]
    return crc ^ 0xFFFFFFFF


def test_delete_ends_all_that_runs_in_it(picod: Executor) -> None:
    """What was sent to the background too."""
    nap = f"300.{int.from_bytes(os.urandom(4), 'big')}"
    with attach(picod) as screen:
        screen.type(f"sleep {nap} & setsid sleep {nap} &\n")
        wait_until(lambda: len(running(nap)) == 2, "both run")
        assert picod.client.delete(f"/api/terminals/{screen.id}").json()["state"] == "exited"
        assert screen.hear("exit")["signal"] == "SIGKILL"
    assert not running(nap)
    assert picod.client.delete(f"/api/terminals/{screen.id}").status_code == 404


@pytest.mark.parametrize(
    "frame",
    ["", "nonsense", "[]", '{"type": "resize", "cols": 0, "rows": 5}', '{"type": "resize", "cols": true, "rows": 5}',
     '{"type": "signal", "signal": "NOPE"}', '{"type": "other"}', "[" * 100_000],
)  # fmt: skip
def test_unknown_text_frame_is_answered_and_changes_nothing(picod: Executor, frame: str) -> None:
    """An unknown text frame gets an `error` frame, and the terminal still works."""
    with attach(picod) as screen:
        screen.socket.send(frame)
        assert screen.hear("error")["error"]
        screen.type("echo s''till\n")
        screen.until(b"still\r\n")


@pytest.mark.parametrize(
    ("query", "status"),
    [("?id=none", 404), ("?cols=0", 400), ("?cols=x", 400), ("?rows=5000", 400), ("?offset=-1", 400),
     ("?cwd=../..", 400), ("?command=%00", 400)],
)  # fmt: skip
def test_wrong_requests_are_refused_before_the_handshake(picod: Executor, query: str, status: int) -> None:
    """With a sentence, and no terminal is left by them."""
    with pytest.raises(InvalidStatus) as refused, attach(picod, query):
        pass
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["error"]
    assert picod.client.get("/api/terminals").json()["terminals"] == []


def test_request_without_a_handshake_is_refused(picod: Executor) -> None:
    """A plain GET gets 426 or 400, and no terminal."""
    assert picod.client.get("/api/terminal").status_code in (400, 426)
    assert picod.client.get("/api/terminals").json()["terminals"] == []


def test_number_of_terminals_is_bounded(picod: Executor) -> None:
    """Seventeen are too many while they all run."""
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(attach(picod))
        with pytest.raises(InvalidStatus, match="429"), attach(picod):
            pass


def test_terminals_leak_nothing(picod: Executor) -> None:
    """Descriptors are as many after a few terminals as before, and shells end with picod."""
    with picod_process("--auth", "none") as own:
        with attach(own) as screen:
            own.client.delete(f"/api/terminals/{screen.id}")
        before = own.descriptors()
        for _ in range(3):
            with attach(own) as screen:
                own.client.delete(f"/api/terminals/{screen.id}")
        wait_until(lambda: own.descriptors() <= before, "descriptors are given back")
        with attach(own) as screen:
            pid = screen.ready["pid"]
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the shell has ended")

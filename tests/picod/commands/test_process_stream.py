"""Processes whose output is streamed: as bytes, whole, on pipes or on a terminal, also after a client left."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.picod import Executor
from tests.support.waiting import wait_until


def _events(reply: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in reply.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def _run(picod: Executor, *command: str, **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    body = {"command": list(command), **fields}
    with picod.client.stream("POST", "/api/processes/stream", json=body, timeout=60) as reply:
        assert reply.status_code == 200, reply.read()
        return list(_events(reply))


def _printed(events: list[tuple[str, dict[str, Any]]], stream: str = "stdout") -> bytes:
    return b"".join(base64.b64decode(data["data"]) for name, data in events if name == stream)


def test_start_comes_first_then_bytes_then_exit(picod: Executor) -> None:
    """Bytes that are no UTF-8 arrive unchanged, and the exit is the last event."""
    events = _run(picod, "sh", "-c", r"printf '\377\000a'; printf err >&2; exit 3")
    assert events[0][0] == "start"
    assert events[0][1]["pid"] > 1
    assert _printed(events) == b"\xff\x00a"
    assert _printed(events, "stderr") == b"err"
    assert events[-1] == ("exit", {"exit_code": 3, "signal": None, "timed_out": False})


def test_output_beyond_the_kept_log_arrives_whole(picod: Executor) -> None:
    """8 MiB are more than the log keeps: the process waits for the client instead."""
    events = _run(picod, "sh", "-c", "head -c 8388608 /dev/zero | tr '\\0' x")
    assert _printed(events) == b"x" * 8388608


def test_timeout_kills_the_process(picod: Executor) -> None:
    """The exit says that it was the timeout."""
    name, data = _run(picod, "sleep", "1000", timeout="200ms")[-1]
    assert (name, data["timed_out"], data["signal"]) == ("exit", True, "SIGKILL")


def test_process_outlives_its_client_and_can_be_joined_by_pid(picod: Executor) -> None:
    """A client that left may join again, and gets what is printed from then on."""
    with picod.client.stream(
        "POST", "/api/processes/stream", json={"command": ["cat"], "stdin": True}, timeout=30
    ) as reply:
        pid = next(_events(reply))[1]["pid"]
    with picod.client.stream("GET", f"/api/processes/{pid}/stream", timeout=30) as reply:
        events = _events(reply)
        assert next(events)[1]["state"] == "running"
        picod.client.post(f"/api/processes/{pid}/stdin?eof=true", content=b"hello")
        rest = list(events)
    assert _printed(rest) == b"hello"
    assert rest[-1][0] == "exit"


def test_terminal_echoes_has_a_size_and_is_resized(picod: Executor) -> None:
    """`terminal` runs it on a pseudo-terminal whose size can change."""
    body = {"command": ["sh"], "terminal": {"cols": 90, "rows": 31}}
    with picod.client.stream("POST", "/api/processes/stream", json=body, timeout=30) as reply:
        events = _events(reply)
        pid = next(events)[1]["pid"]
        picod.client.post(f"/api/processes/{pid}/stdin", content=b"stty size\n")
        seen = b""
        while b"31 90" not in seen:
            seen += base64.b64decode(next(events)[1]["data"])
        assert picod.client.post(f"/api/processes/{pid}/resize", json={"cols": 44, "rows": 12}).status_code == 200
        picod.client.post(f"/api/processes/{pid}/stdin", content=b"stty size; exit 7\n")
        rest = list(events)
    assert b"12 44" in _printed(rest, "pty")
    assert rest[-1][1]["exit_code"] == 7


@pytest.mark.parametrize("cwd", ["/", "/tmp"])
def test_working_directory_may_be_anywhere(picod: Executor, cwd: str) -> None:
    """An absolute working directory is the sandbox's own, not one below the workspace."""
    assert _printed(_run(picod, "pwd", working_dir=cwd)).decode().strip() == cwd


def test_missing_directories_and_programs_are_refused(picod: Executor) -> None:
    """400 with the reason, and nothing is created."""
    for fields in ({"working_dir": "/no/such"}, {"working_dir": "/proc/self"}, {"command": ["no-such-program"]}):
        reply = picod.client.post("/api/processes/stream", json={"command": ["pwd"], **fields})
        assert reply.status_code == 400, reply.text
    reply = picod.client.post("/api/processes/stream", json={"command": ["sh"], "terminal": {"cols": 0, "rows": 5}})
    assert reply.status_code == 400


def test_ended_process_no_longer_holds_its_terminal(picod: Executor) -> None:
    """A child left on the terminal gets SIGHUP when the command that owned it has ended."""
    body = {"command": ["sh", "-c", "sleep 1000 & echo $!"], "terminal": {"cols": 80, "rows": 24}}
    with picod.client.stream("POST", "/api/processes/stream", json=body, timeout=30) as reply:
        events = list(_events(reply))
    child = int(_printed(events, "pty").decode().split()[0])
    wait_until(lambda: not _lives(child), "the child to end with its terminal")


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

"""Runs that are followed: events as they happen, leaving, coming back, and memory that stays flat."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.support.interpreters import Event, events, interpreter_process, printed
from tests.support.picod import Executor, running
from tests.support.waiting import wait_until

UNTIL_GO = "echo first; while [ ! -e go ]; do sleep 0.01; done; echo second >&2; exit 3"


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One picod for all tests of this module."""
    with interpreter_process(tmp_path_factory.mktemp("home")) as executor:
        yield executor


@pytest.fixture(autouse=True)
def no_leftovers(picod: Executor) -> None:
    """Each test creates its own `go` file, for which its command waits."""
    (picod.workspace / "go").unlink(missing_ok=True)


def follow(picod: Executor, path: str, body: Mapping[str, Any] | None = None, after: str = "") -> list[Event]:
    """All events of a stream, from the request to its end."""
    method = "GET" if body is None else "POST"
    with picod.client.stream(method, path, json=body, headers={"last-event-id": after} if after else {}) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        return list(events(reply))


def start(picod: Executor, body: Mapping[str, Any], path: str = "/api/execute") -> tuple[socket.socket, Event]:
    """A bare connection on which a run has started, and its first event."""
    content = json.dumps({**body, "stream": True}).encode()
    connection = picod.connect()
    head = f"POST {path} HTTP/1.1\r\nhost: picod\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    heard = b""
    while b"event: start" not in heard or not heard.endswith(b"\n\n\r\n"):
        heard += connection.recv(4096)
    # More events may have come already: the first of each field is the first event's.
    lines = [line for line in heard.decode().splitlines() if line.startswith(("id: ", "data: "))]
    fields = dict(line.split(": ", 1) for line in reversed(lines))
    return connection, Event(fields["id"], "start", json.loads(fields["data"]))


def test_output_comes_while_the_command_runs(picod: Executor) -> None:
    """The first line is there before the command can end; streams are told apart; the exit says how it ended."""
    body = {"command": ["sh", "-c", UNTIL_GO], "stream": True}
    with picod.client.stream("POST", "/api/execute", json=body) as reply:
        stream = events(reply)
        begun, first = next(stream), next(stream)
        assert (begun.kind, first.kind, first.data) == ("start", "stdout", {"text": "first\n"})
        (picod.workspace / "go").touch()
        rest = list(stream)
    assert printed(rest, "stderr") == "second\n"
    assert (rest[-1].kind, rest[-1].data["exit_code"]) == ("exit", 3)


def test_code_streams_its_results_and_errors(picod: Executor) -> None:
    """What run_code answers at the end comes event by event, the end with what is known at the end."""
    code = "print('one')\ndisplay(2)\nimport sys; print('three', file=sys.stderr)\n1 / 0"
    heard = follow(picod, "/api/run_code", {"code": code, "stream": True})
    assert (printed(heard), printed(heard, "stderr")) == ("one\n", "three\n")
    assert [event.data for event in heard if event.kind == "result"] == [{"data": {"text/plain": "2"}}]
    assert [event.data["name"] for event in heard if event.kind == "error"] == ["ZeroDivisionError"]
    assert heard[-1].kind == "exit"
    assert heard[-1].data["execution_count"] == 1


def test_bash_streams_too(picod: Executor) -> None:
    """A bash context's output comes as it is printed, and its state is kept as ever."""
    heard = follow(picod, "/api/run_code", {"code": "echo a; b=1; exit 4", "language": "bash", "stream": True})
    assert (printed(heard), heard[-1].data["exit_code"]) == ("a\n", 4)
    assert printed(follow(picod, "/api/run_code", {"code": "echo $b", "language": "bash", "stream": True})) == "1\n"


def test_characters_are_whole_wherever_the_pipe_cuts(picod: Executor) -> None:
    """A character of several bytes never comes in two halves, and what is no UTF-8 is marked."""
    script = "printf 'a\\303'; sleep 0.05; printf '\\244b\\377'"
    assert printed(follow(picod, "/api/execute", {"command": ["sh", "-c", script], "stream": True})) == "aäb\ufffd"


@pytest.mark.parametrize("path", ["/api/execute", "/api/run_code"])
def test_client_that_leaves_ends_its_run(picod: Executor, path: str) -> None:
    """Nobody is there to read: the command and what it started are gone, and a context is free again."""
    token = f"left-{path[-4:]}"
    script = f"echo here; sh -c 'sleep 600; :' {token}"
    body: dict[str, Any] = {"command": ["sh", "-c", script]} if path == "/api/execute" else {"code": f"!{script}"}
    connection, _ = start(picod, body, path)
    wait_until(lambda: bool(running(token)), "the command runs")
    connection.close()
    wait_until(lambda: not running(token), "the command is gone")
    assert follow(picod, "/api/run_code", {"code": "1", "stream": True})[-1].kind == "exit"


def test_background_run_continues_and_is_followed_from_an_event_id(picod: Executor) -> None:
    """Its client leaves and comes back with the last id: nothing twice, nothing missing; meanwhile it is activity."""
    connection, begun = start(picod, {"command": ["sh", "-c", UNTIL_GO], "background": True})
    connection.close()
    run_id = begun.data["run_id"]
    assert picod.client.get("/api/activity").json()["runs"] == [run_id]
    (picod.workspace / "go").touch()
    heard = follow(picod, f"/api/runs/{run_id}", after=begun.id)
    assert [event.id for event in heard] == [f"{run_id}:{n}" for n in range(2, 2 + len(heard))]
    assert (printed(heard), printed(heard, "stderr"), heard[-1].data["exit_code"]) == ("first\n", "second\n", 3)
    assert follow(picod, f"/api/runs/{run_id}", after=heard[-2].id) == heard[-1:]
    activity = picod.client.get("/api/activity").json()
    assert activity == {"busy": False, "processes": [], "terminals": [], "runs": [], "unattended": 0}


def test_same_request_with_an_event_id_does_not_run_twice(picod: Executor) -> None:
    """A client library that repeats its POST when the connection broke gets the rest, not a second run."""
    body = {"command": ["sh", "-c", "echo once | tee -a count"], "stream": True}
    heard = follow(picod, "/api/execute", body)
    again = follow(picod, "/api/execute", body, after=heard[0].id)
    assert again == heard[1:]
    assert (picod.workspace / "count").read_text() == "once\n"


def test_events_that_are_no_longer_kept_are_reported(picod: Executor) -> None:
    """A background run that printed more than is kept tells how much is missing, and how it ended."""
    body = {"command": ["sh", "-c", "yes a line of text | head -c 20000000"], "background": True}
    connection, begun = start(picod, body)
    connection.close()
    run_id = begun.data["run_id"]
    wait_until(lambda: picod.client.get("/api/activity").json()["runs"] == [], "it ended without anybody listening")
    heard = follow(picod, f"/api/runs/{run_id}", after=begun.id)
    assert heard[0].kind == "lost"
    assert heard[0].data["events"] > 0
    assert 1 << 20 < len(printed(heard)) < 20_000_000
    assert heard[-1].data["exit_code"] == 0


def test_stopped_run_reports_that_it_was_stopped(picod: Executor) -> None:
    """DELETE ends a run in the background; its events can still be read."""
    connection, begun = start(picod, {"command": ["sleep", "601"], "background": True})
    connection.close()
    run_id = begun.data["run_id"]
    assert picod.client.delete(f"/api/runs/{run_id}").status_code == 204
    heard = follow(picod, f"/api/runs/{run_id}")
    assert "stopped" in printed(heard, "stderr")
    assert (heard[-1].data["exit_code"], heard[-1].data["signal"]) == (137, "SIGKILL")


def test_timeout_ends_a_streamed_command(picod: Executor) -> None:
    """As in an ordinary answer: 124, and a sentence on stderr."""
    heard = follow(picod, "/api/execute", {"command": ["sleep", "602"], "timeout": "200ms", "stream": True})
    assert "timed out" in printed(heard, "stderr")
    assert heard[-1].data["exit_code"] == 124


def test_slow_client_holds_the_command_and_memory_stays_flat(picod: Executor) -> None:
    """100 MB printed to a client that reads slowly: all of it arrives, and picod's memory stays flat."""
    before = picod.reset_peak()
    connection, _ = start(picod, {"command": ["sh", "-c", "yes some seventy characters of text | head -c 100000000"]})
    received, tail = 0, b""
    while b"event: exit" not in tail:
        data = connection.recv(16 << 10)
        assert data, "the stream ended early"
        received += len(data)
        tail = (tail + data)[-4096:]
    connection.close()
    assert received > 100_000_000
    assert picod.memory("VmHWM") - before < 16 << 20


@pytest.mark.parametrize(
    ("body", "headers", "status", "says"),
    [
        ({"command": ["true"], "stream": "yes"}, {}, 400, "stream"),
        ({"command": ["true"], "stream": False, "background": True}, {}, 400, "background"),
        ({"command": ["true"], "stream": True}, {"last-event-id": "seven"}, 400, "Last-Event-ID"),
        ({"command": ["true"], "stream": True}, {"last-event-id": "abc:1"}, 404, "no run"),
        ({"command": ["no-such-program"], "stream": True}, {}, 400, "not found"),
    ],
)
def test_bad_request_for_a_stream_is_refused(
    picod: Executor, body: dict[str, Any], headers: dict[str, str], status: int, says: str
) -> None:
    """A clear answer that is no stream."""
    reply = picod.client.post("/api/execute", json=body, headers=headers)
    assert reply.status_code == status
    assert says in reply.json()["error"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_gigabyte_streams_with_flat_memory(picod: Executor) -> None:
    """As much as a run may print: every byte comes, and picod's memory does not know how much it was."""
    before = picod.reset_peak()
    command = ["sh", "-c", "yes some seventy characters of text | head -c 1000000000"]
    connection, _ = start(picod, {"command": command, "timeout": "10m"})
    received, tail, buffer = 0, b"", bytearray(1 << 20)
    while b"event: exit" not in tail:
        count = connection.recv_into(buffer)
        assert count, "the stream ended early"
        received += count
        tail = (tail + buffer[max(0, count - 4096) : count])[-4096:]
    connection.close()
    assert received > 1_000_000_000
    assert picod.memory("VmHWM") - before < 16 << 20

"""/api/processes over a real picod: processes that outlive their request, their logs, and their end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.picod import Executor, picod_process, running
from tests.support.waiting import wait_until


@pytest.fixture
def nap() -> str:
    """A sleep's argument like no other, to find its processes by."""
    return f"300.{int.from_bytes(os.urandom(4), 'big')}"


@pytest.fixture(autouse=True)
def clear(picod: Executor) -> Iterator[None]:
    """Each test begins and ends without processes."""
    yield
    for process in picod.client.get("/api/processes").json()["processes"]:
        picod.client.delete(f"/api/processes/{process['id']}")


def start(picod: Executor, *command: str, **fields: Any) -> dict[str, Any]:
    """Start a background process and return the API's description of it."""
    reply = picod.client.post("/api/processes", json={"command": command, **fields})
    assert reply.status_code == 201, reply.text
    process: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"/api/processes/{process['id']}"
    return process


def wait(picod: Executor, process: dict[str, Any], timeout: str = "20s") -> dict[str, Any]:
    """Wait until a process has exited. Returns its description."""
    answer: dict[str, Any] = picod.client.get(f"/api/processes/{process['id']}/wait?timeout={timeout}").json()
    return answer


def logs(picod: Executor, process: dict[str, Any], query: str = "") -> dict[str, Any]:
    """The kept output of a process, with the fields of the API."""
    reply = picod.client.get(f"/api/processes/{process['id']}/logs{query}")
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any, int | None]]:
    """(event, data, id) as they come."""
    event, number = "", None
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            event, number = value, None
        elif name == "id":
            number = int(value)
        elif name == "data":
            yield event, json.loads(value), number


def test_process_outlives_its_request_and_is_listed(picod: Executor, nap: str) -> None:
    """With what it was started with; the answer comes at once."""
    process = start(picod, "sleep", nap, name="nap", working_dir="here")
    assert process["state"] == "running"
    assert (process["exit_code"], process["signal"], process["ended_at"]) == (None, None, None)
    [listed] = picod.client.get("/api/processes").json()["processes"]
    assert listed == process
    assert (listed["name"], listed["command"], listed["working_dir"]) == ("nap", ["sleep", nap], "here")
    assert running(nap) == [listed["pid"]]


def test_wait_answers_with_the_exit_or_when_time_is_up(picod: Executor, nap: str) -> None:
    """`state` tells which of the two it was."""
    assert wait(picod, start(picod, "sleep", nap), "1ms")["state"] == "running"
    ended = wait(picod, start(picod, "sh", "-c", "exit 3"))
    assert (ended["state"], ended["exit_code"], ended["signal"]) == ("exited", 3, None)
    assert ended["ended_at"] >= ended["started_at"]


def test_logs_keep_both_streams_and_continue_from_an_offset(picod: Executor) -> None:
    """Each by name; `next` is where the next look begins."""
    process = start(picod, "sh", "-c", "echo out; echo err >&2")
    wait(picod, process)
    seen = logs(picod, process)
    assert (seen["stdout"], seen["stderr"], seen["dropped"], seen["next"]) == ("out\n", "err\n", 0, 8)
    assert "stderr" not in logs(picod, process, "?stream=stdout")
    later = logs(picod, process, "?offset=6")
    assert len(later["stdout"] + later["stderr"]) == 2


def test_flood_keeps_the_latest_output_in_bounded_memory(picod: Executor) -> None:
    """A megabyte of it; how much went before is said."""
    before = picod.memory()
    process = start(picod, "sh", "-c", "head -c 50000000 /dev/zero | tr '\\0' 'x'; echo end")
    wait(picod, process, "60s")
    seen = logs(picod, process)
    assert seen["stdout"].endswith("xend\n")
    assert len(seen["stdout"]) == 1 << 20
    assert seen["dropped"] == 50_000_004 - (1 << 20)
    assert picod.memory() - before < 16 << 20


def test_follower_sees_output_as_it_comes_and_then_the_exit(picod: Executor) -> None:
    """Server-sent events, with ids from which Last-Event-ID continues."""
    process = start(picod, "sh", "-c", "echo one; read line; echo two >&2; exit 7", stdin=True)
    url = f"/api/processes/{process['id']}/logs?follow=true"
    with picod.client.stream("GET", url) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        seen = events(reply.iter_lines())
        assert next(seen) == ("stdout", {"text": "one\n"}, 4)
        picod.client.post(f"/api/processes/{process['id']}/stdin", content=b"go\n")
        assert list(seen) == [("stderr", {"text": "two\n"}, 8), ("exit", {"exit_code": 7, "signal": None}, 8)]
    with picod.client.stream("GET", url, headers={"last-event-id": "4"}) as reply:
        assert next(events(reply.iter_lines()))[1] == {"text": "two\n"}


def test_exit_comes_after_all_that_was_printed(picod: Executor) -> None:
    """Also when a flood was being held back as the process ended."""
    for _ in range(20):
        process = start(picod, "sh", "-c", "head -c 190000 /dev/zero | tr '\\0' x")
        with picod.client.stream("GET", f"/api/processes/{process['id']}/logs?follow=true") as reply:
            seen = list(events(reply.iter_lines()))
        assert sum(len(data["text"]) for _, data, _ in seen[:-1]) == 190_000
        assert seen[-1][0] == "exit"


def test_characters_cut_by_a_read_arrive_whole(picod: Executor) -> None:
    """Both halves of a euro sign in two writes."""
    code = "import os,sys; os.write(1, b'\\xe2'); sys.stdin.read(1); os.write(1, b'\\x82\\xac')"
    process = start(picod, sys.executable, "-c", code, stdin=True)
    wait_until(lambda: logs(picod, process)["next"] == 1, "the first byte is there")
    with picod.client.stream("GET", f"/api/processes/{process['id']}/logs?follow=true") as reply:
        seen = events(reply.iter_lines())
        assert next(seen)[1] == {"text": ""}
        picod.client.post(f"/api/processes/{process['id']}/stdin", content=b"x")
        assert next(seen)[1] == {"text": "\u20ac"}


def test_stdin_is_written_as_it_comes_until_its_end(picod: Executor) -> None:
    """More than a pipe holds; `eof` ends it."""
    process = start(picod, "wc", "-c", stdin=True)
    url = f"/api/processes/{process['id']}/stdin"
    assert picod.client.post(url, content=bytes(1 << 20)).json() == {"written": 1 << 20}
    assert picod.client.post(url + "?eof=true", content=b"more").json() == {"written": 4}
    wait(picod, process)
    assert int(logs(picod, process)["stdout"]) == (1 << 20) + 4
    late = picod.client.post(url, content=b"x")
    assert (late.status_code, late.json()["code"]) == (409, "STDIN_CLOSED")


def test_stdin_writer_is_let_go_when_the_process_ends(picod: Executor, nap: str) -> None:
    """Also when it waited for room in the pipe."""
    process = start(picod, "sleep", nap, stdin=True)
    url = f"/api/processes/{process['id']}"
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(picod.client.post, f"{url}/stdin", content=bytes(1 << 20))
        picod.client.post(f"{url}/signal", json={"signal": "KILL"})
        assert writing.result(20).status_code == 409


def test_process_without_stdin_refuses_it(picod: Executor, nap: str) -> None:
    """A process that was started without stdin answers 409 NO_STDIN."""
    process = start(picod, "sleep", nap)
    reply = picod.client.post(f"/api/processes/{process['id']}/stdin", content=b"x")
    assert (reply.status_code, reply.json()["code"]) == (409, "NO_STDIN")


@pytest.mark.parametrize("name", ["TERM", "SIGTERM", "term", 15])
def test_signal_reaches_the_process_group(picod: Executor, nap: str, name: object) -> None:
    """By name or number; the exit tells it."""
    process = start(picod, "sh", "-c", f"sleep {nap} & sleep {nap}")
    wait_until(lambda: len(running(nap)) == 2, "both run")
    reply = picod.client.post(f"/api/processes/{process['id']}/signal", json={"signal": name})
    assert reply.status_code == 200
    ended = wait(picod, process)
    assert (ended["exit_code"], ended["signal"]) == (143, "SIGTERM")
    wait_until(lambda: not running(nap), "the whole group ended")


def test_kill_and_delete_reach_what_left_the_group(picod: Executor, nap: str) -> None:
    """A daemon in another session is killed with its process."""
    code = (
        f"import os, time\nif os.fork() == 0:\n  os.setsid()\n  os.execvp('sleep', ['sleep', '{nap}'])\ntime.sleep(300)"
    )
    for end in ("signal", "delete"):
        process = start(picod, sys.executable, "-c", code)
        wait_until(lambda: len(running(nap)) == 1, "the daemon runs")
        if end == "signal":
            picod.client.post(f"/api/processes/{process['id']}/signal", json={"signal": 9})
            assert wait(picod, process)["signal"] == "SIGKILL"
        else:
            assert picod.client.delete(f"/api/processes/{process['id']}").json()["state"] == "exited"
            assert picod.client.get(f"/api/processes/{process['id']}").status_code == 404
        assert not running(nap)


def test_number_of_processes_is_bounded(picod: Executor, nap: str) -> None:
    """Of those that ended the last 32 are kept; when 256 run, the next one is refused with 429."""
    first = start(picod, "true")
    wait(picod, first)
    for _ in range(32):
        wait(picod, start(picod, "true"))
    assert picod.client.get(f"/api/processes/{first['id']}").status_code == 404
    for _ in range(256):
        start(picod, "sleep", nap)
    reply = picod.client.post("/api/processes", json={"command": ["sleep", nap]})
    assert (reply.status_code, reply.json()["code"]) == (429, "TOO_MANY_PROCESSES")


def test_activity_lists_processes_that_keep_the_sandbox_awake(picod: Executor, nap: str) -> None:
    """Those that run, unless they were started not to."""
    assert picod.client.get("/api/activity").json()["busy"] is False
    start(picod, "sleep", nap, keeps_awake=False)
    assert picod.client.get("/api/activity").json()["busy"] is False
    process = start(picod, "sleep", nap)
    said = picod.client.get("/api/activity").json()
    assert (said["busy"], said["processes"]) == (True, [process["id"]])
    picod.client.post(f"/api/processes/{process['id']}/signal", json={"signal": "KILL"})
    wait(picod, process)
    assert picod.client.get("/api/activity").json()["busy"] is False


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "", {"command": ["no-such-program"]}, 400),
        ("POST", "", {"command": []}, 400),
        ("POST", "", {"command": ["true"], "stdin": "yes"}, 400),
        ("POST", "", {"command": ["true"], "timeout": "5s"}, 400),
        ("POST", "", {"command": ["true"], "name": "x" * 201}, 400),
        ("POST", "", {"command": ["true"], "working_dir": "../.."}, 400),
        ("GET", "/none", None, 404),
        ("GET", "/{id}/nothing", None, 404),
        ("PUT", "/{id}", None, 405),
        ("POST", "/{id}/signal", {"signal": "NOPE"}, 400),
        ("POST", "/{id}/signal", {"signal": 99}, 400),
        ("POST", "/{id}/signal", {}, 400),
        ("GET", "/{id}/logs?offset=-1", None, 400),
        ("GET", "/{id}/logs?stream=both", None, 400),
        ("GET", "/{id}/logs?follow=1", None, 400),
        ("GET", "/{id}/wait?timeout=5", None, 400),
    ],
)
def test_wrong_requests_are_refused(picod: Executor, nap: str, method: str, path: str, body: Any, status: int) -> None:
    """With a sentence, and nothing is started or ended by them."""
    process = start(picod, "sleep", nap)
    reply = picod.client.request(method, "/api/processes" + path.replace("{id}", process["id"]), json=body)
    assert reply.status_code == status
    assert reply.json()["error"]
    assert [each["state"] for each in picod.client.get("/api/processes").json()["processes"]] == ["running"]


def test_processes_end_with_picod(nap: str) -> None:
    """Nothing is left behind, and no descriptor is leaked by those that came and went."""
    with picod_process("--auth", "none") as picod:
        before = picod.descriptors()
        for _ in range(3):
            picod.client.delete(f"/api/processes/{start(picod, 'true', stdin=True)['id']}")
        wait_until(lambda: picod.descriptors() <= before, "descriptors come back")
        start(picod, "sleep", nap)
        assert running(nap)
    assert not running(nap)

"""Requests with an Idempotency-Key run once, whoever asks again, and however the first asker left."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.interpreters import interpreter_process
from tests.support.picod import Executor
from tests.support.waiting import wait_until

FOLDER = ".wakegate/answers"


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with interpreter_process(tmp_path_factory.mktemp("home")) as executor:
        yield executor


def execute(picod: Executor, script: str, key: str, **fields: Any) -> httpx.Response:
    body = {"command": ["sh", "-c", script], **fields}
    return picod.client.post("/api/execute", json=body, headers={"idempotency-key": key})


def leave(picod: Executor, script: str, key: str) -> None:
    """Ask, and leave without the answer."""
    with pytest.raises(httpx.ReadTimeout):
        picod.client.post(
            "/api/execute", json={"command": ["sh", "-c", script]}, headers={"idempotency-key": key}, timeout=0.5
        )


def lines(picod: Executor, name: str) -> int:
    path = picod.workspace / name
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_request_with_a_key_runs_once(picod: Executor) -> None:
    """Commands, code and files: the second answer is the first one, with `idempotency-replayed: true`."""
    first, again = (execute(picod, "echo x >> once; date +%N", "key-1") for _ in range(2))
    assert (first.json(), first.headers["content-type"]) == (again.json(), again.headers["content-type"])
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert lines(picod, "once") == 1
    for count in (1, 1):
        reply = picod.client.post(
            "/api/run_code", json={"code": "n = globals().get('n', 0) + 1\nn"}, headers={"idempotency-key": "key-2"}
        )
        assert reply.json()["results"] == [{"text/plain": str(count)}]
    assert picod.client.put("/api/files/f", content=b"one", headers={"idempotency-key": "key-3"}).is_success
    assert picod.client.put("/api/files/f", content=b"two").is_success
    assert picod.client.put("/api/files/f", content=b"one", headers={"idempotency-key": "key-3"}).is_success
    assert (picod.workspace / "f").read_bytes() == b"two"


def test_key_of_another_request_is_refused(picod: Executor) -> None:
    """A key stands for one request; the same one asked as a stream is the same."""
    assert execute(picod, "echo a", "key-4").status_code == 200
    assert execute(picod, "echo b", "key-4").status_code == 422
    assert execute(picod, "echo a", "key-4", stream=True).json()["stdout"] == "a\n"
    assert execute(picod, "true", "k" * 300).status_code == 400


def test_stream_with_a_key_is_replayed(picod: Executor) -> None:
    """All of its events, as they were."""
    first, again = (execute(picod, "echo x >> streamed; echo a; echo b >&2", "key-5", stream=True) for _ in range(2))
    assert first.text == again.text
    assert first.text.count("event: exit") == 1
    assert lines(picod, "streamed") == 1


def test_refused_request_may_be_asked_again(picod: Executor) -> None:
    """Nothing was done, so nothing is remembered."""
    asked = {"json": {"code": "1", "context_id": "later"}, "headers": {"idempotency-key": "key-6"}}
    assert picod.client.post("/api/run_code", **asked).status_code == 404  # type: ignore[arg-type]
    assert picod.client.post("/api/contexts", json={"context_id": "later"}).status_code == 201
    assert picod.client.post("/api/run_code", **asked).status_code == 200  # type: ignore[arg-type]


def test_run_with_a_key_continues_without_its_client_and_keeps_the_sandbox_busy(picod: Executor) -> None:
    """Whoever asks again while it runs waits for the same run."""
    script = "echo x >> left; while ! test -e go; do sleep 0.02; done; echo done"
    leave(picod, script, "key-7")
    wait_until(lambda: picod.client.get("/api/activity").json()["unattended"] == 1, "it runs on without its client")
    assert picod.client.get("/api/activity").json()["busy"] is True
    said: list[str] = []
    waiting = threading.Thread(target=lambda: said.append(execute(picod, script, "key-7").json()["stdout"]))
    waiting.start()
    (picod.workspace / "go").touch()
    waiting.join(20)
    assert (said, lines(picod, "left")) == (["done\n"], 1)
    assert picod.client.get("/api/activity").json()["busy"] is False


def test_answers_survive_a_restart_and_unfinished_requests_are_reported(tmp_path: Path) -> None:
    """They lie in the workspace; a request that ended with its sandbox is not run again, nor claimed to be done."""
    with interpreter_process(tmp_path) as first, interpreter_process(tmp_path) as second:
        answer = execute(first, "echo x >> kept; echo said", "key-8").json()
        leave(first, "echo x >> cut; sleep 600", "key-9")
        wait_until(lambda: lines(first, "cut") == 1, "it began")
        first.process.kill()
        shutil.copytree(first.workspace, second.workspace, dirs_exist_ok=True)
        assert execute(second, "echo x >> kept; echo said", "key-8").json() == answer
        cut = execute(second, "echo x >> cut; sleep 600", "key-9")
        assert (cut.status_code, cut.json()["code"]) == (409, "INTERRUPTED")
        assert (lines(second, "kept"), lines(second, "cut")) == (1, 1)


def test_files_that_code_puts_among_the_answers_do_no_harm(picod: Executor) -> None:
    """Nonsense, a pipe, a link, a folder in the place of a file: the request runs."""
    execute(picod, "true", "key-10")
    folder = picod.workspace / FOLDER
    name = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns).name

    def put(make: Any) -> None:
        place = folder / name
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
        make(place)
        assert execute(picod, "true", "key-10").status_code == 200

    nonsense = [
        b"", b"{", b"[1]\n", b'{"digest": 1}\n', b"\xff\n", b"[" * 100_000,
        b'{"digest": "x", "status": 999, "headers": [], "size": 0}\n',
        b'{"digest": "x", "status": 200, "headers": [["a\\r\\nb", "c"]], "size": 0}\n',
    ]  # fmt: skip
    for data in nonsense:
        put(lambda place, data=data: place.write_bytes(data))
    put(os.mkfifo)
    put(lambda place: place.symlink_to("/etc/passwd"))
    put(lambda place: place.mkdir())


def test_old_and_too_many_answers_go(picod: Executor) -> None:
    """Answers older than ten minutes are not used, and at most 256 are kept."""
    execute(picod, "echo x >> aged", "key-11")
    folder = picod.workspace / FOLDER
    newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    os.utime(newest, (1, 1))
    execute(picod, "echo x >> aged", "key-11")
    assert lines(picod, "aged") == 2
    for number in range(400):
        (folder / f"{number:032x}").write_bytes(b"{}")
    for number in range(33):
        assert execute(picod, "true", f"key-12-{number}").status_code == 200
    assert len(list(folder.iterdir())) <= 256 + 33

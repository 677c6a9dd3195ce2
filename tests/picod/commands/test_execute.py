"""POST /api/execute over a real picod: results, limits, and the end of whole process trees."""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.interpreters import events, printed
from tests.support.picod import Executor, picod_process, running
from tests.support.waiting import wait_until

DAEMON = """
import os, sys
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    for fd in range(3): os.close(fd)
else:
    os.waitpid(child, 0)
os.execvp("sleep", ["sleep", sys.argv[1]])
"""
ESCAPE = "access denied: path '../..' escapes workspace jail (relative path traversal: ../..)"


@pytest.fixture
def nap() -> str:
    """A sleep's argument like no other, to find its processes by."""
    return f"300.{int.from_bytes(os.urandom(4), 'big')}"


def test_result_has_every_field(picod: Executor) -> None:
    """Streams, code, times; argv is not a shell's."""
    answer = picod.execute("echo", "a;b")

    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("a;b\n", "", 0)
    assert answer["duration"] > 0
    for field in ("start_time", "end_time"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", answer[field])
    assert not answer["stdout_truncated"]
    assert not answer["stderr_truncated"]


@pytest.mark.parametrize(
    ("script", "code", "stderr"),
    [
        ("exit 3", 3, ""),
        ("echo bad >&2; exit 1", 1, "bad\n"),
    ],
)
def test_exit_codes_are_reported(picod: Executor, script: str, code: int, stderr: str) -> None:
    """Codes as they are, without a signal."""
    answer = picod.execute("sh", "-c", script)

    assert (code, stderr) == (answer["exit_code"], answer["stderr"])
    assert "signal" not in answer


@pytest.mark.parametrize(
    ("script", "code", "name"),
    [
        ("kill -9 $$", 137, "SIGKILL"),
        ("kill $$", 143, "SIGTERM"),
        ("kill -SEGV $$", 139, "SIGSEGV"),
        ("sh -c 'kill -9 $$'; exit $?", 137, "SIGKILL"),  # as a shell reports it
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_death_by_signal_is_named(picod: Executor, script: str, code: int, name: str, stream: bool) -> None:
    """128 + its number, its name, and a sentence at the end of stderr; in a stream as well."""
    if stream:
        body = {"command": ["sh", "-c", script], "stream": True}
        with picod.client.stream("POST", "/api/execute", json=body) as reply:
            heard = list(events(reply))
        answer = {**heard[-1].data, "stderr": printed(heard, "stderr")}
    else:
        answer = picod.execute("sh", "-c", script)

    assert (code, name) == (answer["exit_code"], answer["signal"])
    assert f"killed by {name}" in answer["stderr"]


def test_signals_of_timeouts_are_not_reported_as_the_commands_own(picod: Executor) -> None:
    """What picod itself killed has the exit code of a timeout, and no signal."""
    answer = picod.execute("sleep", "60", timeout="100ms")

    assert answer["exit_code"] == 124
    assert "signal" not in answer


def test_commands_that_cannot_start_are_results_not_errors(picod: Executor) -> None:
    """Missing, forbidden and unrunnable programs: exit code 1 and AgentCube's sentence."""
    (picod.workspace / "plain.txt").write_text("x")
    (picod.workspace / "odd").write_text("no shebang")
    (picod.workspace / "odd").chmod(0o755)
    seen = {name: picod.execute(name) for name in ("no-such", "./plain.txt", "./odd", "./none", "")}

    assert {1} == {answer["exit_code"] for answer in seen.values()}
    assert {name: answer["stderr"] for name, answer in seen.items()} == {
        "no-such": 'exec: "no-such": executable file not found in $PATH',
        "./plain.txt": "fork/exec ./plain.txt: permission denied",
        "./odd": "fork/exec ./odd: exec format error",
        "./none": "fork/exec ./none: no such file or directory",
        "": 'exec: "": executable file not found in $PATH',
    }


def test_output_that_is_no_utf8_is_replaced(picod: Executor) -> None:
    """Each bad byte becomes U+FFFD, the rest stays."""
    assert picod.execute("printf", "a\\377b\\342\\202\\254")["stdout"] == "a\ufffdb\u20ac"


def test_working_directory_is_made_inside_the_workspace(picod: Executor) -> None:
    """Relative and absolute paths both start at the workspace."""
    for path in ("deep/er", "/deep/er/"):
        assert f"{picod.workspace}/deep/er\n" == picod.execute("pwd", working_dir=path)["stdout"]


def test_environment_is_the_base_and_what_was_asked_for() -> None:
    """Nothing of picod's environment leaks; `env` adds and overrides."""
    base = {"PATH": os.environ["PATH"], "BASE": "1", "OVER": "old"}
    environ = {"SECRET": "x", "PICOD_COMMAND_ENV": json.dumps(base)}
    with picod_process("--auth", "none", environ=environ) as picod:
        lines = picod.execute("env", env={"OVER": "new", "MORE": "a=b"})["stdout"].splitlines()

    assert sorted([f"PATH={base['PATH']}", "BASE=1", "OVER=new", "MORE=a=b"]) == sorted(lines)


def test_commands_inherit_nothing_else_of_picods(picod: Executor) -> None:
    """Three descriptors only (the fourth is ls's own), stdin at end of file, a new session."""
    assert picod.execute("sh", "-c", "cat; ls /proc/self/fd | tr '\\n' ' '")["stdout"] == "0 1 2 3 "
    code = "import os; print(os.getsid(0) == os.getpgid(0) == os.getpid())"
    assert picod.execute(sys.executable, "-c", code)["stdout"] == "True\n"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "EOF"),
        (b"  \n", "EOF"),
        (b"{}", "Key: 'ExecuteRequest.Command' Error:Field validation for 'Command' failed on the 'required' tag"),
        (
            b'{"command": null}',
            "Key: 'ExecuteRequest.Command' Error:Field validation for 'Command' failed on the 'required' tag",
        ),
        (b'{"command": []}', "command cannot be empty"),
        (
            b'{"command": "ls"}',
            "json: cannot unmarshal string into Go struct field ExecuteRequest.command of type []string",
        ),
        (
            b'{"command": [1]}',
            "json: cannot unmarshal number into Go struct field ExecuteRequest.command of type string",
        ),
        (
            b'{"command": ["a"], "timeout": 5}',
            "json: cannot unmarshal number into Go struct field ExecuteRequest.timeout of type string",
        ),
        (b'{"command": ["a"], "timeout": "abc"}', 'Invalid timeout format: time: invalid duration "abc"'),
        (b'{"command": ["a"], "timeout": "5"}', 'Invalid timeout format: time: missing unit in duration "5"'),
        (
            b'{"command": ["a"], "env": []}',
            "json: cannot unmarshal array into Go struct field ExecuteRequest.env of type map[string]string",
        ),
        (
            b'{"command": ["a"], "env": {"A": 1}}',
            "json: cannot unmarshal number into Go struct field ExecuteRequest.env of type string",
        ),
        (b'{"command": ["a"], "env": {"A=B": "1"}}', "env: 'A=B' cannot be the name of a variable"),
        (b'{"command": ["a\\u0000"]}', "command[0] contains a NUL byte"),
        (b'{"command": ["\\ud800"]}', "command[0] is not valid UTF-8"),
        (b'{"command": ["\xff"]}', "the request body is not valid UTF-8 (byte 14)"),
        (b"[" * 100_000, "invalid JSON: nested too deeply, or a number too long"),
        (b"[1]", "json: cannot unmarshal array into Go value of type api.ExecuteRequest"),
        (b'{"command"', "invalid JSON: Expecting ':' delimiter at character 10"),
        (
            b'{"command": ["a"], "working_dir": "../.."}',
            f"Invalid working directory: {ESCAPE}",
        ),
        (b'{"command": ["a"], "working_dir": "a\\u0000"}', "Invalid working directory: the path contains a NUL byte"),
    ],
)
def test_wrong_requests_are_refused_with_the_field(picod: Executor, body: bytes, error: str) -> None:
    """400 and a sentence; nothing runs."""
    reply = picod.client.post("/api/execute", content=body)

    assert (400, {"code": 400, "error": error}) == (reply.status_code, reply.json())


def test_unknown_fields_and_trailing_text_are_ignored(picod: Executor) -> None:
    """As AgentCube's decoder does; the content type does not matter either."""
    reply = picod.client.post("/api/execute", content=b'{"command": ["echo"], "nope": [1]} trailing')

    assert reply.json()["stdout"] == "\n"


@pytest.mark.parametrize("timeout", ["0", "-5s", "0s"])
def test_timeout_of_zero_is_answered_at_once(picod: Executor, timeout: str) -> None:
    """A timeout of zero or less answers 124, and the command is not started."""
    answer = picod.execute("touch", "never", timeout=timeout)

    assert answer["exit_code"] == 124
    assert not (picod.workspace / "never").exists()


TREES = {
    "grandchildren that hold the pipes": ["sh", "-c", "sleep $N & sleep $N & wait"],
    "a session of its own": ["sh", "-c", "setsid sleep $N & sleep $N"],
    "an orphan in its own session": ["sh", "-c", "setsid -f sleep $N >/dev/null 2>&1; sleep $N"],
    "an orphan without the environment": ["sh", "-c", "env -i setsid -f sleep $N; sleep $N"],
    "a daemon that closed everything": [sys.executable, "-c", DAEMON, "$N"],
    "a shell that ignores signals": ["sh", "-c", "trap '' TERM INT HUP; sleep $N; sleep $N"],
}


@pytest.mark.parametrize("tree", TREES)
def test_timeout_kills_the_whole_tree(picod: Executor, nap: str, tree: str) -> None:
    """Once the answer is there, nothing of the command is, and nothing is left to reap."""
    command = [part.replace("$N", nap) for part in TREES[tree]]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(picod.execute, *command, timeout="1s")
        wait_until(lambda: len(running(nap)) > 0, "the tree runs")
        assert (answer.result()["exit_code"], answer.result()["stderr"]) == (124, "Command timed out after 1 seconds")

    assert running(nap) == []
    assert picod.children() == []


def test_timeout_kills_one_command_and_not_its_neighbours(picod: Executor, nap: str) -> None:
    """Two commands, each with a daemon: the other's live on."""
    other = nap + "1"
    with ThreadPoolExecutor(1) as pool:
        neighbour = pool.submit(picod.execute, "sh", "-c", f"setsid -f sleep {other}; sleep {other}", timeout="3s")
        wait_until(lambda: len(running(other)) == 2, "the neighbour runs")
        picod.execute("sh", "-c", f"setsid -f sleep {nap}; sleep {nap}", timeout="300ms")
        assert (running(nap), len(running(other))) == ([], 2)
        neighbour.result()
    assert running(other) == []


def test_output_before_a_timeout_is_kept(picod: Executor) -> None:
    """The note follows stderr directly, as AgentCube writes it."""
    answer = picod.execute("sh", "-c", "echo out; echo err >&2; sleep 60", timeout="700ms")

    assert (answer["stdout"], answer["stderr"]) == ("out\n", "err\nCommand timed out after 1 seconds")


@pytest.mark.parametrize("tree", ["grandchildren that hold the pipes", "an orphan in its own session"])
def test_leaving_client_ends_its_command(picod: Executor, nap: str, tree: str) -> None:
    """The connection closes, the tree dies, descriptors come back."""
    before = picod.descriptors()
    body = json.dumps({"command": [part.replace("$N", nap) for part in TREES[tree]]}).encode()
    connection = picod.connect()
    connection.sendall(b"POST /api/execute HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
    wait_until(lambda: len(running(nap)) > 0, "the tree runs")
    connection.close()

    wait_until(lambda: running(nap) == [], "the tree is dead")
    wait_until(lambda: picod.descriptors() <= before, "descriptors come back")


def test_background_children_neither_delay_the_answer_nor_die_of_it(picod: Executor) -> None:
    """The main process ends: its output is answered; a child that holds the pipe prints on and finishes its work."""
    script = "(while [ ! -e go ]; do sleep 0.02; done; seq 100000; echo late >&2; touch survived) & echo now"
    before = picod.descriptors()
    assert picod.execute("sh", "-c", script, timeout="10s")["stdout"] == "now\n"
    (picod.workspace / "go").touch()

    wait_until((picod.workspace / "survived").exists, "the child finishes")
    wait_until(lambda: picod.descriptors() <= before, "the pipes are closed when the child is gone")


def test_fifty_commands_run_at_once(picod: Executor) -> None:
    """All wait for the last one to start: they really are concurrent."""
    script = "touch at-$1; until [ $(ls | grep -c '^at-') -ge 50 ]; do sleep 0.1; done; echo $1"
    with ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(lambda n: picod.execute("sh", "-c", script, "-", str(n), working_dir="fifty"), range(50))
        )

    assert [f"{n}\n" for n in range(50)] == [answer["stdout"] for answer in answers]
    assert picod.children() == []


def test_long_output_is_truncated_and_flagged() -> None:
    """Each stream has its own limit; the whole is in the named file."""
    with picod_process("--auth", "none", "--max-output", "10") as picod:
        answer = picod.execute("sh", "-c", "printf 12345678901; printf 1234567890 >&2")
        whole = picod.client.get(f"/api/files/{answer['stdout_file']}").content
        cut = picod.execute("printf", "123456789\u20ac")

    assert tuple(answer[key] for key in ("stdout", "stdout_truncated", "stderr", "stderr_truncated")) == (
        "1234567890",
        True,
        "1234567890",
        False,
    )
    assert whole == b"12345678901"
    assert "stderr_file" not in answer
    assert cut["stdout"] == "123456789", "a character is not cut in two"


def test_gigabyte_of_output_leaves_memory_flat(picod: Executor) -> None:
    """Worst case for JSON (NUL bytes): 10 MB answered, all in a file, memory within 60 MB of before."""
    before = picod.reset_peak()
    answer = picod.execute("head", "-c", "1G", "/dev/zero")
    grown = picod.memory("VmHWM") - before
    spill = picod.workspace / answer["stdout_file"]

    assert (len(answer["stdout"]), answer["stdout_truncated"], spill.stat().st_size) == (10_000_000, True, 1 << 30)
    assert grown < 60 << 20
    spill.unlink()


def test_spill_file_is_bounded_and_old_ones_go() -> None:
    """A file grows to --max-spill, and all of them together stay near it."""
    with picod_process("--auth", "none", "--max-output", "10", "--max-spill", "100000") as picod:
        first = picod.execute("head", "-c", "1M", "/dev/zero")["stdout_file"]
        for _ in range(3):
            last = picod.execute("head", "-c", "1M", "/dev/zero")["stdout_file"]
        assert (picod.workspace / last).stat().st_size == 100_000
        assert not (picod.workspace / first).exists()
        assert len(os.listdir(picod.workspace / ".wakegate/output")) <= 2


def test_spill_does_not_follow_a_planted_link() -> None:
    """A link in place of the spill folder leads nowhere: the answer is cut and names no file."""
    with picod_process("--auth", "none", "--max-output", "10") as picod:
        outside = picod.workspace.parent / "outside"
        outside.mkdir()
        (picod.workspace / ".wakegate").symlink_to(outside)
        answer = picod.execute("head", "-c", "1M", "/dev/zero")

        assert (answer["stdout_truncated"], "stdout_file" in answer) == (True, False)
        assert os.listdir(outside) == []


def test_many_commands_leak_nothing(picod: Executor) -> None:
    """Descriptors and children are as before, failures included."""
    picod.execute("true")
    before = picod.descriptors()
    for _ in range(20):
        for fields in ({}, {"timeout": "1ms"}, {"working_dir": "leak/x"}):
            picod.execute("true", **fields)
        picod.execute("no-such")
        picod.execute("./none")

    wait_until(lambda: picod.descriptors() <= before, "descriptors come back")
    assert picod.children() == []

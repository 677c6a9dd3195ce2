"""Code that forks, floods, crashes or will not end, in a context of a real sandbox behind a real gateway.

Whatever it does, its caller is told what happened, the next call is answered (with word of what was lost), a session
beside it notices nothing, and nothing of it runs on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.serve import Server, processes_of, serve
from tests.support.waiting import wait_until

RUNTIMES = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: my-interpreter, namespace: default}
spec: {template: {}, warmPoolSize: 1}
---
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: small, namespace: default}
spec:
  template: {resources: {limits: {memory: 384Mi}}}
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway") / "state"


@pytest.fixture(scope="module")
def server(state: Path) -> Iterator[Server]:
    """One gateway for all tests of this module."""
    runtimes = state.parent / "runtimes.yaml"
    runtimes.write_text(RUNTIMES)
    with serve(state, "--runtime", str(runtimes)) as started:
        # 256 processes at their limit of memory share its one core with the executor, which is to end them.
        started.client.timeout = 50.0
        yield started


@pytest.fixture(scope="module")
def beside(server: Server) -> str:
    """A session that does no harm."""
    session = server.session()
    run_code(server, session, "mine = 42")
    return session


@pytest.fixture(scope="module")
def session(server: Server) -> str:
    """The session of all the harm but that of the bombs; it has little memory."""
    reply = server.client.post("/v1/sessions", json={"runtime": "default/small"})
    return str(reply.json()["id"])


def run_code(server: Server, session: str, code: str, **fields: Any) -> dict[str, Any]:
    """Run code in the session and return its 200 answer."""
    reply = server.client.post("/api/run_code", json={"code": code, **fields}, headers={"x-session-id": session})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def check_next(server: Server, session: str, beside: str, *, lost: bool) -> None:
    """The next call is answered, says what was lost, and the session beside it has what it had."""
    answer = run_code(server, session, "'kept' in globals()")
    assert answer["results"] == [{"text/plain": str(not lost)}]
    assert ("without its variables" in answer.get("notice", "")) == lost
    assert run_code(server, beside, "mine")["results"] == [{"text/plain": "42"}]


LOST = [  # code that costs the context, what its caller is told
    ("os.kill(os.getpid(), signal.SIGKILL)", "KernelDied", "SIGKILL"),
    ("import ctypes\nctypes.string_at(0)", "KernelDied", "SIGSEGV"),
    ("os._exit(3)", "KernelDied", "exit status 3"),
    ("os.closerange(3, 1000)", "KernelDied", "SIGABRT"),
    ("for fd in range(3, 60):\n  try: os.write(fd, b'nonsense' * 50)\n  except OSError: pass\ntime.sleep(60)",
     "KernelDied", ""),
    ("sys.setrecursionlimit(10**9)\nclass A:\n  def __getattr__(self, name): return getattr(self, name)\nA().x",
     "KernelDied", "SIGSEGV"),
    ("sum(range(10**12))", "TimeoutError", "killed; the context's variables are lost"),
    pytest.param("signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)", "TimeoutError", "killed",
                 marks=pytest.mark.slow),
    ("signal.signal(signal.SIGINT, signal.SIG_DFL)\ntime.sleep(60)", "TimeoutError", "was killed"),
    pytest.param("os.kill(os.getpid(), signal.SIGSTOP)", "TimeoutError", "was killed", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("code", "name", "value"), LOST)
def test_code_that_ends_its_context_is_reported_and_the_next_call_works(
    server: Server, session: str, beside: str, code: str, name: str, value: str
) -> None:
    """Killed, crashed, out of memory, without its sockets, or deaf to the interrupt."""
    run_code(server, session, "import os, signal, sys, time\nkept = 1")
    answer = run_code(server, session, code, timeout=1 if name == "TimeoutError" else 50)
    assert answer["error"]["name"] == name, answer
    assert value in answer["error"]["value"]
    check_next(server, session, beside, lost=True)


def test_code_that_takes_all_memory_is_reported(server: Server, session: str, beside: str) -> None:
    """It is killed where a control group limits the sandbox, and gets a MemoryError where resource limits do."""
    run_code(server, session, "kept = 1")
    code = "held = []\ntry:\n  while True: held.append(b'x' * 10_000_000)\nfinally: held.clear()"
    answer = run_code(server, session, code, timeout=50)
    killed = answer["error"]["name"] != "MemoryError"
    if killed:
        assert answer["error"]["name"] == "KernelDied", answer
        assert "killed by SIGKILL (out of memory)" in answer["error"]["value"]
        assert (answer["exit_code"], answer["signal"]) == (137, "SIGKILL")
    check_next(server, session, beside, lost=killed)


KEPT = [  # code that does its worst and keeps its context, what its caller is told
    ("while True:\n  try:\n    while True: pass\n  except KeyboardInterrupt: swallowed = True", "TimeoutError"),
    ("import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')", "TimeoutError"),
    ("import asyncio\nawait asyncio.sleep(60)", "TimeoutError"),
    ("def deeper(): return deeper()\ndeeper()", "RecursionError"),
    ("import sys\nsys.exit(3)", "SystemExit"),
    ("input('name? ')", "StdinNotImplementedError"),
    ("raise MemoryError", "MemoryError"),
    ("print('\\ud800')", "UnicodeEncodeError"),
    ("raise ValueError('\\ud800 \\udcff')", "ValueError"),
    ("raise ValueError(float('nan'), {(1,): '\\ud800'})", "ValueError"),
    ("from IPython.display import HTML; display(HTML('\\ud800'), {'text/plain': '\\udcff'}, raw=False)", None),
    ("display({'text/plain': '\\udcff', ('a',): float('nan'), 'application/json': {1: {2, 3}}}, raw=True)", None),
    ("import os\nfor fd in 0, 1, 2: os.close(fd)", None),
    ("import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()", None),
]  # fmt: skip


@pytest.mark.parametrize(("code", "name"), KEPT)
def test_code_that_is_stopped_or_fails_keeps_its_context(
    server: Server, session: str, beside: str, code: str, name: str | None
) -> None:
    """Interrupted, refused, failed, or without streams: its variables are there in the next call."""
    run_code(server, session, "kept = 1")
    answer = run_code(server, session, code, timeout=1 if name == "TimeoutError" else 50)
    assert (answer["error"] or {"name": None})["name"] == name, answer
    check_next(server, session, beside, lost=False)


def test_output_of_a_thread_after_its_run_is_in_a_later_one(server: Server, session: str) -> None:
    """What is printed while nobody listens is not lost, and no run is held up by it."""
    run_code(server, session, "import threading, time")
    run_code(server, session, "threading.Thread(target=lambda: (time.sleep(0.05), print('late'))).start()")
    said = ""

    def heard() -> bool:
        nonlocal said
        said += run_code(server, session, "")["stdout"]
        return "late\n" in said

    wait_until(heard, "the thread's words come with a later run")


def test_floods_are_cut_and_marked_and_cost_the_gateway_nothing(server: Server, beside: str) -> None:
    """100 MB of prints, a result of 100 MB, two thousand results."""
    session = server.session()
    run_code(server, session, "kept = 1")
    before = psutil.Process(server.process.pid).memory_info().rss
    printed = run_code(server, session, "for _ in range(100): print('x' * 1_000_000)", timeout=50)
    assert (printed["stdout_truncated"], printed["error"]) == (True, None)
    assert 10_000_000 < len(printed["stdout"]) < 10_000_200
    large = run_code(server, session, "display({'text/plain': 'x' * 100_000_000}, raw=True)\n'after'", timeout=50)
    assert (large["results"], large["results_omitted"]) == ([{"text/plain": "'after'"}], 1)
    many = run_code(server, session, "for i in range(2_000): display(i)", timeout=50)
    assert len(many["results"]) + many["results_omitted"] == 2_000
    assert psutil.Process(server.process.pid).memory_info().rss - before < 100 << 20
    check_next(server, session, beside, lost=False)


FORKS = [
    pytest.param("import os\nwhile True:\n    os.fork()", "python", marks=pytest.mark.slow),
    ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "python"),
    ("bomb() { bomb | bomb & }; bomb; sleep 100", "bash"),
]


@pytest.mark.parametrize(("code", "language"), FORKS)
def test_fork_bomb_ends_with_its_run(server: Server, state: Path, beside: str, code: str, language: str) -> None:
    """It forks until its sandbox's limit on processes or memory, then until its timeout; then all of it is gone.

    Copies of a kernel dirty 4 MiB each: 256 of them pass the default 1 GiB, and the kernel kills of them, not picod.
    """
    session = server.session()
    run_code(server, session, "kept=1", language=language)
    pool = len(processes_of(state))  # may yet grow: the pool fills up again
    answer = run_code(server, session, code, language=language, timeout=2)
    assert answer["timed_out"] is True or answer["signal"] == "SIGKILL", answer
    assert run_code(server, beside, "mine")["results"] == [{"text/plain": "42"}]
    after = run_code(server, session, "echo $kept" if language == "bash" else "1 + 1", language=language)
    assert (after["stdout"], after["results"]) in (("1\n", []), ("", [{"text/plain": "2"}]))
    wait_until(lambda: len(processes_of(state)) < pool + 20, "the bomb is gone")
    assert server.client.delete(f"/v1/sessions/{session}").status_code == 204


def test_code_that_kills_everything_it_can_costs_its_own_processes_only(server: Server, beside: str) -> None:
    """The sandbox's own executor is not among them: the context goes on with its variables, and so does the sandbox."""
    session = server.session()
    kill = "import os, subprocess\nchild = subprocess.Popen(['sleep', '60'])\nos.kill(-1, 9)\nchild.wait()"
    assert run_code(server, session, kill)["results"] == [{"text/plain": "-9"}]
    again = server.client.post("/api/run_code", json={"code": "child.returncode"}, headers={"x-session-id": session})
    assert again.json()["results"] == [{"text/plain": "-9"}]
    assert "x-wakegate-restored" not in again.headers
    assert run_code(server, beside, "mine")["results"] == [{"text/plain": "42"}]

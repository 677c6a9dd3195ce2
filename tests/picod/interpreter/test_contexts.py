"""Code contexts over a real picod, real kernels and real bash: results, errors, and the ends of runs and contexts."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.interpreters import SANDBOX_BIN, interpreter_process, run_code
from tests.support.picod import Executor


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One picod for all tests of this module; tests that damage a context create another one."""
    with interpreter_process(tmp_path_factory.mktemp("home")) as executor:
        yield executor


def test_context_keeps_its_variables(picod: Executor) -> None:
    """The second run sees what the first defined, and the count of runs grows."""
    first = run_code(picod, "kept = [1]")
    second = run_code(picod, "kept.append(2)\nkept")
    assert second["results"] == [{"text/plain": "[1, 2]"}]
    assert second["execution_count"] == first["execution_count"] + 1
    assert second["error"] is None


def test_stdout_and_stderr_of_code_and_its_children_stay_separate(picod: Executor) -> None:
    """Both streams come back, of Python, of subprocesses and of shell escapes alike, in their order."""
    answer = run_code(
        picod,
        "import os, sys; print('py')\nos.system('echo child')\n!echo shell\nsys.stderr.write('bad\\n');",
    )
    assert answer["stdout"].split() == ["py", "child", "shell"]
    assert answer["stderr"] == "bad\n"


def test_context_starts_in_the_workspace(picod: Executor) -> None:
    """Relative paths are the session's files, and its modules can be imported."""
    (picod.workspace / "mine.py").write_text("word = 'found'\n")
    answer = run_code(picod, "import os, mine\nprint(os.getcwd())\nmine.word")
    assert answer["stdout"].strip() == str(picod.workspace)
    assert answer["results"] == [{"text/plain": "'found'"}]


def test_figure_comes_back_as_a_picture_without_being_asked_for(picod: Executor) -> None:
    """A plot that is never shown or saved is in the results as PNG."""
    answer = run_code(picod, "import matplotlib.pyplot as plt\n_ = plt.plot([1, 3, 2])")
    pictures = [result["image/png"] for result in answer["results"] if "image/png" in result]
    assert len(pictures) == 1
    assert base64.b64decode(pictures[0]).startswith(b"\x89PNG")


def test_table_comes_back_as_html_and_as_text(picod: Executor) -> None:
    """A DataFrame as the last expression is answered in both forms."""
    answer = run_code(picod, "import pandas as pd\npd.DataFrame({'price': [3]})")
    (result,) = answer["results"]
    assert "<table" in result["text/html"]
    assert "price" in result["text/plain"]


def test_error_has_name_value_and_traceback_without_colours(picod: Executor) -> None:
    """What went wrong can be read by a person and a model."""
    error = run_code(picod, "def f():\n    return {}['absent']\nf()")["error"]
    assert (error["name"], error["value"]) == ("KeyError", "'absent'")
    assert any("return {}['absent']" in part for part in error["traceback"])
    assert "\x1b" not in "".join(error["traceback"])


def test_timeout_interrupts_and_keeps_the_variables(picod: Executor) -> None:
    """Code that ends at the interrupt keeps its variables."""
    answer = run_code(picod, "import time\nheld = 1\ntime.sleep(60)", timeout=0.3)
    assert answer["timed_out"] is True
    assert answer["error"]["name"] == "TimeoutError"
    assert run_code(picod, "held")["results"] == [{"text/plain": "1"}]


def test_death_of_a_context_is_reported_and_noted_in_the_next_run(picod: Executor) -> None:
    """A crash is an answer, not a failed request; then a fresh process, whose user knows that it is fresh."""
    run_code(picod, "lost = 1")
    crashed = run_code(picod, "import os, signal\nprint('last words')\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert crashed["error"]["name"] == "KernelDied"
    assert "killed by SIGSEGV" in crashed["error"]["value"]
    assert (crashed["exit_code"], crashed["signal"]) == (139, "SIGSEGV")
    assert crashed["stdout"] == "last words\n"
    after = run_code(picod, "'lost' in globals()")
    assert after["results"] == [{"text/plain": "False"}]
    assert "was restarted" in after["notice"]
    assert "notice" not in run_code(picod, "1")


def test_interrupt_ends_the_run_and_nothing_else(picod: Executor) -> None:
    """A run that is interrupted from outside answers with KeyboardInterrupt; its context lives on."""
    run_code(picod, "before = 1")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_code, picod, "open('started', 'w').close()\nimport time\ntime.sleep(60)")
        _wait_for(picod, "started")
        reply = picod.client.post("/api/contexts/default/interrupt")
        assert reply.json() == {"interrupted": True}
        assert running.result()["error"]["name"] == "KeyboardInterrupt"
    assert run_code(picod, "before")["results"] == [{"text/plain": "1"}]
    assert picod.client.post("/api/contexts/default/interrupt").json() == {"interrupted": False}


@pytest.mark.parametrize("code", ["import time\ntime.sleep(60)", "import asyncio\nawait asyncio.sleep(60)"])
def test_interrupt_that_comes_as_a_run_begins_ends_it_and_keeps_the_variables(picod: Executor, code: str) -> None:
    """While its request is on its way, is parsed or is compiled; none is left over for the next run."""
    long = "pass\n" * 2000  # takes a while to compile
    run_code(picod, "kept = 7")
    with ThreadPoolExecutor(1) as pool:
        for delay in range(12):
            running = pool.submit(run_code, picod, long + code)
            time.sleep(delay * 0.004)  # what is tried is a moment, not waited for
            while not picod.client.post("/api/contexts/default/interrupt").json()["interrupted"]:
                pass
            error = running.result()["error"]
            assert error["name"] in ("KeyboardInterrupt", "CancelledError"), error
            assert run_code(picod, "kept")["results"] == [{"text/plain": "7"}]


def test_interrupt_that_comes_as_a_run_ends_is_not_the_next_runs(picod: Executor) -> None:
    """Whichever of the two was first, the next run is whole."""
    with ThreadPoolExecutor(1) as pool:
        for delay in range(12):
            running = pool.submit(run_code, picod, "import time; time.sleep(0.02)")
            time.sleep(delay * 0.004)
            picod.client.post("/api/contexts/default/interrupt")
            assert (running.result()["error"] or {"name": "KeyboardInterrupt"})["name"] == "KeyboardInterrupt"
            assert run_code(picod, "1 + 1")["results"] == [{"text/plain": "2"}]


def test_contexts_do_not_see_each_other(picod: Executor) -> None:
    """Several contexts have separate variables; a deleted one no longer exists."""
    made = picod.client.post("/api/contexts", json={"language": "python"})
    assert made.status_code == 201
    other = made.json()["id"]
    run_code(picod, "name = 'default'")
    run_code(picod, "name = 'other'", context_id=other)
    assert run_code(picod, "name")["results"] == [{"text/plain": "'default'"}]
    listed = {context["id"] for context in picod.client.get("/api/contexts").json()["contexts"]}
    assert {"default", other} <= listed
    assert picod.client.delete(f"/api/contexts/{other}").status_code == 204
    gone = picod.client.post("/api/run_code", json={"code": "name", "context_id": other})
    assert gone.status_code == 404
    assert other in gone.json()["error"]


def test_restart_forgets_the_variables(picod: Executor) -> None:
    """A restarted context is as new, and says nothing about it: its user asked for it."""
    run_code(picod, "old = 1")
    assert picod.client.post("/api/contexts/default/restart").status_code == 200
    answer = run_code(picod, "'old' in globals()")
    assert (answer["results"], answer["execution_count"]) == ([{"text/plain": "False"}], 1)
    assert "notice" not in answer


def test_bash_context_keeps_folder_variables_and_functions(picod: Executor) -> None:
    """What a shell's user expects to stay stays, even after `exit`."""
    (picod.workspace / "deep").mkdir(exist_ok=True)
    first = run_code(
        picod, "cd deep; shown=1; export told=2; list=(a 'b c'); say() { echo said $1; }; exit 3", language="bash"
    )
    assert (first["exit_code"], first["error"]["name"]) == (3, "ExitStatus")
    second = run_code(
        picod, 'basename "$PWD"; echo $shown; sh -c "echo \\$told"; echo "${list[1]}"; say it', language="bash"
    )
    assert second["stdout"].splitlines() == ["deep", "1", "2", "b c", "said it"]
    assert second["error"] is None


@pytest.mark.parametrize("code", ["kill -9 $$", "sh -c 'kill -9 $$'"])
def test_bash_run_that_a_signal_ends_names_it(picod: Executor, code: str) -> None:
    """Whether it hit the shell or what the shell waited for."""
    answer = run_code(picod, code, language="bash")
    assert (answer["exit_code"], answer["signal"]) == (137, "SIGKILL")
    assert answer["error"]["value"] == "killed by SIGKILL"


def test_bash_context_that_is_killed_is_as_before(picod: Executor) -> None:
    """A timeout takes the run and its children, not the state of the runs before."""
    run_code(picod, "safe=1", language="bash")
    answer = run_code(picod, "safe=2; echo partly; sleep 60", language="bash", timeout="300ms")
    assert (answer["stdout"], answer["timed_out"], answer["error"]["name"]) == ("partly\n", True, "TimeoutError")
    assert run_code(picod, "echo $safe", language="bash")["stdout"] == "1\n"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"language": "python"}', "Code"),
        (b'{"code": 1}', "string"),
        (b'{"code": "1", "language": "cobol"}', "python or bash"),
        (b'{"code": "1", "timeout": -1}', "above zero"),
        (b'{"code": "1", "timeout": "soon"}', "timeout"),
        (b'{"code": "\\ud800"}', "UTF-8"),
        (b'{"code": "1", "context_id": "default", "language": "bash"}', "runs python"),
    ],
)
def test_bad_order_is_refused_with_the_reason(picod: Executor, body: bytes, says: str) -> None:
    """400 and a sentence that names the fault."""
    run_code(picod, "1")
    reply = picod.client.post("/api/run_code", content=body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]


def _wait_for(picod: Executor, name: str) -> None:
    deadline = time.monotonic() + 20
    while not (picod.workspace / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (picod.workspace / name).unlink()


def test_code_that_awaits_is_interrupted_too(picod: Executor) -> None:
    """A top-level `await` works, and a timeout ends it without the loss of variables."""
    assert run_code(picod, "import asyncio\nawait asyncio.sleep(0, 7)")["results"] == [{"text/plain": "7"}]
    answer = run_code(picod, "waited = 1\nawait asyncio.sleep(60)", timeout=0.3)
    assert answer["timed_out"] is True
    assert run_code(picod, "waited")["results"] == [{"text/plain": "1"}]


def test_context_that_cannot_start_reports_the_reason(tmp_path: Path) -> None:
    """An environment without a kernel is named as the cause; bash works, and a repaired python3 is used."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = programs / "python3"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: No module named ipykernel' >&2\nexit 1\n")
    python.chmod(0o755)
    with interpreter_process(tmp_path, path=str(programs)) as picod:
        reply = picod.client.post("/api/run_code", json={"code": "1"})
        assert reply.status_code == 503
        assert "No module named ipykernel" in reply.json()["error"]
        assert run_code(picod, "echo fine", language="bash")["stdout"] == "fine\n"
        python.write_text(f'#!/bin/sh\nexec {SANDBOX_BIN / "python3"} "$@"\n')
        assert run_code(picod, "1")["results"] == [{"text/plain": "1"}]


def test_run_that_waits_for_a_start_survives_a_restart(picod: Executor) -> None:
    """A restart takes the starting process away; the run that waited for it has the next one."""
    made = picod.client.post("/api/contexts", json={"language": "python"}).json()["id"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run_code, picod, "'ran'", context_id=made)
        for _ in range(3):
            assert picod.client.post(f"/api/contexts/{made}/restart").status_code == 200
        answer = waiting.result()
    assert answer["results"] == [{"text/plain": "'ran'"}] or answer["error"]["name"] == "Interrupted"
    assert run_code(picod, "2", context_id=made)["results"] == [{"text/plain": "2"}]
    picod.client.delete(f"/api/contexts/{made}")


def test_animation_is_one_result(picod: Executor) -> None:
    """What is updated or cleared does not use up the room: the last state is what is answered."""
    code = "h = display(0, display_id=True)\nfor i in range(400): h.update(i)\nNone"
    assert run_code(picod, code)["results"] == [{"text/plain": "399"}]
    code = "from IPython.display import clear_output\nfor i in range(400):\n    clear_output(wait=True)\n    display(i)"
    answer = run_code(picod, code)
    assert answer["results"] == [{"text/plain": "399"}]
    assert "results_omitted" not in answer


def test_cell_is_rewritten_once_and_by_registered_transformers(picod: Executor) -> None:
    """A transformer that code adds sees each cell once and changes what runs; a cell may run itself again."""
    louder = "def louder(lines):\n    seen.append(1)\n    return [line.replace('low', 'HIGH') for line in lines]\n"
    run_code(picod, f"seen = []\n{louder}get_ipython().input_transformers_post.append(louder)")
    assert run_code(picod, "'low'")["results"] == [{"text/plain": "'HIGH'"}]
    assert run_code(picod, "import asyncio\nawait asyncio.sleep(0, 'low')")["results"] == [{"text/plain": "'HIGH'"}]
    assert run_code(picod, "len(seen)")["results"] == [{"text/plain": "3"}]
    run_code(picod, "get_ipython().input_transformers_post.remove(louder); rounds = 0")
    again = "rounds += 1\nif rounds < 3:\n    get_ipython().run_cell(In[-1])"
    assert run_code(picod, again)["error"] is None
    assert run_code(picod, "rounds")["results"] == [{"text/plain": "3"}]


def test_no_result_is_lost_while_picod_is_slow(picod: Executor) -> None:
    """Code that shows thousands of results waits for an executor that is stopped, and each of them is counted."""
    stand_still = (
        "import os, signal, threading\nos.kill(os.getppid(), signal.SIGSTOP)\n"
        "threading.Timer(0.5, os.kill, (os.getppid(), signal.SIGCONT)).start()"
    )
    answer = run_code(picod, f"{stand_still}\nfor n in range(5_000): display(n)")
    assert len(answer["results"]) + answer["results_omitted"] == 5_000

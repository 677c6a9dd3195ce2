"""Code that floods, forges, crashes or hides: its own context suffers, picod and the next run do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.interpreters import interpreter_process, run_code
from tests.support.picod import Executor, running
from tests.support.waiting import wait_until

MAX_OUTPUT = 1_000_000
MAX_FILE = 5_000_000
INFINITE = b'{"msg_type": "display_data", "data": {"a": 1e999}}'


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One picod for all: each test finds it as the one before left it."""
    limits = ("--max-output", str(MAX_OUTPUT), "--max-spill", str(MAX_FILE))
    with interpreter_process(tmp_path_factory.mktemp("home"), *limits) as executor:
        run_code(executor, "1")
        yield executor


def test_flood_of_output_is_truncated_and_flagged(picod: Executor) -> None:
    """Its beginning and end are answered, a file has a part of it: neither memory nor disk fills."""
    before = picod.reset_peak()
    answer = run_code(picod, "while True: print('x' * 1000)", timeout=1)
    assert (answer["stdout_truncated"], answer["timed_out"]) == (True, True)
    assert MAX_OUTPUT < len(answer["stdout"]) < MAX_OUTPUT + 200
    assert (picod.workspace / answer["stdout_file"]).stat().st_size == MAX_FILE
    assert picod.memory("VmHWM") - before < 16 << 20
    assert run_code(picod, "2")["results"] == [{"text/plain": "2"}]


def test_flood_of_results_is_truncated_and_flagged(picod: Executor) -> None:
    """So many are answered, the others counted, and the run ends although the flood drops messages."""
    answer = run_code(picod, "for i in range(3_000): display(i)\n'end'")
    assert len(answer["results"]) == 256
    assert answer["results_omitted"] > 0
    assert answer["error"] is None


def test_large_results_are_dropped_and_flagged(picod: Executor) -> None:
    """Half of a text is of use, half of a picture is not; what no message can carry is counted."""
    before = picod.reset_peak()
    text = run_code(picod, "print = None\nclass Long:\n    def __repr__(self): return 'x' * 3_000_000\nLong()")
    assert len(text["results"][0]["text/plain"]) == 1 << 20
    assert text["results_truncated"] == [{"result": 0, "mime": "text/plain", "size": 3_000_000, "kept": 1 << 20}]
    code = "display({'text/html': 'x' * 10_000_000, 'text/plain': 'ten'}, raw=True)\n" * 2
    html = run_code(picod, code)
    assert [sorted(result) for result in html["results"]] == [["text/html", "text/plain"], ["text/plain"]]
    assert html["results_truncated"] == [{"result": 1, "mime": "text/html", "size": 10_000_000, "kept": 0}]
    assert run_code(picod, "display({'text/plain': 'x' * 30_000_000}, raw=True)")["results_omitted"] == 1
    assert picod.memory("VmHWM") - before < 150 << 20
    run_code(picod, "del print")


@pytest.mark.parametrize(
    "forged",
    [
        "socket.send_multipart([b'garbage'])",
        "socket.send_multipart([b'a', b'<IDS|MSG>', b'bad signature', b'{}', b'{}', b'{}', b'{}'])",
        "k.session.send(socket, 'status', {'execution_state': ['idle'] * 1000})",
        "k.session.send(socket, 'display_data', {'data': 7, 'transient': 'x'})",
        "k.session.send(socket, 'execute_result', {'data': {'text/plain': [1, {'a': None}]}}, parent={'msg_id': '0'})",
        "k.session.send(socket, 'clear_output', {'wait': 'perhaps'})",
        f"p, k.session.pack = k.session.pack, lambda _: {INFINITE!r}\nk.session.send(socket, 1)\nk.session.pack = p",
        "k.session.send(socket, 'status', {'execution_state': 'idle'}, parent=k.get_parent('shell'))",
    ],
)
def test_forged_messages_do_no_harm(picod: Executor, forged: str) -> None:
    """Whatever code writes into its kernel's channel, the run ends in order and the next is answered.

    Who says too early that all is done may find results of that run with the next one, or lose them; nothing else.
    """
    code = f"k = get_ipython().kernel\nsocket = k.iopub_socket\n{forged}\n'done'"
    answer = run_code(picod, code)
    assert answer["error"] is None
    early = "'idle'}" in forged
    assert {"text/plain": "'done'"} in answer["results"] or early
    after = run_code(picod, "3")["results"]
    assert after[-1:] == [{"text/plain": "3"}]
    assert len(after) == 1 or early


def test_broken_channel_is_a_death_of_the_context(picod: Executor) -> None:
    """A kernel that breaks the protocol is disconnected and killed; the next run gets a new one."""
    code = "import time\nget_ipython().kernel.iopub_socket.send_multipart([b''] * 1000)\ntime.sleep(60)"
    answer = run_code(picod, code)
    assert answer["error"]["name"] == "KernelDied"
    assert "closed its connection" in answer["error"]["value"]
    assert run_code(picod, "4")["results"] == [{"text/plain": "4"}]


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in 0, 1, 2: os.close(fd)",
        "import sys\nsys.stdout.close()\nsys.stderr.close()",
        "import sys\nsys.stdout = sys.stderr = object()",
        "import sys\nsys.stdout = None\ndel sys.stderr",
        "import os, sys\nprint('more than nothing', end='')\nos.close(1)",
    ],
)
def test_closed_streams_are_there_again_for_the_next_run(picod: Executor, code: str) -> None:
    """The run ends normally, and the output of the next one and of its children is read."""
    run_code(picod, "mark = 4")
    answer = run_code(picod, code, timeout=20)
    assert (answer["error"], answer.get("timed_out")) == (None, None), answer
    after = "import subprocess\nprint('mark is', mark)\nsubprocess.run(['echo', 'child']);"
    assert run_code(picod, after)["stdout"] == "mark is 4\nchild\n"


def test_error_without_a_printable_text_is_reported_and_keeps_the_variables(picod: Executor) -> None:
    """An exception whose text raises one ends the run at once, not at its timeout with the context's process."""
    code = "mark = 5\nclass Odd(Exception):\n    def __str__(self): raise Odd\nraise Odd"
    answer = run_code(picod, code, timeout=20)
    assert (answer["error"]["name"], answer.get("timed_out")) == ("Odd", None)
    assert "cannot be shown" in answer["error"]["value"]
    assert run_code(picod, "mark")["results"] == [{"text/plain": "5"}]


def test_children_that_hide_are_gone_when_the_run_is_killed(picod: Executor) -> None:
    """New sessions and groups, a parent that ignores the interrupt: no process outlives a run that is killed."""
    code = """
import os, signal, subprocess, sys, time
for _ in range(20):
    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', 'hidden-one'], start_new_session=True)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
while True: time.sleep(1)
"""
    answer = run_code(picod, code, timeout=2)
    assert answer["timed_out"] is True
    wait_until(lambda: not running("hidden-one"), "all of them are gone")
    assert run_code(picod, "5")["results"] == [{"text/plain": "5"}]


def test_context_survives_the_loss_of_its_folder(picod: Executor) -> None:
    """Code may remove the sockets and everything beside them; a context that begins anew has a folder again."""
    folder = "os.path.dirname(get_ipython().kernel.parent.abs_connection_file)"
    gone = run_code(picod, f"import os, shutil\nfolder = {folder}\nshutil.rmtree(folder)\nos.path.exists(folder)")
    assert gone["results"] == [{"text/plain": "False"}]
    assert run_code(picod, "6")["results"] == [{"text/plain": "6"}]
    assert picod.client.post("/api/contexts/default/restart").status_code == 200
    assert run_code(picod, "7")["results"] == [{"text/plain": "7"}]
    assert run_code(picod, "echo 8", language="bash")["stdout"] == "8\n"

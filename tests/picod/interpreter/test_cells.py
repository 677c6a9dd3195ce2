"""What a cell may do and how its end is reported, over a real picod and a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.interpreters import interpreter_process, run_code
from tests.support.picod import Executor


@pytest.fixture(scope="module")
def picod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One picod for all tests of this module."""
    with interpreter_process(tmp_path_factory.mktemp("home")) as executor:
        yield executor


def pictures(answer: dict[str, Any]) -> int:
    """How many results are pictures."""
    return sum("image/png" in result for result in answer["results"])


@pytest.mark.parametrize(
    "leave",
    ["exit()", "quit()", "exit(0)", "quit(0)", "import sys; sys.exit()", "import sys; sys.exit(0)",
     "raise SystemExit", "import builtins; builtins.exit()"],
)  # fmt: skip
def test_exit_ends_the_cell_and_keeps_the_context(picod: Executor, leave: str) -> None:
    """What a script ends with is not an error, and costs neither the variables nor the next run."""
    answer = run_code(picod, f"kept = {leave!r}\nprint('before')\n{leave}\nprint('after')")
    assert (answer["stdout"], answer["stderr"], answer["error"]) == ("before\n", "", None)
    after = run_code(picod, "kept")
    assert after["results"] == [{"text/plain": repr(leave)}] or after["results"] == [{"text/plain": f'"{leave}"'}]
    assert "notice" not in after


@pytest.mark.parametrize(("leave", "value"), [("exit(3)", "3"), ("sys.exit('no input')", "no input")])
def test_exit_with_a_failure_is_an_error(picod: Executor, leave: str, value: str) -> None:
    """A status other than 0, or a text, is what the program says went wrong."""
    error = run_code(picod, f"import sys\n{leave}")["error"]
    assert (error["name"], error["value"]) == ("SystemExit", value)


def test_exit_within_awaited_tasks_keeps_the_context(picod: Executor) -> None:
    """sys.exit in a task takes neither the kernel nor its loop away."""
    code = "import asyncio, sys\nalive = 1\nasync def leave(): sys.exit(0)\nawait asyncio.gather(leave(), leave())"
    assert run_code(picod, code)["error"] is None
    assert run_code(picod, "asyncio.run(leave())")["error"] is None
    assert run_code(picod, "await asyncio.sleep(0, alive)")["results"] == [{"text/plain": "1"}]
    trace = "".join(run_code(picod, "1/0")["error"]["traceback"])
    assert "SystemExit" not in trace


BROKEN_DISPLAYS = [
    ("class Broken:\n    def __repr__(self): raise ValueError('no repr')\nBroken()", "ValueError", "no repr"),
    ("class Broken:\n    def _repr_html_(self): raise KeyError('no html')\nBroken()", "KeyError", "'no html'"),
]


@pytest.mark.parametrize(("code", "name", "value"), BROKEN_DISPLAYS)
def test_error_of_a_display_has_its_real_name(picod: Executor, code: str, name: str, value: str) -> None:
    """A last expression that cannot be shown fails with what its repr raised."""
    error = run_code(picod, code)["error"]
    assert (error["name"], error["value"]) == (name, value)
    assert any(value in part for part in error["traceback"])


def test_error_without_a_text_keeps_its_name_and_traceback(picod: Executor) -> None:
    """An error whose own __str__ fails is still told of."""
    error = run_code(picod, "class Mute(Exception):\n    def __str__(self): raise TypeError\nraise Mute")["error"]
    assert error["name"] == "Mute"
    assert any("raise Mute" in part for part in error["traceback"])


GROUPS = {
    "group": "def fail(): raise ExceptionGroup('several', [ValueError('one'), KeyError('two')])\nfail()",
    "of-tasks": "import asyncio\nasync def fail(): raise ValueError('one')\n"
    "async with asyncio.TaskGroup() as group:\n    group.create_task(fail())",
    "behind-another": "try:\n    raise ExceptionGroup('several', [ValueError('one')])\n"
    "except* ValueError:\n    raise RuntimeError('last')",
    "long-chain": "error = ValueError('one')\nfor n in range(3000):\n    new = ValueError(str(n))\n"
    "    new.__context__ = error\n    error = new\nraise error",
}


@pytest.mark.parametrize("name", GROUPS)
def test_group_of_errors_has_a_traceback(picod: Executor, name: str) -> None:
    """With each error in it, in the answer and not in the output; IPython's own frames are not shown."""
    answer = run_code(picod, GROUPS[name])
    trace = "\n".join(answer["error"]["traceback"])
    assert "ValueError: one" in trace
    assert "interactiveshell" not in trace
    assert answer["stderr"] == ""
    assert run_code(picod, "1 + 1")["error"] is None


def test_traceback_that_does_not_end_the_cell_is_printed(picod: Executor) -> None:
    """display() of a broken object and %run of a failing script do not end the cell, and print the error."""
    code = "class Broken:\n    def __repr__(self): raise ValueError('no repr')\ndisplay(Broken())\nprint('went on')"
    answer = run_code(picod, code)
    assert (answer["stdout"], answer["error"]) == ("went on\n", None)
    assert "ValueError: no repr" in answer["stderr"]
    (picod.workspace / "failing.py").write_text("1/0\n")
    assert "ZeroDivisionError" in run_code(picod, "%run failing.py")["stderr"]


def test_pager_text_is_printed(picod: Executor) -> None:
    """Help in each of its forms is text in the output."""
    for code in ("help(len)", "len?", "?len", "%pinfo len"):
        assert "number of items in a container" in run_code(picod, code)["stdout"], code


def test_figure_as_the_last_expression_is_sent_once(picod: Executor) -> None:
    """It is neither sent a second time as an open figure, nor after plt.show(); a changed one is sent again."""
    begin = "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\naxes.plot([1, 2])\n"
    assert pictures(run_code(picod, f"{begin}figure")) == 1
    assert pictures(run_code(picod, f"{begin}plt.show()\nfigure")) == 1
    assert pictures(run_code(picod, f"{begin}display(figure)\naxes.plot([2, 1]);")) == 2


def test_figures_of_agg_are_shown(picod: Executor) -> None:
    """plt.show() shows figures after matplotlib.use('Agg'), each once; one that is not shown stays open."""
    agg = "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt\n"
    made = picod.client.post("/api/contexts", json={"language": "python"}).json()["id"]
    code = f"{agg}plt.plot([1, 2])\nplt.figure()\nplt.plot([2, 1])\nplt.show()"
    assert pictures(run_code(picod, code, context_id=made)) == 2
    assert pictures(run_code(picod, "plt.show()", context_id=made)) == 0
    assert pictures(run_code(picod, "figure = plt.figure()\nplt.plot([1])\nfigure", context_id=made)) == 1
    assert pictures(run_code(picod, "plt.show()", context_id=made)) == 1
    picod.client.delete(f"/api/contexts/{made}")


@pytest.mark.parametrize(
    "run",
    ["asyncio.run(work())", "asyncio.Runner().run(work())", "asyncio.new_event_loop().run_until_complete(work())",
     "asyncio.get_event_loop().run_until_complete(work())", "await work()"],
)  # fmt: skip
def test_event_loop_of_a_script_runs_in_a_cell(picod: Executor, run: str) -> None:
    """Code written for a script works as it stands, and so does `await` before and after it."""
    work = "import asyncio\nasync def work():\n    await asyncio.sleep(0)\n    return 'done'\n"
    assert run_code(picod, f"{work}{run}")["results"] == [{"text/plain": "'done'"}]
    assert run_code(picod, "task = asyncio.create_task(work())")["error"] is None
    assert run_code(picod, "await task, await work()")["results"] == [{"text/plain": "('done', 'done')"}]


def test_event_loop_of_a_cell_is_interrupted(picod: Executor) -> None:
    """A timeout ends asyncio.run as it ends other code, and the next cell runs."""
    answer = run_code(picod, "held = 1\nimport asyncio\nasyncio.run(asyncio.sleep(60))", timeout=0.5)
    assert answer["timed_out"] is True
    assert run_code(picod, "await asyncio.sleep(0, held)")["results"] == [{"text/plain": "1"}]

"""Contexts across a hibernation: saved into the workspace of one picod, read back by another over that workspace."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.interpreters import interpreter_process, run_code
from tests.support.picod import Executor


def suspend(picod: Executor) -> dict[str, Any]:
    """Save, and return the report."""
    reply = picod.client.post("/api/suspend")
    assert reply.status_code == 200, reply.text
    report: dict[str, Any] = reply.json()
    return report


def files_of(picod: Executor) -> dict[str, bytes]:
    """Every file of the workspace."""
    return {str(p.relative_to(picod.workspace)): p.read_bytes() for p in picod.workspace.rglob("*") if p.is_file()}


@contextlib.contextmanager
def woken(home: Path, asleep: Executor) -> Iterator[Executor]:
    """Another picod, with the workspace of the first."""
    with interpreter_process(home) as picod:
        shutil.copytree(asleep.workspace, picod.workspace, dirs_exist_ok=True, symlinks=True)
        assert picod.client.post("/api/resume").status_code == 200
        yield picod


STATE = """
import os, math, numpy as np, pandas as pd, dataclasses, threading, linecache
shared = [1]
both = {"a": shared, "b": shared}
table = pd.DataFrame({"price": [1, 2]})
factor = 2
def times(x, *, by=None):
    "Says what it does."
    return x * (factor if by is None else by)
def counter():
    n = 0
    def up():
        nonlocal n
        n += 1
        return n
    return up
up = counter(); up()
def fact(n): return 1 if n < 2 else n * fact(n - 1)
class Point:
    unit = "m"
    def __init__(self, x): self.x = x
    def scaled(self): return Point(self.x * factor)
@dataclasses.dataclass
class Item:
    name: str
point, item = Point(3), Item("nut")
lock = threading.Lock()
handle = open("open.txt", "w")
generator = (i for i in range(3))
os.environ["FROM_BEFORE"] = "yes"
os.makedirs("deep", exist_ok=True); os.chdir("deep")
"""

CHECKS = {
    "both['a'] is both['b'] is shared": "True",
    "int(table.price.sum())": "3",
    "times(5), times(5, by=3), times.__doc__": "(10, 15, 'Says what it does.')",
    "up()": "2",
    "fact(5)": "120",
    "point.scaled().x, type(point) is Point, Point.unit": "(6, True, 'm')",
    "item": "Item(name='nut')",
    "math.pi > 3, int(np.sum([1, 2]))": "(True, 3)",
    "os.environ['FROM_BEFORE'], os.path.basename(os.getcwd())": "('yes', 'deep')",
}


def test_variables_that_pickle_are_restored_and_the_others_named(tmp_path: Path) -> None:
    """Data, functions, classes, shared objects, folder and environment survive; locks and files are told of, once."""
    with interpreter_process(tmp_path) as first:
        assert run_code(first, STATE)["error"] is None
        report = suspend(first)
        assert {entry["name"] for entry in report["unsaved"]} == {"lock", "handle", "generator"}
        assert {entry["context"] for entry in report["unsaved"]} == {"default"}
        with woken(tmp_path, first) as second:
            told = run_code(second, "factor")
            assert told["restored"]["restored"] == report["saved"]
            assert {entry["name"] for entry in told["restored"]["unsaved"]} == {"lock", "handle", "generator"}
            assert told["execution_count"] > 1
            for expression, shown in CHECKS.items():
                answer = run_code(second, expression)
                assert answer["results"] == [{"text/plain": shown}], (expression, answer)
                assert "restored" not in answer
            # Restored functions see variables as they change, and show their source.
            assert run_code(second, "factor = 7\ntimes(1), point.scaled().x")["results"] == [{"text/plain": "(7, 21)"}]
            shown = run_code(second, "import inspect\nprint(inspect.getsource(fact))")["stdout"]
            assert shown.startswith("def fact(n)")


def test_suspend_changes_nothing_else_and_may_be_repeated(tmp_path: Path) -> None:
    """The context keeps its variables; a second save gives the same; the saved state is deleted when code runs."""
    with interpreter_process(tmp_path) as picod:
        run_code(picod, "x = 1")
        before = files_of(picod)
        assert suspend(picod) == suspend(picod) == {"saved": 1, "unsaved": []}
        kept = files_of(picod)
        assert {name for name in kept if name not in before} == {
            ".wakegate/state/default.json",
            ".wakegate/state/default.pickle",
        }
        assert run_code(picod, "x")["results"] == [{"text/plain": "1"}]
        assert files_of(picod) == before


def test_session_without_contexts_leaves_no_trace(tmp_path: Path) -> None:
    """A session that never ran code has the workspace that it had."""
    with interpreter_process(tmp_path) as picod:
        assert suspend(picod) == {"saved": 0, "unsaved": []}
        assert picod.client.post("/api/resume").json() == {"contexts": []}
        assert files_of(picod) == {}


def test_context_that_is_not_used_between_two_hibernations_is_kept(tmp_path: Path) -> None:
    """A wake for something else does not cost the variables."""
    with interpreter_process(tmp_path) as first:
        run_code(first, "x = 'still here'")
        suspend(first)
        with woken(tmp_path, first) as second:
            second.execute("true")
            assert suspend(second) == {"saved": 1, "unsaved": []}
            with woken(tmp_path, second) as third:
                assert run_code(third, "x")["results"] == [{"text/plain": "'still here'"}]


def test_bash_context_comes_back(tmp_path: Path) -> None:
    """Its folder, variables and functions, too."""
    with interpreter_process(tmp_path) as first:
        run_code(first, "mkdir -p deep; far=1; f() { echo f $far; }", language="bash")
        assert suspend(first)["saved"] == 1
        with woken(tmp_path, first) as second:
            answer = run_code(second, "f", language="bash")
            assert answer["stdout"] == "f 1\n"
            assert answer["restored"] == {"restored": 1, "unsaved": []}


def test_running_code_is_not_waited_for(tmp_path: Path) -> None:
    """A busy context is named as unsaved at once."""
    import threading

    with interpreter_process(tmp_path) as picod:
        run_code(picod, "1")
        thread = threading.Thread(target=run_code, args=(picod, "import time\ntime.sleep(60)"))
        thread.start()
        while picod.client.get("/api/contexts").json()["contexts"][0]["state"] != "busy":
            pass
        assert suspend(picod)["unsaved"] == [{"context": "default", "name": "*", "reason": "code was running in it"}]
        picod.client.post("/api/contexts/default/interrupt")
        thread.join()


def test_broken_state_is_reported_and_the_context_works(tmp_path: Path) -> None:
    """A pickle that was tampered with costs its variables, not the session."""
    with interpreter_process(tmp_path) as first:
        run_code(first, "x = 1")
        suspend(first)
        (first.workspace / ".wakegate/state/default.pickle").write_bytes(b"no pickle")
        with woken(tmp_path, first) as second:
            answer = run_code(second, "1 + 1")
            assert answer["results"] == [{"text/plain": "2"}]
            assert [entry["name"] for entry in answer["restored"]["unsaved"]] == ["x"]


def test_class_that_is_gone_costs_its_objects_only(tmp_path: Path) -> None:
    """A module of the workspace that changed meanwhile is no reason to lose everything else."""
    with interpreter_process(tmp_path) as first:
        (first.workspace / "things.py").write_text("class Thing:\n    pass\n")
        run_code(first, "import things\nthing = things.Thing()\nother = [1, 2]")
        suspend(first)
        (first.workspace / "things.py").write_text("")
        with woken(tmp_path, first) as second:
            answer = run_code(second, "other")
            assert answer["results"] == [{"text/plain": "[1, 2]"}]
            assert [entry["name"] for entry in answer["restored"]["unsaved"]] == ["thing"]


IMPORT_PATH = """
import os, sys
os.makedirs("lib", exist_ok=True)
open("lib/mine.py", "w").write("class Mine:\\n    word = 'from lib'\\n")
open("mine.py", "w").write("class Mine:\\n    word = 'from the workspace'\\n")
sys.path.insert(0, os.path.abspath("lib"))
sys.setrecursionlimit(4000)
import mine
thing = mine.Mine()
deep = []
for _ in range(900): deep = [deep]
"""


def test_import_path_comes_back_in_its_order(tmp_path: Path) -> None:
    """A folder that the code put first is first again, though the workspace lies elsewhere and has the same module."""
    with interpreter_process(tmp_path) as first:
        assert run_code(first, IMPORT_PATH)["error"] is None
        assert suspend(first)["unsaved"] == []
        with woken(tmp_path, first) as second:
            answer = run_code(second, "thing.word, mine.Mine is type(thing), sys.getrecursionlimit()")
            assert answer["results"] == [{"text/plain": "('from lib', True, 4000)"}], answer
            answer = run_code(second, "sys.path[0] == os.path.abspath('lib')")
            assert answer["results"] == [{"text/plain": "True"}]


FAILING = """
class Fine:
    pass
import things
fine, thing, many = Fine(), things.Thing(), [things.Thing(), 7]
numbers = {"a": [1, 2]}
"""


def test_object_that_fails_to_come_back_costs_itself_only(tmp_path: Path) -> None:
    """A class that now raises when it is filled takes no other variable along, and is named, in lists too."""
    with interpreter_process(tmp_path) as first:
        (first.workspace / "things.py").write_text("class Thing:\n    def __init__(self): self.x = 1\n")
        assert run_code(first, FAILING)["error"] is None
        suspend(first)
        broken = "class Thing:\n    def __setstate__(self, state): raise RuntimeError('no longer')\n"
        (first.workspace / "things.py").write_text(broken)
        with woken(tmp_path, first) as second:
            answer = run_code(second, "type(fine) is Fine, numbers, many[1]")
            assert answer["results"] == [{"text/plain": "(True, {'a': [1, 2]}, 7)"}], answer
            unsaved = {entry["name"]: entry["reason"] for entry in answer["restored"]["unsaved"]}
            assert unsaved == {"thing": "no longer"} or unsaved == {
                "thing": "no longer", "(objects of things.Thing)": "no longer"
            }  # fmt: skip


def test_objects_inside_of_variables_that_are_lost_are_named(tmp_path: Path) -> None:
    """A list whose objects have no class any more comes back, and says what it lacks."""
    with interpreter_process(tmp_path) as first:
        (first.workspace / "things.py").write_text("class Thing:\n    pass\n")
        run_code(first, "import things\nmany = [things.Thing(), 7]")
        suspend(first)
        (first.workspace / "things.py").unlink()
        with woken(tmp_path, first) as second:
            answer = run_code(second, "many[1]")
            assert answer["results"] == [{"text/plain": "7"}]
            names = {entry["name"] for entry in answer["restored"]["unsaved"]}
            assert names == {"things", "(objects of things.Thing)"}


def test_state_that_kills_its_reader_is_kept_aside(tmp_path: Path) -> None:
    """Variables that cannot be read back now are not deleted; the context works without them."""
    with interpreter_process(tmp_path) as first:
        (first.workspace / "things.py").write_text("class Thing:\n    def __init__(self): self.x = 1\n")
        run_code(first, "import things\nthing = things.Thing()")
        suspend(first)
        deadly = "import os\nclass Thing:\n    def __setstate__(self, state): os._exit(1)\n"
        (first.workspace / "things.py").write_text(deadly)
        kept = (first.workspace / ".wakegate/state/default.pickle").read_bytes()
        with woken(tmp_path, first) as second:
            assert run_code(second, "1")["error"]["name"] == "KernelDied"
            assert (second.workspace / ".wakegate/state/default.pickle.failed").read_bytes() == kept
            assert run_code(second, "1 + 1")["results"] == [{"text/plain": "2"}]


ODD = {
    "leaves-by-exit": "class A:\n    def __getstate__(self): raise SystemExit(3)",
    "leaves-by-interrupt": "class A:\n    def __reduce__(self): raise KeyboardInterrupt",
    "leaves-when-it-is-made": "def leave(): raise SystemExit\nclass A:\n    def __reduce__(self): return leave, ()",
    "leaves-when-it-is-filled": "class A:\n    x = 1\n    def __getstate__(self): return 1\n"
    "    def __setstate__(self, _): raise SystemExit",
    "module-that-leaves": "import os, sys; os.makedirs('mods'); sys.path.append(os.path.abspath('mods'))\n"
    "open('mods/leaving.py', 'w').write('class A: pass\\n'); import leaving\n"
    "A = leaving.A; open('mods/leaving.py', 'w').write('raise SystemExit(1)\\n')",
    "never-ends": "import time\nclass A:\n    def __reduce__(self): time.sleep(1000)",
}


@pytest.mark.parametrize("name", ODD)
def test_one_object_that_leaves_costs_no_other_variable(tmp_path: Path, name: str) -> None:
    """By an exception that is no Exception, or by never coming to an end: the others are there."""
    with interpreter_process(tmp_path / "one") as picod:
        assert run_code(picod, f"{ODD[name]}\nbefore = [1]\nodd = A()\nafter = {{'a': before}}")["error"] is None
        suspend(picod)
        with woken(tmp_path / "two", picod) as other:
            assert run_code(other, "print(after['a'] is before, 'odd' in globals())")["stdout"] == "True False\n"


def test_own_alarm_of_the_code_goes_on_while_it_is_saved(tmp_path: Path) -> None:
    """Saving borrows the timer of the process for as long as it takes."""
    code = "import signal; rang = []; signal.signal(signal.SIGALRM, lambda *_: rang.append(1)); signal.alarm(1)"
    with interpreter_process(tmp_path / "one") as picod:
        assert run_code(picod, code)["error"] is None
        suspend(picod)
        wait = "import time\nfor _ in range(300):\n    if rang: break\n    time.sleep(0.02)\nprint(rang)"
        assert run_code(picod, wait)["stdout"] == "[1]\n"


def test_module_of_the_first_folder_is_found_from_another(tmp_path: Path) -> None:
    """The import path begins with the folder that the code is in, which it may have changed since."""
    code = "open('own.py', 'w').write('class Q: z = 1\\n'); import os, own; q = own.Q()"
    with interpreter_process(tmp_path / "one") as picod:
        assert run_code(picod, f"{code}\nos.makedirs('w'); os.chdir('w')")["error"] is None
        suspend(picod)
        with woken(tmp_path / "two", picod) as other:
            code = "import sys; print(q.z, own.Q.z, os.path.basename(os.getcwd()), len(sys.path) == len(set(sys.path)))"
            assert run_code(other, code)["stdout"] == "1 1 w True\n"

"""Scripts on the preloaded interpreter do what they do on a fresh one: a corpus, run both ways and compared.

Lines at the top of a corpus file say how it is run: `# args: A B`, `# env: NAME=VALUE`, `# as: -c` (its text is the
code) or `# as: -m` (its name is the module); after `# raw:` the script itself stands with escapes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.picod import Executor
from tests.support.preloaded import PYTHON, preloaded, waiting_child

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.py"))
MODULES = "numpy,json,logging,random,threading,multiprocessing.pool,subprocess,uuid,concurrent.futures.thread"

# Matplotlib's modules hold streams as defaults of functions, look at HOME, and are many.
PLOTS = "numpy,matplotlib.pyplot"
CONFIG = {"MPLCONFIGDIR": "/tmp/.wakegate-test-matplotlib"}  # with the local engine each sandbox has its own
MORE_TO_COLLECT = {"garbage_callbacks"}  # with that many modules the collector runs once more at the end
QUICK = {"finaliser", "generator_at_exit", "streams", "frames", "environment", "as_module", "threads"}


@dataclass
class Case:
    """One script and how it is run."""

    name: str
    source: bytes
    how: str = ""
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Case:
        """Read a file of the corpus."""
        case = cls(path.stem, path.read_bytes())
        for name, value in re.findall(r"^# (args|env|as|raw):(.*)$", path.read_text(), re.MULTILINE):
            if name == "args":
                case.args = shlex.split(value)
            elif name == "env":
                case.env = dict(word.split("=", 1) for word in shlex.split(value))
            elif name == "as":
                case.how = value.strip()
            else:
                case.source = value.removeprefix(" ").encode("latin-1").decode("unicode_escape").encode("latin-1")
        return case

    def command(self) -> list[str]:
        """The argv of /api/execute for this case."""
        if self.how == "-c":
            return ["python3", "-c", self.source.decode(), *self.args]
        return ["python3", *(["-m", self.name] if self.how else [f"{self.name}.py"]), *self.args]


def run(picod: Executor, case: Case) -> dict[str, Any]:
    """Run a case in its own folder. Returns output, exit code and files, with unavoidable differences removed."""
    folder = picod.workspace / case.name
    folder.mkdir()
    if case.how != "-c":
        (folder / f"{case.name}.py").write_bytes(case.source)
    answer = picod.execute(*case.command(), working_dir=case.name, env=case.env)
    files = {
        str(path.relative_to(folder)): path.read_bytes().replace(str(picod.workspace).encode(), b"WORKSPACE")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    texts = {name: alike(answer[name], picod) for name in ("stdout", "stderr")}
    return {**texts, "exit_code": answer["exit_code"], "files": files}


def alike(text: str, picod: Executor) -> str:
    """Replace what differs between any two runs: addresses and the workspace's path."""
    return re.sub(r"0x[0-9a-f]+", "0x", text).replace(str(picod.workspace.parent), "FOLDER")


@pytest.fixture(scope="module")
def plain() -> Iterator[Executor]:
    """A picod that starts a fresh interpreter for each script."""
    with preloaded("") as picod:
        yield picod


@pytest.fixture(scope="module")
def forked() -> Iterator[Executor]:
    """A picod with a preloaded interpreter."""
    with preloaded(MODULES) as picod:
        yield picod


@pytest.fixture(scope="module")
def plain_beside_plots() -> Iterator[Executor]:
    """As `plain`, with the same environment as `forked_beside_plots`."""
    with preloaded("", **CONFIG) as picod:
        yield picod


@pytest.fixture(scope="module")
def forked_beside_plots() -> Iterator[Executor]:
    """A picod with matplotlib preloaded."""
    with preloaded(PLOTS, **CONFIG) as picod:
        yield picod


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_script_runs_alike_both_ways(plain: Executor, forked: Executor, path: Path) -> None:
    """Output, errors, exit code and files of a forked script are those of a fresh interpreter."""
    check(plain, forked, path)


@pytest.mark.parametrize("path", [path for path in CORPUS if path.stem in QUICK], ids=lambda path: path.stem)
def test_script_runs_alike_beside_plots(
    plain_beside_plots: Executor, forked_beside_plots: Executor, path: Path
) -> None:
    """Some of them with matplotlib preloaded."""
    check(plain_beside_plots, forked_beside_plots, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [path for path in CORPUS if path.stem not in QUICK | MORE_TO_COLLECT], ids=lambda path: path.stem
)
def test_script_runs_alike_beside_plots_at_length(
    plain_beside_plots: Executor, forked_beside_plots: Executor, path: Path
) -> None:
    """The scripts of the corpus that the fast test leaves out."""
    check(plain_beside_plots, forked_beside_plots, path)


def check(plain: Executor, forked: Executor, path: Path) -> None:
    """Run a script both ways and compare."""
    case = Case.read(path)
    expected = run(plain, case)
    waiting = waiting_child(forked)
    seen = run(forked, case)

    assert expected == seen
    assert waiting != waiting_child(forked), "the script did not run in the child that waited"


def test_corpus_is_varied() -> None:
    """Sixty scripts at least, and the interpreter that runs them is the one on the PATH of commands."""
    assert len(CORPUS) >= 60
    assert PYTHON.exists()

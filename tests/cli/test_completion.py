"""What a shell is answered that completes a command line, by itself and in real bash, zsh and fish."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40


def answer(line: str) -> set[str]:
    """The words that bash is offered for a line; the last one, which may be empty, is the one being typed."""
    words = {"_WAKEGATE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WAKEGATE_")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway"], capture_output=True, text=True, cwd=ROOT, timeout=LIMIT,
        env={**clean, **words, "WAKEGATE_URL": "http://127.0.0.1:1"},
    )  # fmt: skip
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("wakegate po", {"pools", "port-forward"}),
        ("wakegate runtimes ", {"get", "ls", "validate"}),
        ("wakegate ls --state h", {"hibernating", "hibernated"}),
        ("wakegate ls -o ", {"table", "json", "yaml", "name"}),
        ("wakegate get x", set()),  # no gateway answers, and a prompt is no place for an error
        ("wakegate keys r", {"revoke", "rotate"}),  # of argparse
        ("wakegate keys create --role m", {"member", "metrics"}),
        ("wakegate serve --warm", {"--warm-pool"}),
    ],
)
def test_shell_is_offered_what_may_follow(line: str, expected: set[str]) -> None:
    """Commands, verbs, flags and their values, also of the commands that use no gateway."""
    assert answer(line) == expected


_SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], "source <(wakegate completion bash)"),
    "zsh": (
        ["-f", "-i"],
        "wakegate completion zsh > f/_wakegate; fpath=($PWD/f $fpath); autoload -Uz compinit; compinit -u",
    ),
    "fish": (["-N", "-i"], "wakegate completion fish | source"),
}


@pytest.mark.parametrize("shell", _SHELLS)
def test_first_tab_completes_in_a_real_shell(tmp_path: Path, shell: str) -> None:
    """The script is loaded as docs/cli.md has it; the command runs, so what was completed is whole."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"no {shell} is installed")
    (tmp_path / "bin").mkdir()
    (tmp_path / "f").mkdir()
    command = tmp_path / "bin" / "wakegate"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway "$@"\n')
    command.chmod(0o755)
    flags, load = _SHELLS[shell]
    environ = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "xterm",
        "HOME": str(tmp_path),
    }  # fmt: skip
    running = pexpect.spawn(path, flags, env=environ, cwd=str(tmp_path), timeout=LIMIT, dimensions=(40, 150))
    try:
        running.send(load + "; echo load''ed\r")
        running.expect("loaded")
        running.send("wakegate valid")  # nothing begins so: the line must stay as it is
        running.send("\x15")
        running.send("wakegate runtimes val\t")
        running.expect("validate")
        running.send("--help\r")
        running.expect("Check manifests as a gateway would")
    finally:
        running.close(force=True)

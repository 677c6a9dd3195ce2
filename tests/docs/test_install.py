"""scripts/install as far as it needs no index: what it takes for up to date, and what it makes again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAMPED = ("pyproject.toml", "constraints.txt", "scripts/install", "picod/userside/wakegate_workspace.py")
BEGAN = 7  # the status of the stub below, in place of two minutes of pip


def checkout(folder: Path) -> Path:
    """A checkout with what scripts/install reads, whose environments are up to date."""
    for name in STAMPED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name in (".venv", ".venv-sandbox"):
        venv.EnvBuilder(with_pip=False).create(folder / name)
        # venv writes this line when it is run as a program.
        with open(folder / name / "pyvenv.cfg", "a") as config:
            config.write(f"command = /usr/bin/python3 -m venv {folder / name}\n")
    program = folder / ".venv/bin/wakegate"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    stamp = subprocess.run(
        f"cat {' '.join(STAMPED)} | cksum | cut -d' ' -f1", shell=True, cwd=folder, capture_output=True, text=True
    )
    (folder / ".venv/.wakegate-installed").write_text(f"{stamp.stdout.strip()} run\n")
    return folder


def install(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with a Python that makes no environment."""
    stub = folder / "python-stub"
    stub.write_text(f'#!/bin/sh\ncase "$*" in "-m venv"*) exit {BEGAN};; esac\nexec {sys.executable} "$@"\n')
    stub.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "WAKEGATE_PYTHON": str(stub)}
    return subprocess.run(
        [str(folder / "scripts/install"), *arguments], env=environment, capture_output=True, text=True, timeout=30
    )


def test_environments_that_are_up_to_date_are_left_alone(tmp_path: Path) -> None:
    """In a folder with unusual characters too, and without output."""
    done = install(checkout(tmp_path / "a [b] $c.d"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_environments_of_another_place_are_made_again(how: str, tmp_path: Path) -> None:
    """Their programs begin with the path of the Python that they were made for; the original keeps its own."""
    there, here = checkout(tmp_path / "there"), tmp_path / "here"
    if how == "moved":
        there.rename(here)
    else:
        shutil.copytree(there, here, symlinks=True)
    done = install(here)
    assert done.returncode == BEGAN
    assert ".venv was made in another place" in done.stderr
    assert ".venv-sandbox was made in another place" in done.stderr
    assert not (here / ".venv").exists()
    assert how == "moved" or (there / ".venv/bin/wakegate").exists()


def test_environment_whose_python_is_gone_is_made_again(tmp_path: Path) -> None:
    """An upgrade of the system took away the interpreter that it links to."""
    folder = checkout(tmp_path / "checkout")
    python = folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python2.0")
    done = install(folder)
    assert done.returncode == BEGAN
    assert ".venv-sandbox was made in another place" not in done.stderr


def test_unknown_argument_is_refused(tmp_path: Path) -> None:
    """Nothing is set up for a typo."""
    done = install(checkout(tmp_path / "checkout"), "devel")
    assert done.returncode == 1
    assert "unknown argument 'devel'; expected nothing, or dev" in done.stderr

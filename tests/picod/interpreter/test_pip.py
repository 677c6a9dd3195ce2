"""pip in a sandbox without a network: what is answered in its place, and what is left to it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from gateway.provider.local.bwrap import find_bwrap
from tests.support.picod import ROOT

# In place of pip: whether it was started shows in the status, and no import of the real one is waited for.
STUB = "import os, sys\nprint('started', os.environ.get('PIP_NO_INDEX'), sys.argv[1:])\nsys.exit(7)\n"
STARTED = 7


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment as scripts/install makes it, in which `there_is` 1.0 is installed."""
    folder = tmp_path_factory.mktemp("shared") / "venv"
    venv.EnvBuilder(with_pip=False).create(folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "pip").mkdir()
    (packages / "pip/__main__.py").write_text(STUB)
    (packages / "There_Is-1.0.dist-info").mkdir()
    shutil.copy(ROOT / "picod/userside/wakegate_workspace.py", packages)
    (packages / "wakegate_workspace.pth").write_text("import wakegate_workspace\n")
    return folder


def pip(shared: Path, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `python3 -m pip` where nothing is reachable."""
    bwrap = find_bwrap()
    assert bwrap is not None
    walls = [str(bwrap), "--dev-bind", "/", "/", "--unshare-user", "--unshare-net"]
    environment = {"PATH": f"{shared}/bin:/usr/bin:/bin", "HOME": str(home), **more}
    return subprocess.run(
        [*walls, str(shared / "bin/python3"), "-m", "pip", *arguments],
        env=environment, capture_output=True, text=True, cwd=home, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [
    ["install", "absent"],
    ["install", "--user", "absent"],
    ["install", "-q", "-U", "there-is", "absent[extra]>=2"],
    ["install", "-i", "https://127.0.0.1/simple", "absent==1.0"],
    ["--disable-pip-version-check", "install", "--timeout=3", "absent"],
    ["download", "there-is"],
    ["index", "versions", "there-is"],
])  # fmt: skip
def test_name_that_cannot_be_found_is_refused_before_pip_starts(
    shared: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """At once, with what can be installed instead, in pip's own words for who looks for them."""
    done = pip(shared, tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "this sandbox has no network. What can be installed: wheels" in done.stderr
    assert "ERROR: No matching distribution found for " in done.stderr
    assert not (tmp_path / ".wakegate").exists()


@pytest.mark.parametrize("arguments", [
    ["install", "there_is"],
    ["install", "There.Is==2.0"],
    ["install", "absent", "./absent-1.0-py3-none-any.whl"],
    ["install", "absent-1.0-py3-none-any.whl", "absent"],
    ["install", "--find-links", "wheels", "absent"],
    ["install", "--find-links=wheels", "absent"],
    ["install", "-r", "requirements.txt"],
    ["install", "--unheard-of", "value", "absent"],
    ["install", "absent @ file:///workspace/absent"],
    ["install", "--no-index", "absent"],
    ["list"],
    ["--help"],
    [],
])  # fmt: skip
def test_what_may_succeed_is_left_to_pip(shared: Path, tmp_path: Path, arguments: list[str]) -> None:
    """It may be there, lie in a folder or need rules of pip's."""
    done = pip(shared, tmp_path, *arguments)
    assert done.returncode == STARTED, done.stderr
    assert str([each for each in arguments if each != "--user"]) in done.stdout


def test_settings_that_name_folders_leave_the_decision_to_pip(shared: Path, tmp_path: Path) -> None:
    """By a variable, or in a file."""
    assert pip(shared, tmp_path, "install", "absent", PIP_FIND_LINKS="wheels").returncode == STARTED
    assert pip(shared, tmp_path, "install", "absent", PIP_CACHE_DIR="/tmp/c").returncode == 1
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\nindex-url = https://127.0.0.1/simple\n")
    assert pip(shared, tmp_path, "install", "absent").returncode == 1
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\nfind-links = wheels\n")
    assert pip(shared, tmp_path, "install", "absent").returncode == STARTED


def test_pip_that_has_a_way_out_is_started(shared: Path, tmp_path: Path) -> None:
    """A proxy, as a session with egress has one: the index is asked, without a word of ours."""
    done = pip(shared, tmp_path, "install", "absent", HTTPS_PROXY="http://127.0.0.1:9", PIP_RETRIES="1")
    assert (done.returncode, done.stderr) == (STARTED, "")
    assert "started None" in done.stdout


def test_session_s_own_packages_count_as_there(shared: Path, tmp_path: Path) -> None:
    """What was installed before is not refused."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / f".wakegate/python/lib/{version}/site-packages/absent-3.dist-info").mkdir(parents=True)
    assert pip(shared, tmp_path, "install", "absent").returncode == STARTED

"""The acceptance script of hibernation, against a real gateway of each engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kube.served import INTERPRETER, in_cluster
from tests.support.serve import serve

SCRIPT = Path(__file__).parents[2] / "scripts" / "acceptance_hibernation.py"


def run_script(url: str) -> tuple[int, str]:
    """Run the script. Returns its exit status and its output."""
    done = subprocess.run([sys.executable, str(SCRIPT), url], capture_output=True, text=True, timeout=55)
    return done.returncode, done.stdout + done.stderr


def test_sdk_works_across_hibernation_on_the_local_engine(tmp_path: Path) -> None:
    """Files of all kinds and code variables exist after each hibernation, for every call of the published SDK."""
    with serve(tmp_path / "state") as server:
        status, said = run_script(server.url)
    assert status == 0, said
    assert said.count("ok  ") >= 16, said


@pytest.mark.slow
def test_sdk_works_across_hibernation_in_a_cluster(tmp_path: Path) -> None:
    """The same with snapshots and pods. The simulator's pods have no ipykernel, so code contexts are off."""
    spec = {**INTERPRETER, "wakegate": {"codeContext": "off"}}
    with in_cluster(tmp_path, spec=spec) as (server, _):
        status, said = run_script(server.url)
    assert status == 0, said


def test_acceptance_script_fails_if_sessions_cannot_hibernate(tmp_path: Path) -> None:
    """It exits with 1 and prints the gateway's answer, here because the workspace exceeds the snapshot limit."""
    with serve(
        tmp_path / "state", "--snapshots", f"file://{tmp_path}/snapshots", "--snapshot-max-size", "64Ki"
    ) as server:
        status, said = run_script(server.url)
    assert status == 1, said
    assert "/hibernate answered" in said

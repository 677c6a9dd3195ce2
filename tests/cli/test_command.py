"""The command line as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from gateway.audit.keys import make_key, public_pem
from gateway.cli.command import START_FAILED, main
from gateway.cli.parser import parse
from gateway.core.settings import THEMES, Settings
from tests.support.serve import serve

ROOT = Path(__file__).resolve().parents[2]


def wakegate(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WAKEGATE_")}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        capture_output=True,
        text=True,
        env={**clean, **environ},
        cwd=ROOT,
        timeout=50,
    )


def test_every_setting_is_in_one_group_of_the_help() -> None:
    """A setting of a theme that THEMES lacks would have no flag."""
    grouped = [field.name for theme in THEMES.values() for field in fields(theme)]

    assert sorted(grouped) == sorted(field.name for field in fields(Settings))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["serve", "--prot", "9"], "unknown argument --prot, did you mean --port?"),
        (["serve", "--snapshot", "x"], "did you mean --snapshots?"),  # a prefix is no abbreviation
        (["serve", "--sto=x"], "unknown argument --sto=x, did you mean --store?"),
        (["srve"], "unknown command srve, did you mean serve?"),
        (["--verion"], "COMMAND"),
    ],
)
def test_typo_gets_a_suggestion_and_no_abbreviation_is_taken(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, with status 2."""
    with pytest.raises(SystemExit) as ended:
        parse(words)

    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert hint in error
    assert len(error.splitlines()) == 1


def test_help_names_units_and_defaults_as_a_person_writes_them(capsys: pytest.CaptureFixture[str]) -> None:
    """A default is printed as 168h, not as 604800.0."""
    with pytest.raises(SystemExit):
        parse(["serve", "--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert "--hibernated-retention DURATION" in text
    assert "(default: 168h)" in text
    assert "--snapshot-max-size SIZE" in text
    assert "604800" not in text


def test_doctor_looks_at_all_that_serve_uses_and_reports_for_programs(tmp_path: Path) -> None:
    """A sandbox is started and ended; each finding is one JSON object."""
    done = wakegate("doctor", "--json", "--state-dir", str(tmp_path / "state"), "--port", "0")

    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    whats = {finding["what"] for finding in found}
    assert whats >= {"session store", "port", "runtimes", "sandbox python", "isolation", "sandbox", "disk"}
    assert {finding["status"] for finding in found} <= {"ok", "warn"}


def test_doctor_reports_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    """A manifest that is not there, a Python that is none, a port that is taken."""
    with serve(tmp_path / "running") as server:
        port = server.url.rpartition(":")[2]
        flags = ["--runtime", str(tmp_path / "none.yaml"), "--sandbox-python", str(tmp_path), "--port", port]
        done = wakegate("doctor", "--state-dir", str(tmp_path / "state"), *flags)

    assert done.returncode == 1
    for line in ("FAIL  port: cannot listen", f"FAIL  runtimes: {tmp_path}/none.yaml", "FAIL  sandbox python:"):
        assert line in done.stdout, done.stdout


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_sandbox_python_that_no_sandbox_may_see_is_named_at_start(tmp_path: Path, command: str) -> None:
    """A base in a private folder would otherwise fail every sandbox, one by one, behind a gateway that looks well."""
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python3").symlink_to(sys.executable)
    (tmp_path / "env" / "pyvenv.cfg").write_text("home = /tmp/bin\n")
    state = str(tmp_path / "state")
    ended = wakegate(command, "--port", "0", "--sandbox-python", str(tmp_path / "env"), "--state-dir", state)
    assert ended.returncode == (2 if command == "serve" else 1)
    assert f"--sandbox-python {tmp_path}/env: the base interpreter" in ended.stderr + ended.stdout


def test_start_warns_that_code_contexts_have_no_kernel(tmp_path: Path) -> None:
    """And what to install; it starts all the same. A module to preload that is not there is named too."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with serve(
        tmp_path / "state", "--warm-pool", "0", "--sandbox-python", str(bare), "--preload", "json,nosuch"
    ) as one:
        text = one.log.read_text()

    assert "the sandbox's Python has no ipykernel" in text
    assert "pip install ipykernel" in text
    assert "the sandbox's Python has no nosuch" in text


def test_snapshot_store_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    """Not the first hibernation, hours later, and with no traceback."""
    (tmp_path / "file").write_text("")
    done = wakegate(
        "serve", "--port", "0", "--state-dir", str(tmp_path / "s"), "--snapshots", f"file://{tmp_path}/file/x"
    )

    assert done.returncode == 2
    assert "snapshots" in done.stderr
    assert "Traceback" not in done.stderr


def test_prune_keeps_sessions_and_ends_what_a_killed_gateway_left(tmp_path: Path) -> None:
    """A hibernated session wakes with its files afterwards."""
    state = tmp_path / "state"
    with serve(state, "--warm-pool", "0") as server:
        session = server.session()
        server.run(session, "echo kept > file")
        assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
        server.session()  # bound, and killed with the gateway
        busy = wakegate("prune", "--state-dir", str(state))
        assert busy.returncode == 2
        assert "state directory" in busy.stderr
        server.kill()
    done = wakegate("prune", "--state-dir", str(state))
    assert done.returncode == 0, done.stderr
    assert "freed" in done.stdout
    with serve(state, "--warm-pool", "0") as server:
        assert server.run(session, "cat file").json()["stdout"] == "kept\n"


def test_uninstall_deletes_the_state_directory_with_yes(tmp_path: Path) -> None:
    """Only then, only a state directory, and not while a gateway runs on it."""
    state = tmp_path / "state"
    with serve(state, "--warm-pool", "0") as server:
        server.session()
        assert wakegate("uninstall", "--yes", "--state-dir", str(state)).returncode == 2
    assert "would delete" in wakegate("uninstall", "--state-dir", str(state)).stdout
    assert state.exists()
    assert wakegate("uninstall", "--yes", "--state-dir", str(tmp_path)).returncode == 2
    assert wakegate("uninstall", "--yes", "--state-dir", str(state)).returncode == 0
    assert not state.exists()


def test_closed_pipe_causes_no_traceback(tmp_path: Path) -> None:
    """As in `wakegate doctor | head -1`."""
    command = f"{sys.executable} -m gateway doctor --port 0 --state-dir {tmp_path}/state | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=50)

    assert "Traceback" not in done.stderr


def test_audit_key_of_no_gateway_is_a_sentence_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped folder: an auditor would be given a key that signs nothing."""
    assert main(["audit", "key", "--state-dir", str(tmp_path / "typo")]) == START_FAILED
    assert "there is no audit key" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
    key = make_key(tmp_path / "state")
    assert main(["audit", "key", "--state-dir", str(tmp_path / "state")]) == 0
    assert capsys.readouterr().out.strip() == public_pem(key.public_key()).strip()

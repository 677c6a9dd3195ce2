"""The Dockerfiles' own commands, run without an image: what they install starts and works."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway import __version__

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 500


@dataclass
class Build:
    """The build stage of an image, with `/opt` and `/src` in a folder of the test's."""

    folder: Path
    instructions: list[tuple[str, str]]

    def here(self, text: str) -> str:
        """A command or a path of the image's as it is on this machine."""
        return re.sub(r"(?<![\w.])/(opt|src)\b", rf"{self.folder}/\1", text)

    def last(self, name: str) -> str:
        """The argument of the image's last instruction of that name."""
        return next(argument for each, argument in reversed(self.instructions) if each == name)

    def environ(self) -> dict[str, str]:
        """What ENV sets, after what the machine needs."""
        given = dict(pair.split("=", 1) for pair in self.last("ENV").split()) if self.has("ENV") else {}
        return {**os.environ, **{name: self.here(value) for name, value in given.items()}}

    def has(self, name: str) -> bool:
        """Whether there is such an instruction."""
        return any(each == name for each, _ in self.instructions)


def build(folder: Path, image: str) -> Build:
    """Run the first stage's COPY and RUN on a fresh archive of what is committed."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    source = folder / "checkout"
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(source, filter="data")
    text = (source / f"manifests/docker/{image}.Dockerfile").read_text().replace("\\\n", " ")
    instructions = [
        (line.split(" ", 1)[0], line.split(" ", 1)[1])
        for line in text.splitlines()
        if line.strip() and not line.startswith("#")
    ]
    made = Build(folder, instructions)
    for name in ("src", "opt"):
        (folder / name).mkdir()
    python = str(Path(sys.base_prefix) / "bin")  # what the base image has: an interpreter with nothing installed
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environ["PATH"] = f"{python}:{environ.get('PATH', '')}"
    for name, argument in instructions[1:]:
        if name == "FROM":
            break  # the second stage copies /opt
        if name == "COPY":
            *sources, target = argument.split()
            into = Path(made.here(target)) if target.startswith("/") else folder / "src" / target
            for each in sources:
                copy(
                    source / each,
                    into if (source / each).is_dir() or not target.endswith("/") else into / Path(each).name,
                )
        elif name == "RUN":
            command = ["sh", "-ec", made.here(argument)]
            done = subprocess.run(
                command, cwd=folder / "src", env=environ, capture_output=True, text=True, timeout=LIMIT_S
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return made


def copy(source: Path, target: Path) -> None:
    """Copy as a Dockerfile's COPY does."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", source, target], check=True)


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_gateway_image_installs_a_gateway_that_runs(tmp_path: Path) -> None:
    """Its RUN commands in a fresh environment: the entry point prints its version, and the doctor checks a machine."""
    made = build(tmp_path, "gateway")
    (program,) = json.loads(made.here(made.last("ENTRYPOINT")))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WAKEGATE_"))}
    said = subprocess.run([program, "--version"], capture_output=True, text=True, cwd="/", env=environ, timeout=60)
    assert said.stdout == f"wakegate {__version__}\n", said.stderr
    flags = ["doctor", "--state-dir", str(tmp_path / "state"), "--engine", "kubernetes", "--kubeconfig", "/none"]
    (tmp_path / "state").mkdir()
    said = subprocess.run([program, *flags], capture_output=True, text=True, cwd="/", env=environ, timeout=60)
    assert "FAIL  cluster: no access" in said.stdout, said.stderr
    assert "Traceback" not in said.stderr
    served = [program, *json.loads(made.last("CMD")), "--help"]
    assert subprocess.run(served, capture_output=True, cwd="/", env=environ, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S)
def test_picod_image_installs_a_picod_that_runs_user_code(tmp_path: Path) -> None:
    """Its RUN commands in fresh environments: picod starts from them alone, commands find the user's python3 with its
    packages, and a code context keeps variables."""
    made = build(tmp_path, "picod")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    argv = [*json.loads(made.here(made.last("ENTRYPOINT"))), "--host", "127.0.0.1", "--port", str(port)]
    environ = {**made.environ(), "PICOD_AUTH": "none", "PICOD_WORKSPACE": str(workspace)}
    process = subprocess.Popen(argv, cwd=workspace, env=environ)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    client.get("/health").raise_for_status()
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            script = "import sys, numpy, pandas; print(sys.prefix, numpy.arange(4).sum())"
            reply = client.post("/api/execute", json={"command": ["python3", "-c", script]}).json()
            assert reply["stdout"] == f"{tmp_path}/opt/user 6\n", reply
            for code, said in (("x = 41", ""), ("print(x + 1)", "42\n")):
                reply = client.post("/api/run_code", json={"code": code, "language": "python"}).json()
                assert reply["stdout"] == said, reply
    finally:
        process.terminate()
        process.wait(30)

"""Packages of agents: installed from the index in a sandbox, once per list, seen read-only by the agent."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.internet import Internet
from tests.support.serve import Server, serve

pytestmark = pytest.mark.processes

INDEX = "http://origin.example.com/files/agents/simple/"
AGENT = """
import os, parcel
class Flask:
    def __init__(self, name): pass
    def __call__(self, environ, start):
        start("200 OK", [("content-type", "text/plain")])
        try: open(parcel.__file__, "a"); kept = "writable"
        except OSError: kept = "read-only"
        return [f"{parcel.answer} {kept} {os.path.exists(parcel.__cached__)}".encode()]
app = Flask(__name__)
"""


@pytest.fixture
def server(world: Internet, tmp_path: Path) -> Iterator[Server]:
    """A gateway in the world's edge; the index has one package, `parcel`."""
    folder = world.files / "agents" / "simple" / "parcel"
    folder.mkdir(parents=True)
    info = "parcel-1.0.dist-info"
    with zipfile.ZipFile(folder / "parcel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("parcel.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"parcel.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    bridge = partial(world.bridge, tmp_path / "bridge")
    with serve(tmp_path / "state", "--package-index", INDEX, wrapper=world.enter, bridge=bridge) as made:
        yield made


def test_an_agent_has_the_packages_of_its_requirements(server: Server, world: Internet, tmp_path: Path) -> None:
    """Deployed twice they are installed once; a package that there is not is an error that names the line."""
    folder = tmp_path / "my-agent"
    folder.mkdir()
    (folder / "app.py").write_text(AGENT)

    def deploy(requirements: str) -> subprocess.CompletedProcess[str]:
        (folder / "requirements.txt").write_text(requirements)
        environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path)}
        command = [*world.enter, sys.executable, "-m", "gateway", "deploy", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)

    def downloads() -> int:
        return sum(str(each.get("path")).endswith("parcel-1.0-py3-none-any.whl") for each in world.requests())

    first = deploy("# ours\nparcel==1.0\n")
    assert first.returncode == 0, first.stdout + first.stderr + server.log.read_text()
    assert "packages: installed in" in first.stdout
    path = "/v1/namespaces/default/agent-runtimes/my-agent/invocations/"
    assert server.client.get(path).text == "42 read-only True"
    again = deploy("parcel==1.0\n")
    assert "packages: here already" in again.stdout, again.stdout + again.stderr
    assert downloads() == 1

    missing = deploy("parcel==1.0\nnosuch==3\n")
    assert missing.returncode != 0
    assert "requirements, line 2, 'nosuch==3'" in missing.stderr, missing.stderr
    assert server.client.get(path).text == "42 read-only True"

    # The sandbox that installs is the gateway's alone, and none is left.
    assert "agent-packages" not in server.client.get("/v1/runtimes").text
    sessions = server.client.get("/v1/sessions").json()["sessions"]
    assert not [each for each in sessions if each["runtime"] == "wakegate/agent-packages"], sessions

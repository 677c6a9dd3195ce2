"""Agents deployed from code into a cluster: no image is built, a gateway brings the files into their pods."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gateway.provider.kubernetes.pod import CODE_CONTAINER
from tests.support.kube.clusters import in_thread
from tests.support.kube.served import enforce_roles, flags_for, in_cluster
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import PODS
from tests.support.redis_server import free_port
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

SCRIPT = """
import http.server, os
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try: open("main.py", "a"); kept = "writable"
        except OSError: kept = "read-only"
        said = f"{open('word').read()} {os.getcwd()} {kept}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
http.server.ThreadingHTTPServer((os.environ["AGENT_HOST"], int(os.environ["PORT"])), Agent).serve_forever()
"""
PACKAGED = """
import parcel
class Flask:
    def __init__(self, name): pass
    def __call__(self, environ, start):
        start("200 OK", [("content-type", "text/plain")])
        return [str(parcel.answer).encode()]
app = Flask(__name__)
"""


def command(server: Server, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(home)}
    argv = [sys.executable, "-m", "gateway", *words]
    return subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)


def deploy(server: Server, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command(server, folder.parent, "deploy", str(folder), *words)


def ask(server: Server, name: str, session: str = "") -> Any:
    headers = {"x-session-id": session} if session else {}
    return server.client.get(f"/v1/namespaces/default/agent-runtimes/{name}/invocations/", headers=headers)


def pods(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    found = cluster.call(lambda: cluster.objects.all(PODS, "default"))
    return [each for each in found if each["metadata"]["annotations"].get("wakegate.io/runtime") == name]


def written(folder: Path, word: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(SCRIPT)
    (folder / "word").write_text(word)
    return folder


def test_a_folder_is_deployed_into_a_cluster_changed_and_undone(tmp_path: Path) -> None:
    """With the same words as on one machine. Sessions keep their revision; the pod holds no credential."""
    folder = written(tmp_path / "greeter", "one")
    with in_cluster(tmp_path) as (server, cluster):
        first = deploy(server, folder)
        assert first.returncode == 0, first.stdout + first.stderr + server.log.read_text()
        assert "revision 1 serves" in first.stdout
        said = ask(server, "greeter")
        assert (said.status_code, said.text) == (200, "one /app read-only"), said.text
        session = said.headers["x-session-id"]

        written(folder, "two")
        assert "revision 2 serves" in deploy(server, folder).stdout
        assert ask(server, "greeter").text.startswith("two ")
        assert ask(server, "greeter", session).text.startswith("one ")
        # An agent's pod has no picod to hand over files, so nothing is moved, and the session stays as it is.
        moved = command(server, tmp_path, "rollout", "move", "greeter")
        assert moved.returncode == 1, moved.stdout
        assert "has no picod" in " ".join(moved.stderr.split()), moved.stderr
        assert ask(server, "greeter", session).text.startswith("one ")
        undone = server.client.post("/v1/agents/greeter/rollout", json={"action": "undo"})
        assert undone.status_code == 200, undone.text
        wait_until(lambda: ask(server, "greeter").text.startswith("one "), "the first revision serves again")

        for pod in pods(cluster, "greeter"):
            assert [each["name"] for each in pod["spec"]["initContainers"]] == [CODE_CONTAINER]
            assert not [each for each in pod["spec"]["volumes"] if "secret" in each], pod["spec"]["volumes"]
            assert pod["spec"]["automountServiceAccountToken"] is False
        assert list((tmp_path / "state" / "snapshots" / "agents").iterdir()), "the bundles are in the snapshot store"


def test_pods_that_wait_get_their_files_from_whichever_gateway_there_is(tmp_path: Path) -> None:
    """The gateway is killed; a pod that is made meanwhile waits, and another gateway of the same store brings them."""
    folder = written(tmp_path / "greeter", "one")
    state, snapshots = tmp_path / "state", ("--snapshots", str(tmp_path / "kept"))
    with in_thread() as cluster:
        enforce_roles(cluster)
        flags = [*flags_for(cluster, tmp_path), *snapshots]
        with serve(state, *flags) as server:
            done = deploy(server, folder)
            assert done.returncode == 0, done.stdout + done.stderr + server.log.read_text()
            server.kill()
            (warm,) = pods(cluster, "greeter")
            cluster.call(partial(cluster.delete, "pods", "default", warm["metadata"]["name"]))

            def waits() -> bool:
                return any(
                    (each.get("state") or {}).get("running")
                    for pod in pods(cluster, "greeter")
                    for each in pod["status"].get("initContainerStatuses") or ()
                    if pod["metadata"]["uid"] != warm["metadata"]["uid"]
                )

            wait_until(waits, "another pod waits for its files")
        with serve(state, *flags) as server:
            wait_until(lambda: ask(server, "greeter").text == "one /app read-only", "it has been brought them")


def test_what_was_not_sent_or_is_another_tenants_is_refused(tmp_path: Path) -> None:
    """With the request that makes it; a broken archive is refused when it comes."""
    with in_cluster(tmp_path) as (server, _):
        broken = server.client.post("/v1/agent-bundles", content=b"no archive")
        assert broken.status_code == 400, broken.text
        spec = {
            "targetPort": [{"port": 8080, "protocol": "HTTP"}],
            "podTemplate": {"spec": {"containers": [{"name": "agent", "image": "deployed-from-code"}]}},
        }
        body = {"name": "ghost", "spec": spec, "bundle": "sha256:" + 64 * "0"}
        refused = server.client.post("/v1/agents", json=body)
        assert refused.status_code == 400, refused.text
        assert "POST /v1/agent-bundles first" in refused.text
        del body["bundle"]
        named = server.client.post("/v1/agents", json={**body, "spec": {**spec, "wakegate": {"egress": ["pypi"]}}})
        assert named.status_code == 400, named.text
        assert "reach no names" in named.text
        installed = server.client.post("/v1/agent-environments", json={"requirements": "parcel==1.0"})
        assert installed.status_code == 409, installed.text
        assert "--egress-port" in installed.text


@contextlib.contextmanager
def package_index(folder: Path) -> Iterator[str]:
    """One package, `parcel`, on this machine."""
    below = folder / "simple" / "parcel"
    below.mkdir(parents=True)
    info = "parcel-1.0.dist-info"
    with zipfile.ZipFile(below / "parcel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("parcel.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: parcel\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"parcel.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple/"
        server.shutdown()


def test_packages_are_installed_once_per_list_in_a_pod_and_brought_to_the_agents(tmp_path: Path) -> None:
    """A second deployment finds them; the sandbox that installs is not listed, and is gone afterwards."""
    folder = tmp_path / "parcelled"
    folder.mkdir()
    (folder / "app.py").write_text(PACKAGED)
    (folder / "requirements.txt").write_text("parcel==1.0\n")
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(package_index(tmp_path / "index"))
        port = free_port()
        egress = ["--egress-port", str(port), "--egress-address", f"127.0.0.1:{port}", "--package-index", index]
        server, cluster = stack.enter_context(in_cluster(tmp_path, *egress))
        first = deploy(server, folder)
        assert first.returncode == 0, first.stdout + first.stderr + server.log.read_text()
        assert "packages: installed in" in first.stdout
        assert ask(server, "parcelled").text == "42"
        (folder / "more.txt").write_text("another bundle")
        again = deploy(server, folder)
        assert "packages: here already" in again.stdout, again.stdout + again.stderr
        assert ask(server, "parcelled").text == "42"
        wait_until(lambda: not pods(cluster, "agent-packages"), "the sandbox that installed is gone")
        assert "agent-packages" not in server.client.get("/v1/runtimes").text

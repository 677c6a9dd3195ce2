"""`wakegate deploy`: what it finds to run, what it packs, and an agent that answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gateway.cli.deploy.entry import Entry, EntryError, find_entry
from gateway.cli.deploy.image import name_in
from gateway.cli.deploy.pack import PackError, bundle_of, files_of
from gateway.cli.deploy.serve_agent import kind_of
from tests.support.serve import serve
from tests.support.waiting import wait_until

FLASKLIKE = """
class Flask:
    def __init__(self, name): pass
    def __call__(self, environ, start):
        start("200 OK", [("content-type", "text/plain")])
        return [WORD.encode()]
WORD = "%s"
app = Flask(__name__)
"""
RUNNABLE = """
class RunnableLambda:
    def __init__(self, run): self.run = run
    def invoke(self, given, config): raise TypeError("no synchronous function, as in a graph of coroutines")
    async def ainvoke(self, given, config):
        return {"said": self.run(given), "thread": config["configurable"]["thread_id"]}
    async def astream(self, given, config):
        for each in given: yield each
agent = RunnableLambda(str.upper)
"""


@pytest.mark.parametrize(
    ("sources", "wanted", "expected"),
    [
        ({"app.py": "from fastapi import FastAPI\napi = FastAPI()"}, "", Entry("asgi", "app.py", "api")),
        ({"x.py": "", "main.py": "import flask\napp: object = flask.Flask('x')"}, "", Entry("wsgi", "main.py", "app")),
        ({"agent.py": "import re\nP = re.compile('x')\nif __name__ == '__main__': 1"}, "", Entry("script", "agent.py")),
        ({"graph.py": "graph = builder.compile()"}, "", Entry("runnable", "graph.py", "graph")),
        ({"pkg/a.py": "agent_app = AgentApp()"}, "pkg.a:agent_app", Entry("agentapp", "pkg/a.py", "agent_app")),
        ({"app.py": "a = FastAPI()\nb = Flask('x')"}, "app.py:a", Entry("asgi", "app.py", "a")),
        ({"only.py": "print()"}, "", Entry("script", "only.py")),
        ({"a.py": "from langchain_core import x\nchain = p | m | o()"}, "", Entry("runnable", "a.py", "chain")),
        ({"a.py": "flags = A | B"}, "", Entry("script", "a.py")),
        ({"a.py": "bot = make()"}, "a:bot", Entry("named", "a.py", "bot")),
    ],
)
def test_what_is_run_is_found_without_running_it(sources: dict[str, str], wanted: str, expected: Entry) -> None:
    """By the calls at a module's top level."""
    assert find_entry(sources, wanted) == expected


@pytest.mark.parametrize("sources", [{}, {"a.py": "x = 1", "b.py": ""}, {"app.py": "def f(:"}])
def test_a_folder_without_an_agent_is_refused(sources: dict[str, str]) -> None:
    """The text says what was looked for, or what is wrong."""
    with pytest.raises(EntryError):
        find_entry(sources)


def test_a_fault_of_syntax_is_shown_where_it_is() -> None:
    """With the line, as it stands there."""
    with pytest.raises(EntryError, match=r"^app\.py, line 2: .*: def f\(x:$"):
        find_entry({"app.py": "x = 1\ndef f(x:\n"})


def test_bundle_is_the_same_for_the_same_files_and_has_no_more_than_they_need(tmp_path: Path) -> None:
    """Times do not matter; caches, secrets and what is ignored stay here."""
    for name in ("a.py", ".env", "notes/x.txt", "__pycache__/a.pyc", "data/d.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / ".wakegateignore").write_text("notes/\n")
    files = files_of(tmp_path)
    assert sorted(files) == [".wakegateignore", "a.py", "data/d.csv"]
    first = bundle_of(files, {})
    os.utime(tmp_path / "a.py", (1, 1))
    assert bundle_of(files_of(tmp_path), {}) == first


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Whatever it leads to would be uploaded."""
    folder = tmp_path / "agent"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    (folder / "a.py").write_text("")
    (folder / "b.py").symlink_to("a.py")
    assert sorted(files_of(folder)) == ["a.py", "b.py"]
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(PackError, match="leads out of the folder"):
        files_of(folder)


def test_what_was_named_is_served_by_what_it_has() -> None:
    """Its class may be anything, and its source was not run when it was packed."""
    made = [type("Named", (), dict.fromkeys(names, print)) for names in (["invoke"], ["wsgi_app"], ["run"], [])]
    assert [kind_of(each()) for each in made] == ["runnable", "wsgi", "asgi", "asgi"]


def wakegate(folder: Path, *words: str, url: str = "http://127.0.0.1:1") -> subprocess.CompletedProcess[str]:
    """The command, for a gateway that need not be there."""
    environ = {**os.environ, "WAKEGATE_URL": url, "XDG_CONFIG_HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words], capture_output=True, text=True, env=environ, check=False
    )


@pytest.mark.processes
def test_a_dockerfile_has_the_same_entry_and_packages_and_no_secrets(tmp_path: Path) -> None:
    """Its command answers on all addresses of a container; one that somebody wrote is left alone."""
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "app.py").write_text(FLASKLIKE % "from an image")
    (folder / "requirements.txt").write_text("flask==3.1.2\n")
    (folder / ".wakegateignore").write_text("notes/\n")
    done = wakegate(tmp_path, "deploy", str(folder), "--dockerfile", "--port", "8099")
    assert done.returncode == 0, done.stderr
    lines = (folder / "Dockerfile").read_text().splitlines()
    assert 'COPY ["requirements.txt", "/tmp/requirements.txt"]' in lines
    assert "ENV AGENT_HOST=0.0.0.0 PORT=8099 PYTHONUNBUFFERED=1" in lines
    ignored = (folder / ".dockerignore").read_text().splitlines()
    assert {"**/.env", "**/.git", "**/notes"} <= set(ignored)
    command = json.loads(lines[-1].removeprefix("CMD "))
    assert command == ["python3", ".wakegate/serve_agent.py", "wsgi", "app", "app", "8099"]
    # On an address of this test's own, where no other test's server is.
    environ = {**os.environ, "AGENT_HOST": "127.80.99.1"}
    with subprocess.Popen([sys.executable, *command[1:]], cwd=folder, env=environ) as agent:
        try:
            wait_until(lambda: _said("http://127.80.99.1:8099/") == "from an image", "it answers")
        finally:
            agent.kill()
    assert wakegate(tmp_path, "deploy", str(folder), "--dockerfile").returncode == 0, "its own is written anew"
    (folder / "Dockerfile").write_text("FROM scratch\n")
    refused = wakegate(tmp_path, "deploy", str(folder), "--dockerfile")
    assert (refused.returncode, "is there already" in refused.stderr) == (2, True), refused.stderr
    assert (folder / "Dockerfile").read_text() == "FROM scratch\n"


def _said(url: str) -> str:
    try:
        return httpx.get(url, trust_env=False).text
    except httpx.HTTPError:
        return ""


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("registry.example:5000/team/My_Greeter:1.2", "my-greeter"),
        ("greeter@sha256:00", "greeter"),
        ("a/b.c", "b-c"),
        (":", ""),
    ],
)
def test_an_images_name_is_its_agents(image: str, name: str) -> None:
    """Without registry, tag and digest."""
    assert name_in(image) == name


@pytest.mark.processes
def test_deployed_code_answers_and_a_bad_release_is_one_command_from_undone(tmp_path: Path) -> None:
    """Each deployment is a revision; the gateway has the files after a restart too."""
    folder = tmp_path / "My Agent"
    folder.mkdir()
    path = "/v1/namespaces/default/agent-runtimes/my-agent/invocations"
    with serve(tmp_path / "state") as server:

        def run(*words: str) -> str:
            done = wakegate(tmp_path, *words, url=server.url)
            assert done.returncode == 0, done.stdout + done.stderr + server.log.read_text()
            return done.stdout

        (folder / "app.py").write_text(FLASKLIKE % "good")
        assert "revision 1 serves" in run("deploy", str(folder))
        assert server.client.get(f"{path}/").text == "good"
        (folder / "app.py").write_text(FLASKLIKE % "bad")
        assert "revision 2 serves" in run("deploy", str(folder))
        assert server.client.get(f"{path}/").text == "bad"
        assert "revision 1 serves" in run("rollout", "undo", "my-agent")
        assert server.client.get(f"{path}/").text == "good"
        (folder / "app.py").write_text(FLASKLIKE % "bad")
        said = run("deploy", str(folder), "--canary", "20")
        assert "revision 3 is tried by 20 % of new sessions; revision 1 serves the others" in said, "undone, and again"
        assert "revision 3 serves" in run("rollout", "promote", "my-agent")
        assert server.client.get(f"{path}/").text == "bad"
        assert "REVISION" in run("rollout", "history", "my-agent")
        (folder / "app.py").unlink()
        (folder / "agent.py").write_text(RUNNABLE)
        assert "runnable agent.py:agent" in run("deploy", str(folder))
        reply = server.client.post(f"{path}/invoke", json={"input": "hello"})
        assert reply.json() == {"output": {"said": "HELLO", "thread": reply.headers["x-session-id"]}}
        streamed = server.client.post(f"{path}/stream", json={"input": ["a", "b"]})
        assert streamed.text == 'data: "a"\n\ndata: "b"\n\n'
        assert server.client.post(f"{path}/invoke", content=b"{").status_code == 400
        refused = wakegate(tmp_path, "invoke", "my-agent", "--path", "/invoke", "-d", "{}", url=server.url)
        assert "wakegate: the agent answered 400: " in refused.stderr


@pytest.mark.processes
def test_agents_are_listed_stopped_started_and_deleted(tmp_path: Path) -> None:
    """What is deployed to one that is stopped waits for its start, and its person is told so at once."""
    folder = tmp_path / "my-agent"
    folder.mkdir()
    container = {"name": "agent", "image": "x", "command": ["python3", "-m", "http.server", "8080"]}
    spec = {"targetPort": [{"port": 8080}], "podTemplate": {"spec": {"containers": [container]}}}
    with serve(tmp_path / "state") as server:

        def run(*words: str, status: int = 0) -> str:
            done = wakegate(tmp_path, *words, url=server.url)
            assert done.returncode == status, done.stdout + done.stderr + server.log.read_text()
            return done.stdout + done.stderr

        assert server.client.post("/v1/agents", json={"name": "my-agent", "spec": spec}).status_code == 201
        assert run("agents", "stop", "my-agent") == "my-agent stopped\n"
        (folder / "agent.py").write_text(RUNNABLE)
        assert "my-agent is stopped: revision 2 is started with it" in run("deploy", str(folder))
        (shown,) = json.loads(run("agents", "ls", "--phase", "Stopped", "-o", "json"))
        assert (shown["name"], shown["latestRevision"]) == ("my-agent", 2)
        (name,) = run("agents", "ls", "-o", "name").split()
        assert run("agents", "start", name) == "default/my-agent started\n"
        assert server.client.get("/v1/agents/my-agent").json()["phase"] != "Stopped"
        assert run("agents", "rm", "default/my-agent") == "default/my-agent deleted\n"
        assert "wakegate: no agent" in run("agents", "get", "my-agent", status=4)
        assert server.client.get("/v1/agents?phase=on").status_code == 400

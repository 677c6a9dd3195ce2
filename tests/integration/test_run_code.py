"""Code contexts in real sandboxes, through a real gateway."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.interpreters import events, printed
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for all tests of this module."""
    with serve(tmp_path_factory.mktemp("gateway") / "state", "--warm-pool", "1") as started:
        yield started


def run_code(server: Server, session: str, code: str, **fields: Any) -> dict[str, Any]:
    """Run code in the session and return its 200 answer."""
    reply = server.client.post("/api/run_code", json={"code": code, **fields}, headers={"x-session-id": session})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_session_keeps_variables_and_shows_tables(server: Server) -> None:
    """What an agent does first, with the packages that it expects, behind the walls."""
    session = server.session()
    run_code(server, session, "import pandas as pd\ntable = pd.DataFrame({'price': [1, 2]})")
    answer = run_code(server, session, "import os\nprint(os.getcwd())\ntable.price.sum()")
    assert answer["stdout"] == "/workspace\n"
    assert answer["results"] == [{"text/plain": "np.int64(3)"}]
    shell = run_code(server, session, "echo $BASH_VERSION; pwd", language="bash")
    assert shell["stdout"].splitlines()[1] == "/workspace"


def test_variables_survive_hibernation(server: Server) -> None:
    """Suspended, hibernated and woken onto another sandbox, the context keeps its variables and names what was lost."""
    session = server.session()
    run_code(server, session, "import threading\nkept = [1, 2]\nlock = threading.Lock()")
    headers = {"x-session-id": session}
    assert server.client.post("/api/suspend", headers=headers).json()["saved"] == 2
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    assert server.state(session)["state"] == "hibernated"
    assert server.client.post("/api/resume", headers=headers).status_code == 200
    woken = run_code(server, session, "sum(kept)")
    assert woken["results"] == [{"text/plain": "3"}]
    assert [entry["name"] for entry in woken["restored"]["unsaved"]] == ["lock"]


@pytest.fixture(scope="module")
def warm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway whose sandboxes have a context, with a module imported, before they have a session."""
    state = tmp_path_factory.mktemp("warm") / "state"
    with serve(state, "--warm-pool", "2", "--code-context", "warm", "--preload", "cycler") as started:
        yield started


def wait_for_context(server: Server, session: str) -> None:
    """Until the session's sandbox has a context that nobody asked for."""
    headers = {"x-session-id": session}

    def states() -> list[str]:
        contexts = server.client.get("/api/contexts", headers=headers).json()["contexts"]
        return [context["state"] for context in contexts if context["id"] == "default"]

    wait_until(lambda: states() in (["idle"], ["saved"]), "the context stands without having been asked for")


def make_wheel(folder: Path, name: str, version: str, more: str = "") -> Path:
    """A wheel with one module, whose `version` tells it, and one program."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\ndef main(): print('program', version)\n{more}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-program = {name}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in files.items():
            archive.writestr(each, text)
    return path


def test_installed_package_is_the_sessions_own_and_survives_hibernation(server: Server, tmp_path: Path) -> None:
    """pip puts it into the workspace, over what the shared environment has; scripts, contexts and programs see it."""
    session = server.session()
    headers = {"x-session-id": session}
    run_code(server, session, "import sys")  # a context that runs before the package is there
    for wheel in (make_wheel(tmp_path, "mine", "1.0"), make_wheel(tmp_path, "cycler", "99.0")):
        assert server.client.put(f"/api/files/{wheel.name}", content=wheel.read_bytes(), headers=headers).is_success
    installed = run_code(server, session, "!pip install --no-index -U ./mine-1.0-py3-none-any.whl")
    assert "Successfully installed mine-1.0" in installed["stdout"], installed
    assert run_code(server, session, "import mine\nmine.version")["results"] == [{"text/plain": "'1.0'"}]
    replaced = server.run(session, "python3 -m pip install --no-index -U ./cycler-99.0-py3-none-any.whl").json()
    assert replaced["exit_code"] == 0, replaced
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    seen = server.run(session, "mine-program; python3 -c 'import cycler, numpy; print(cycler.version)'").json()
    assert seen["stdout"].split() == ["program", "1.0", "99.0"], seen
    other = server.run(server.session(), "python3 -c 'import mine'").json()
    assert "No module named 'mine'" in other["stderr"]


def test_context_of_a_warm_sandbox_is_there_before_the_first_run(warm_server: Server) -> None:
    """With codeContext warm, a session's first run finds a context that started with the sandbox."""
    wait_for_context(warm_server, warm_server.session())


@pytest.mark.parametrize("name", ["mine", "cycler"])
def test_objects_of_an_installed_package_survive_hibernation(warm_server: Server, tmp_path: Path, name: str) -> None:
    """The context that they wake in started, and looked for packages, before the session's files were there.

    One package is new, the other replaces what the warm context has imported already; one more comes by a .pth file.
    """
    server, session = warm_server, warm_server.session()
    headers = {"x-session-id": session}
    wait_for_context(server, session)
    wheel = make_wheel(tmp_path, name, "99.0", "class Thing:\n    def __init__(self): self.made_by = version\n")
    assert server.client.put(f"/api/files/{wheel.name}", content=wheel.read_bytes(), headers=headers).is_success
    assert "Successfully installed" in run_code(server, session, f"!pip install -U ./{wheel.name}")["stdout"]
    linked = (
        "mkdir -p src && echo 'class Thing: made_by = \"a link\"' > src/linked.py && "
        "echo $PWD/src > .wakegate/python/lib/python3.11/site-packages/linked.pth"
    )
    assert server.run(session, linked).json()["exit_code"] == 0
    assert server.client.post("/api/contexts/default/restart", headers=headers).status_code == 200
    made = run_code(server, session, f"import {name} as package, linked\na, b = package.Thing(), linked.Thing()")
    assert made["error"] is None, made
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    woken = run_code(server, session, "a.made_by, b.made_by, isinstance(a, package.Thing)")
    assert woken["results"] == [{"text/plain": "('99.0', 'a link', True)"}], woken
    assert woken["restored"]["unsaved"] == []
    assert "notice" not in woken


def test_code_runs_in_a_session_whose_temporary_files_fill_their_space(server: Server) -> None:
    """A context starts, also after a restart; so its code can delete them."""
    session = server.session()
    filled = server.run(session, "head -c 400M /dev/zero > /tmp/big").json()
    assert "No space left" in filled["stderr"]
    for language in ("python", "bash"):
        assert (
            run_code(server, session, "echo ran" if language == "bash" else "print('ran')", language=language)["stdout"]
            == "ran\n"
        )
    restarted = server.client.post("/api/contexts/default/restart", headers={"x-session-id": session})
    assert restarted.status_code == 200
    assert run_code(server, session, "import os; os.remove('/tmp/big')")["error"] is None


def test_command_that_finds_no_process_left_says_so(server: Server) -> None:
    """As long as the processes run; the session hibernates, which ends them, and goes on."""
    session = server.session()
    code = (
        "import os, time\nwhile True:\n  try:\n    if not os.fork(): time.sleep(600)\n"
        "  except OSError: time.sleep(0.01)"
    )
    server.run(session, f"python3 -c '{code}' > /dev/null 2>&1 &")
    says = "all the processes that it may have; end some, or hibernate the session"
    wait_until(lambda: says in server.run(session, "true").json()["stderr"], "the limit is reached")
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    assert server.run(session, "echo back").json()["stdout"] == "back\n"


PIP = [
    ("pip install --user --no-index ./mine-1.0-py3-none-any.whl && python3 -c 'import mine'", 0, ""),
    ("pip install numpy", 0, "no network"),
    ("pip install no-such-package", 1, "no network"),
    ("python3 -m pip install --user no-such-package", 1, "no network"),
    ("pip list", 0, ""),
]


@pytest.mark.parametrize(("command", "status", "says"), PIP)
def test_pip_retries_nothing_without_a_network(
    server: Server, tmp_path: Path, command: str, status: int, says: str
) -> None:
    """--user goes where packages go; an index that cannot be reached is not tried again and again."""
    session = server.session()
    wheel = make_wheel(tmp_path, "mine", "1.0")
    headers = {"x-session-id": session}
    assert server.client.put(f"/api/files/{wheel.name}", content=wheel.read_bytes(), headers=headers).is_success
    answer = server.run(session, command).json()
    assert answer["exit_code"] == status, answer
    assert says in answer["stderr"]
    assert "Retrying" not in answer["stderr"]


def test_stream_passes_the_gateway_event_by_event(server: Server) -> None:
    """The first line of a run is with the client before the run can end."""
    session = server.session()
    headers = {"x-session-id": session}
    code = "import os, time\nprint('first')\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\nprint('second')"
    with server.client.stream("POST", "/api/run_code", json={"code": code, "stream": True}, headers=headers) as reply:
        stream = events(reply)
        assert [next(stream).kind, next(stream).data] == ["start", {"text": "first\n"}]
        assert server.client.put("/api/files/go", content=b"", headers=headers).is_success
        rest = list(stream)
    assert printed(rest) == "second\n"
    assert rest[-1].kind == "exit"

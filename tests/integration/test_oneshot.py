"""One-shot runs over a real gateway: the native request and Dify's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

ADMIN = "a" * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with an admin key, and an audit trail."""
    folder = tmp_path_factory.mktemp("wg")
    (folder / "admin").write_text(ADMIN)
    with serve(folder / "state", "--admin-key-file", str(folder / "admin")) as served:
        served.client.headers["authorization"] = f"Bearer {ADMIN}"
        yield served


def alive(server: Server) -> list[str]:
    return [each["id"] for each in server.client.get("/v1/sessions").json()["sessions"]]


def test_program_runs_with_its_files_and_nothing_is_left(server: Server) -> None:
    """Files both ways, the exit status, and no session after the answer."""
    body = {
        "code": "import sys\nprint(open('d/in.txt').read())\nopen('out.bin', 'wb').write(b'\\xff')\nsys.exit(3)",
        "files": {"d/in.txt": {"base64": base64.b64encode(b"hello").decode()}},
        "outputs": ["out.bin", "none.txt"],
    }
    reply = server.client.post("/v1/run", json=body)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert (answer["stdout"], answer["exit_code"]) == ("hello\n", 3)
    assert answer["files"] == {"out.bin": {"base64": "/w=="}, "none.txt": None}
    assert reply.headers["x-wakegate-start"] in ("warm", "cold")
    assert alive(server) == []


def test_commands_scripts_and_results(server: Server) -> None:
    """A command line, a list, bash, and a code context's values."""

    def run(**body: object) -> dict[str, object]:
        reply = server.client.post("/v1/run", json=body)
        assert reply.status_code == 200, reply.text
        found: dict[str, object] = reply.json()
        return found

    assert run(command="echo a | tr a b")["stdout"] == "b\n"
    assert run(command=["printf", "%s", "a b"])["stdout"] == "a b"
    assert run(code="echo $((1+1))", language="bash")["stdout"] == "2\n"
    assert run(code="40 + 2", results=True)["results"] == [{"text/plain": "42"}]
    late = run(command="sleep 1000", timeout=0.5)
    assert late["exit_code"] != 0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": "1", "command": "1"},
        {"code": 5},
        {"code": "1", "language": "cobol"},
        {"code": "1", "timeout": 1e6},
        {"code": "1", "timeout": -1},
        {"code": "1", "files": {"/etc/passwd": "x"}},
        {"code": "1", "files": {"../x": "x"}},
        {"code": "1", "files": {"x": {"base64": "!"}}},
        {"code": "1", "files": {str(n): "" for n in range(65)}},
        {"code": "1", "outputs": "x"},
        {"code": "\ud800"},
        {"command": []},
        {"code": "1", "runtime": "default/none"},
        {"code": "1", "other": 1},
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(server: Server, body: dict[str, object]) -> None:
    """A clear 400, and no sandbox is kept."""
    reply = server.client.post("/v1/run", content=json.dumps(body))
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]
    assert alive(server) == []


def test_run_ends_with_its_client(server: Server) -> None:
    """The client gives up while the program runs: the session is gone soon after."""
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/v1/run", json={"command": "sleep 1002"}, timeout=2)
    wait_until(lambda: not alive(server), "the run's session to end")


def test_runs_need_the_right_to_create_and_count_in_the_quota(server: Server) -> None:
    """A viewer may not, a tenant without sandboxes may not; both are told why."""
    viewer = server.client.post("/v1/keys", json={"role": "viewer", "tenant": "acme"}).json()["key"]
    member = server.client.post("/v1/keys", json={"role": "member", "tenant": "acme"}).json()["key"]
    for path, body in (("/v1/run", {"code": "1"}), ("/v1/sandbox/run", {"language": "python3", "code": "1"})):
        assert server.client.post(path, json=body, headers={"authorization": f"Bearer {viewer}"}).status_code == 403
        assert httpx.post(server.url + path, json=body).status_code == 401
    assert server.client.put("/v1/tenants/acme", json={"limits": {"sandboxes": 0}}).status_code < 300
    headers = {"authorization": f"Bearer {member}"}
    wait_until(
        lambda: server.client.post("/v1/run", json={"code": "1"}, headers=headers).status_code in (403, 429),
        "the limit to hold",
    )


def test_dify_runs_code(server: Server) -> None:
    """As Dify's client sends it: X-Api-Key, python3 and a preload; errors are in the data."""
    headers = {"x-api-key": ADMIN, "authorization": ""}
    del headers["authorization"]
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as dify:
        body = {"language": "python3", "code": "print(x)", "preload": "x = 7", "enable_network": True}
        ran = dify.post("/v1/sandbox/run", json=body)
        assert ran.status_code == 200, ran.text
        assert ran.json() == {"code": 0, "message": "success", "data": {"stdout": "7\n", "error": ""}}
        failed = dify.post("/v1/sandbox/run", json={"language": "python3", "code": "1/0"}).json()
        assert "ZeroDivisionError" in failed["data"]["error"]
        refused = dify.post("/v1/sandbox/run", json={"language": "ruby", "code": "1"})
        assert (refused.status_code, refused.json()["code"]) == (400, -400)
        found = dify.get("/v1/sandbox/dependencies", params={"language": "python3"}).json()
        assert "numpy" in [each["name"] for each in found["data"]["dependencies"]]

"""AgentCube's published SDK, unmodified, as the client of a real gateway with real sandboxes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from agentcube import CodeInterpreterClient
from agentcube.exceptions import CommandExecutionError

from tests.support.kube.served import in_cluster
from tests.support.serve import Server, serve


@pytest.fixture(scope="module", params=["local", "kubernetes"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway of each engine for the module."""
    folder = tmp_path_factory.mktemp("wg")
    if request.param == "local":
        with serve(folder / "state") as served:
            yield served
        return
    with in_cluster(folder) as (served, _):
        yield served


@pytest.fixture
def client(server: Server) -> Iterator[CodeInterpreterClient]:
    """A session that was created through the SDK."""
    with CodeInterpreterClient(router_url=server.url, workload_manager_url=server.url + "/") as opened:
        yield opened
    warnings.resetwarnings()


def test_sdk_runs_code_and_commands(client: CodeInterpreterClient) -> None:
    """Python, shell and argv run; a failing command raises with its exit code and its words."""
    assert client.run_code("python", "print('Hello')") == "Hello\n"
    assert client.run_code("bash", "echo $((6*7))") == "42\n"
    assert client.execute_command("echo a;b") == "a;b\n"
    with pytest.raises(CommandExecutionError) as failed:
        client.execute_command(["sh", "-c", "echo oops >&2; exit 3"])
    assert failed.value.exit_code == 3
    assert "oops" in failed.value.stderr


def test_sdk_timeout_is_124_and_ends_grandchildren(client: CodeInterpreterClient) -> None:
    """A command over its time is ended with what it started in the background."""
    with pytest.raises(CommandExecutionError) as failed:
        client.execute_command(["sh", "-c", "sleep 60 & sleep 60"], timeout=0.5)
    assert failed.value.exit_code == 124
    assert "timed out" in failed.value.stderr
    assert "sleep" not in client.execute_command(["sh", "-c", "cat /proc/[0-9]*/comm"])


def test_sdk_files_go_up_and_come_back(client: CodeInterpreterClient, tmp_path: Path) -> None:
    """Written, empty, uploaded, nested and index.html files come back whole, and are listed."""
    client.write_file("", "empty.txt")
    client.write_file("<p>hi</p>", "index.html")
    blob, source, back = os.urandom(3_000_000), tmp_path / "blob", tmp_path / "back"
    source.write_bytes(blob)
    client.upload_file(str(source), "data/deep/blob.bin")
    client.download_file("data/deep/blob.bin", str(back))
    assert back.read_bytes() == blob
    client.download_file("index.html", str(back))
    assert back.read_text() == "<p>hi</p>"
    assert {"empty.txt", "index.html", "data"} <= {entry["name"] for entry in client.list_files(".")}


def test_sdk_session_is_shared_by_id_and_closed_to_others(server: Server, client: CodeInterpreterClient) -> None:
    """A second client with the id sees the same files; another session, and another runtime, see none of it."""
    client.write_file("100", "counter.txt")
    urls = {"router_url": server.url, "workload_manager_url": server.url}
    again = CodeInterpreterClient(session_id=client.session_id, **urls)
    assert again.run_code("python", "print(open('counter.txt').read())") == "100\n"
    with CodeInterpreterClient(**urls) as other:
        assert other.list_files(".") == []
    elsewhere = f"{server.url}/v1/namespaces/default/code-interpreters/no-such/invocations/health"
    reply = requests.get(elsewhere, headers={"x-agentcube-session-id": str(client.session_id)}, timeout=10)
    assert reply.status_code == 404


def test_sdk_sees_stopped_sessions_and_unknown_runtimes_as_404(server: Server) -> None:
    """What is not there is 404 and says so."""
    urls = {"router_url": server.url, "workload_manager_url": server.url}
    with CodeInterpreterClient(**urls) as client:
        session = str(client.session_id)
    reply = server.run(session, "true")
    assert (reply.status_code, reply.json()["code"]) == (404, "SESSION_NOT_FOUND")
    with pytest.raises(requests.HTTPError) as failed:
        CodeInterpreterClient(name="no-such-runtime", **urls)
    refusal = failed.value.response
    assert refusal is not None
    assert refusal.status_code == 404
    assert "not found" in refusal.text


def test_sdk_session_hibernates_and_wakes_transparently(server: Server, client: CodeInterpreterClient) -> None:
    """A session that was put to sleep answers the next call of the SDK with its files, and the call just works."""
    client.write_file("kept", "note.txt")
    assert server.client.post(f"/v1/sessions/{client.session_id}/hibernate").json()["state"] == "hibernated"
    assert client.execute_command("cat note.txt") == "kept"
    assert server.state(str(client.session_id))["state"] == "active"

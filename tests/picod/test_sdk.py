"""AgentCube's published SDK, unmodified, straight at picod."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentcube.clients import CodeInterpreterDataPlaneClient
from agentcube.exceptions import CommandExecutionError

from tests.support.picod import ROOT


@pytest.fixture
def sdk(tmp_path: Path) -> Iterator[CodeInterpreterDataPlaneClient]:
    """The SDK's data-plane client on a picod that listens on TCP."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        flags = ["--auth", "none", "--workspace", str(tmp_path / "workspace"), "--fd", str(listener.fileno())]
        command = [sys.executable, "-m", "picod", *flags]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[listener.fileno()])
    client = CodeInterpreterDataPlaneClient(
        session_id="s", router_url=None, namespace=None, cr_name=None, base_url=f"http://127.0.0.1:{port}/"
    )
    try:
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(20)


def test_published_sdk_works_unmodified(sdk: CodeInterpreterDataPlaneClient, tmp_path: Path) -> None:
    """Every call of its data plane: run, execute, write, upload, list, download, and their failures."""
    assert sdk.run_code("bash", "echo $((6*7))") == "42\n"
    assert sdk.execute_command("echo 'a b' c") == "a b c\n"
    with pytest.raises(CommandExecutionError) as failed:
        sdk.execute_command(["sh", "-c", "echo oops >&2; exit 3"])
    assert (failed.value.exit_code, failed.value.stderr) == (3, "oops\n")
    with pytest.raises(CommandExecutionError) as late:
        sdk.execute_command("sleep 30", timeout=0.5)
    assert late.value.exit_code == 124
    sdk.write_file("text", "/dir/index.html")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(bytes(3_000_000))
    sdk.upload_file(str(source), "dir/deep/blob")
    assert [entry["name"] for entry in sdk.list_files("dir")] == ["deep", "index.html"]
    for remote, content in (("dir/index.html", b"text"), ("dir/deep/blob", bytes(3_000_000))):
        sdk.download_file(remote, str(back))
        assert back.read_bytes() == content

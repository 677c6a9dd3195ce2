"""Data that every sandbox of a runtime sees: read-only, and only what was named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.core.errors import SandboxStartError
from gateway.core.model import Agent, Mount, SessionId
from tests.support.local_engine import execute, runtime, serving

A = SessionId("session-a")


async def test_mounted_folder_is_read_and_never_written(tmp_path: Path) -> None:
    """Its files are there, a link in it leads nowhere outside, and nothing in it can be changed."""
    data, secret = tmp_path / "data", tmp_path / "secret"
    data.mkdir()
    secret.write_text("of the host")
    (data / "a.txt").write_text("text")
    (data / "out").symlink_to(secret)
    for each in (tmp_path, data):
        each.chmod(0o755)
    offered = runtime(mounts=(Mount("/data/set", source=str(data)),))
    async with serving(tmp_path, offered) as provider:
        sandbox = await provider.claim(offered.key, A)
        assert (await execute(sandbox, "cat", "/data/set/a.txt"))["stdout"] == "text"
        assert (await execute(sandbox, "cat", "/data/set/out"))["exit_code"] != 0
        for command in ("echo x > /data/set/a.txt", "touch /data/set/new", "rm /data/set/a.txt", "touch /data/new"):
            assert (await execute(sandbox, "sh", "-c", command))["exit_code"] != 0, command
    assert sorted(os.listdir(data)) == ["a.txt", "out"]


@pytest.mark.parametrize("field", ["mounts", "source"])
async def test_folder_that_became_a_link_is_not_mounted(tmp_path: Path, field: str) -> None:
    """It was checked when the manifest was read: what is there now may be anything."""
    data, other = tmp_path / "data", tmp_path / "other"
    other.mkdir()
    data.symlink_to(other)
    if field == "mounts":
        offered = runtime(mounts=(Mount("/data", source=str(data)),))
    else:
        offered = runtime(agent=Agent(("sleep", "9"), (("/", 8000),), source=str(data)))
    async with serving(tmp_path, offered) as provider:
        with pytest.raises(SandboxStartError, match="leads elsewhere"):
            await provider.claim(offered.key, A)

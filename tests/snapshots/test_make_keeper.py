"""Which keeper the settings make, and what they say when they are wrong."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError, SnapshotKeyError, SnapshotTooLargeError
from gateway.core.interfaces import SandboxProvider, WorkspaceKeeper
from gateway.core.model import SnapshotRef
from gateway.core.settings import Settings
from gateway.provider.local import LocalProvider
from gateway.sandbox.signing_keys import KeyRing
from gateway.snapshots import FolderStore, SealedStore, SnapshotKeys
from gateway.snapshots.keeper import SnapshotKeeper, make_keeper
from gateway.testing import ScriptedProvider
from tests.support.keepers import local
from tests.support.snapshots import SESSION, executor_of


class PodsOnly:
    """An engine that makes sandboxes and cannot park."""

    def __init__(self) -> None:
        self._provider = ScriptedProvider()

    def __getattr__(self, name: str) -> Any:
        if name in ("leaves_running", "keep", "checkpoint", "restore", "check", "rollback", "delete", "delete_orphans"):
            raise AttributeError(name)
        return getattr(self._provider, name)


def made(settings: Settings, provider: SandboxProvider | None = None) -> WorkspaceKeeper:
    return make_keeper(settings, provider or ScriptedProvider(), executor_of(), SystemClock())


def key_file(folder: Path, key: bytes = b"1" * 32) -> Path:
    path = folder / "snapshot-keys"
    path.touch(0o600)
    path.write_text(base64.b64encode(key).decode())
    return path


def test_engine_that_parks_keeps_its_own(tmp_path: Path) -> None:
    """Without a store named, nothing is copied."""
    keys = KeyRing(tmp_path / "keys")
    keys.open()
    provider = LocalProvider(tmp_path, keys.public_dir, SystemClock())
    assert made(Settings(state_dir=tmp_path), provider) is provider


def test_engine_that_cannot_park_gets_a_folder(tmp_path: Path) -> None:
    """In the state folder, until a store is named."""
    keeper = made(Settings(state_dir=tmp_path), PodsOnly())
    assert isinstance(keeper, SnapshotKeeper)
    assert keeper.leaves_running


async def test_settings_reach_the_store(tmp_path: Path) -> None:
    """Folder, keys and limit: a real workspace is sealed there, and a larger one refused."""
    async with local(tmp_path) as (provider, executor, subject):
        settings = Settings(
            state_dir=tmp_path,
            snapshots=f"file://{tmp_path}/there",
            snapshot_key_file=key_file(tmp_path),
            snapshot_max_size=2000,
        )
        subject.keeper = make_keeper(settings, provider, executor, SystemClock())
        reference = await subject.asleep("a secret of the session")
        assert await subject.wake(reference) == "a secret of the session"

        folder = FolderStore(tmp_path / "there")
        other = SealedStore(folder, SnapshotKeys("default", {"default": b"2" * 32}))
        with pytest.raises(SnapshotKeyError):
            await anext(other.get(SnapshotRef(reference)))

        sandbox = await subject.sandbox(bytes(range(33, 126)).decode() * 10 + "".join(map(str, range(3000))))
        with pytest.raises(SnapshotTooLargeError, match="limit of 2000 bytes"):
            await subject.keeper.keep(sandbox.id, SESSION)


def test_wrong_settings_are_all_reported(tmp_path: Path) -> None:
    """The store's URL and the key file in one go; keys without a store would protect nothing."""
    missing = tmp_path / "nokeys"
    with pytest.raises(SettingsError) as caught:
        made(Settings(state_dir=tmp_path, snapshots="ftp://x/y", snapshot_key_file=missing))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [str(missing), "snapshot store ftp"]

    with pytest.raises(SettingsError, match=r"parked workspaces are not encrypted; set --snapshots too, to file:///"):
        made(Settings(state_dir=tmp_path, snapshot_key_file=key_file(tmp_path)))

"""Files that operators and manifests name: what is none is refused at once, with what it is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.errors import SettingsError
from gateway.core.model import Secret
from gateway.core.read_file import read_file
from gateway.core.settings_load import load
from gateway.egress.values import read_value
from gateway.identity.directory import read_admin_key
from gateway.identity.tenants_file import read_tenants_file
from gateway.runtimes.manifest import load_runtimes
from gateway.snapshots.keys import SnapshotKeys
from gateway.usage.prices import load_prices


def _manifest(path: Path) -> None:
    load_runtimes([path])


def _secret(path: Path) -> None:
    try:
        read_value(Secret("A", (), file=str(path)))
    except ValueError as error:
        raise SettingsError([str(error)]) from None


def _config(path: Path) -> None:
    load({"config": str(path)}, {})


def _environment(path: Path) -> None:
    load({"agentscope_env": str(path)}, {})


READERS: tuple[Callable[[Path], object], ...] = (
    _manifest, _secret, _config, _environment, read_admin_key, read_tenants_file, SnapshotKeys.read,
    load_prices,
)  # fmt: skip


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__qualname__)
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    """A named pipe that nobody writes to, a device without an end, and more than anybody writes by hand."""
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe, 0o600)
    with large.open("wb") as file:
        file.truncate(1 << 40)
    large.chmod(0o600)
    for path, what in ((pipe, "it is a named pipe; expected a file"), (large, "it is larger than")):
        with pytest.raises(SettingsError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert what in str(caught.value)
    with pytest.raises(SettingsError, match="it is a device; expected a file"):
        read(Path("/dev/zero"))


def test_folder_and_socket_are_no_files(tmp_path: Path) -> None:
    """And leave no descriptor open behind them."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match="Is a directory"):
            read_file(tmp_path)
        with pytest.raises(OSError):  # noqa: PT011 - the kernel's own: a socket cannot be opened
            read_file(tmp_path / "socket")
        assert len(os.listdir("/proc/self/fd")) == before


def test_pipe_of_a_shell_is_read() -> None:
    """`--admin-key-file <(pass show key)`, whose writer may take its time."""
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as file:
        file.write(b"value")
    try:
        assert read_file(f"/dev/fd/{reader}") == b"value"
    finally:
        os.close(reader)


def test_secret_that_became_a_link_is_not_read(tmp_path: Path) -> None:
    """It was checked when the manifest was read: its folder is somebody else's, and the gateway may be root."""
    kept, theirs, elsewhere = tmp_path / "admin-key", tmp_path / "theirs", tmp_path / "elsewhere"
    kept.write_text("k" * 40)
    theirs.mkdir()
    named = theirs / "key"
    named.write_text("v" * 40)
    secret = Secret("A", (), file=str(named))
    assert read_value(secret) == "v" * 40
    named.unlink()
    named.symlink_to(kept)
    with pytest.raises(ValueError, match="replaced by a symbolic link"):
        read_value(secret)
    named.unlink()
    theirs.rename(elsewhere)
    (elsewhere / "key").write_text("k" * 40)
    theirs.symlink_to(elsewhere)  # a link further up
    with pytest.raises(ValueError, match="replaced by a symbolic link"):
        read_value(secret)

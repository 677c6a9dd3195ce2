"""Limits of volumes that picod keeps itself: what grows beyond them is ended, and everything else goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from picod import wire
from tests.support.picod import Executor, picod_process
from tests.support.waiting import wait_until

LIMIT_BYTES = 8 << 20


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.mkdir()
    return made


@pytest.fixture
def picod(volume: Path) -> Iterator[Executor]:
    with picod_process("--auth", "none", environ={wire.ENV_DISK_LIMITS: f"{volume}={LIMIT_BYTES}"}) as executor:
        yield executor


def run(picod: Executor, script: str) -> Any:
    reply = picod.client.post("/api/execute", json={"command": ["bash", "-c", script], "timeout": "60s"})
    assert reply.status_code == 200, reply.text
    return reply.json()


def upload(picod: Executor) -> int:
    return picod.client.put("/api/files/note", content=b"here").status_code


def used(volume: Path) -> int:
    total = 0
    for path in volume.iterdir():
        with suppress(FileNotFoundError):  # picod has removed it since
            total += path.stat().st_blocks * 512
    return total


def test_command_that_fills_a_volume_is_killed_with_the_reason(picod: Executor, volume: Path) -> None:
    """Uploads are refused meanwhile; a command that deletes files runs, and afterwards there is room again."""
    ended = run(picod, f"for i in $(seq 1000); do head -c 1M /dev/zero > {volume}/$i; sleep .02; done")
    assert (ended["exit_code"], ended["signal"]) == (137, "SIGKILL")
    assert f"{volume} is over its limit of 8 MiB; delete files there" in ended["stderr"]
    wait_until(lambda: upload(picod) == 507, "uploads are refused")
    assert run(picod, f"rm {volume}/*; echo done")["stdout"] == "done\n"
    wait_until(lambda: upload(picod) == 200, "there is room again")
    assert run(picod, f"head -c 1M /dev/zero > {volume}/again")["exit_code"] == 0


def test_processes_in_the_background_and_their_children_end_too(picod: Executor, volume: Path) -> None:
    run(picod, f"setsid bash -c 'while :; do head -c 1M /dev/zero > {volume}/$RANDOM; done' > /dev/null 2>&1 &")
    wait_until(lambda: upload(picod) == 507, "the volume is full")
    before = used(volume)
    assert run(picod, "sleep 1.5; echo here")["stdout"] == "here\n"  # over more than one look
    assert used(volume) == before


def test_single_file_cannot_exceed_the_largest_volume(picod: Executor, volume: Path) -> None:
    """One system call allocates any size at once, which nobody could notice in time."""
    ended = run(picod, f"exec fallocate -l 1T {volume}/large")
    assert ended["exit_code"] != 0
    assert used(volume) <= LIMIT_BYTES


# 90 files of 7 MiB that appear within a millisecond: allocated without a name first.
_ALLOCATE = """
import os, sys
files, root = [], os.open("/", os.O_RDONLY)
for _ in range(90):
    fd = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR)
    os.posix_fallocate(fd, 0, 7 << 20)
    files.append(fd)
for fd in files:
    os.link(f"/proc/self/fd/{fd}", f"{sys.argv[1]}/{fd}", src_dir_fd=root, follow_symlinks=True)
print('all', flush=True)
"""


def test_what_would_have_the_pod_evicted_is_removed(picod: Executor, volume: Path) -> None:
    """Files that grew since the volume was within its limit go, the largest first; older ones stay."""
    run(picod, f"echo precious > {volume}/old")

    def allocated() -> bool:
        """Whether all files had appeared before picod looked: what is less is not removed."""
        run(picod, f"rm -f {volume}/[0-9]*")
        wait_until(lambda: upload(picod) == 200, "there is room")
        return str(run(picod, f"python3 - {volume} <<'END'\n{_ALLOCATE}END")["stdout"]) == "all\n"

    wait_until(allocated, "more than half of what the node leaves above the limit")
    wait_until(lambda: used(volume) <= LIMIT_BYTES, "there is room again")
    assert (volume / "old").read_text() == "precious\n"


@pytest.mark.parametrize("text", ["/tmp", "/tmp=", "tmp=1", "/tmp=-1", "/tmp=1GiB", "/tmp=0", "/tmp=" + "9" * 5000])
def test_wrong_limits_are_refused_at_the_start(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    from picod.config import PicodConfig

    with pytest.raises(SystemExit):
        PicodConfig.from_args(["--auth", "none"], {wire.ENV_DISK_LIMITS: text})
    assert "expected /folder=bytes" in capfd.readouterr().err

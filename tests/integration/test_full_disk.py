"""A gateway on a disk that one sandbox fills at once: the others work on, and the session can be deleted."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.picod import with_mounts
from tests.support.serve import serve
from tests.support.waiting import wait_until

MEGABYTE = 1 << 20
DISK_BYTES = 256 * MEGABYTE
FILL = """
i=0
while head -c 4M /dev/zero > block$i; do i=$((i+1)); done
while head -c 1 /dev/zero > byte$i; do i=$((i+1)); done
sleep 60
"""


def test_session_that_filled_the_disk_can_be_deleted(tmp_path: Path) -> None:
    """With nothing left, not even a block: its sandbox ends, another session goes on, and the deletion gives room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounts = with_mounts("--size", str(DISK_BYTES), "--tmpfs", str(disk / "state"))
    with serve(disk / "state", "--warm-pool", "0", "--disk-reserve", str(48 * MEGABYTE), wrapper=mounts) as gateway:
        inside = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()[0]

        def free() -> int:
            disk_now = os.statvfs(f"/proc/{inside}/root{disk}/state")
            return disk_now.f_bavail * disk_now.f_frsize

        other, filler = gateway.session(), gateway.session()
        assert gateway.run(other, "echo first > file").status_code == 200
        assert gateway.run(filler, FILL).status_code == 502
        wait_until(lambda: gateway.state(filler)["state"] == "lost", "the session is told")
        assert gateway.run(other, "echo second >> file; cat file").json()["stdout"] == "first\nsecond\n"
        assert gateway.client.delete(f"/v1/sessions/{filler}").status_code == 204
        wait_until(lambda: free() > DISK_BYTES - 64 * MEGABYTE, "its files are gone")

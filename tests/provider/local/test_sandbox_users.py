"""Users of their own for sandboxes: ids that nothing shares, and what one sandbox cannot take from another."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import SandboxStartError, SettingsError
from gateway.core.model import Limits, RuntimeKey, SandboxId, SessionId
from gateway.provider.local import LocalProvider, sandbox_users, user_ids
from gateway.provider.local.user_ids import IdRange, UserIds
from tests.support.local_engine import KEY, execute, python, runtime, serving
from tests.support.waiting import eventually

A, B = SessionId("session-a"), SessionId("session-b")
OTHER = RuntimeKey("default", "other")


def own_users(provider: LocalProvider) -> None:
    """Skip the test where sandboxes share the gateway's user for want of something that the machine lacks.

    A sandbox that was begun as another user and failed is no such reason, but a fault in how it is begun.
    """
    assert "(bwrap: " not in provider.report.users, provider.report.users
    if not provider.report.users.startswith("each sandbox"):
        pytest.skip(provider.report.users)


def outside_user(provider: LocalProvider, sandbox_id: SandboxId) -> int:
    """The user of a sandbox's outermost process, as the kernel has it."""
    status = Path(f"/proc/{provider.pid(sandbox_id)}/status").read_text()
    users = {int(word) for line in status.splitlines() if line.startswith("Uid:") for word in line.split()[1:]}
    assert len(users) == 1
    return users.pop()


@pytest.fixture
def way_in() -> Iterator[Path]:
    """A folder to which all users have the way: what holds them back is the state directory's own mode."""
    with tempfile.TemporaryDirectory(prefix="wakegate-test-") as folder:
        os.chmod(folder, 0o711)
        yield Path(folder)


# Ids.


@pytest.mark.parametrize(
    "text", ["", "200000", "a-b", "200000-", "-5", "300000-200000", "0-65535", "200000-4294967295", "1-2-3", "²-9"]
)
def test_range_that_makes_no_sense_is_refused(text: str) -> None:
    """Not a range, ids of the system, or numbers beyond 31 bits."""
    with pytest.raises(ValueError, match="id"):
        user_ids.parse_range(text)


def test_range_is_read_with_both_ends() -> None:
    """The text in the settings is what errors and the banner show."""
    assert user_ids.parse_range(" 200000-265535 ") == IdRange(200_000, 265_535)
    assert str(IdRange(200_000, 265_535)) == "200000-265535"


def test_automatic_range_is_nobodys() -> None:
    """Of the candidates the first that exists here and in which no user and no container's ids lie."""
    (first, last), (second, end) = user_ids.AUTOMATIC
    everything, few = [IdRange(0, (1 << 32) - 2)], [IdRange(0, 65_535)]
    assert user_ids.automatic_range(everything, [IdRange(0, 0)]) == IdRange(first, last)
    assert user_ids.automatic_range(everything, [IdRange(last, last + 5)]) == IdRange(second, end)
    assert user_ids.automatic_range(few, []) == IdRange(second, end)
    assert user_ids.automatic_range(few, [IdRange(1000, 60_000)]) is None


def test_two_gateways_never_have_the_same_id(tmp_path: Path) -> None:
    """They take blocks of a range in turns, until it is used up; what one gives up the other can have."""
    ids = IdRange(1_940_000_000, 1_940_000_000 + 2 * user_ids.BLOCK - 1)
    one, other = UserIds(ids, tmp_path, "same-owner"), UserIds(ids, tmp_path, "same-owner")
    mine = {one.take() for _ in range(user_ids.BLOCK)}
    theirs = {other.take() for _ in range(user_ids.BLOCK)}
    assert mine | theirs == set(range(ids.first, ids.last + 1))
    assert not mine & theirs
    with pytest.raises(OSError, match="every user id of 1940000000-1940000511 is in use"):
        one.take()
    one.give_back(min(mine))
    assert one.take() == min(mine)
    one.close()
    other.close()
    last = UserIds(ids, tmp_path, "same-owner")
    assert last.take() in mine | theirs
    last.close()


def test_id_of_a_process_that_is_left_is_not_free() -> None:
    """A gateway that was killed may leave a process that dies slowly."""
    assert user_ids.free_ids(IdRange(2000, 2003), [0, 2001, 2003]) == [2002, 2000]
    assert os.geteuid() in set(user_ids.running_users())


@pytest.mark.parametrize("named", ["5-10", "everybody"])
async def test_named_range_that_cannot_be_used_stops_the_start(tmp_path: Path, named: str) -> None:
    """An operator who asks for separate users does not get shared ones without a word."""
    provider = LocalProvider(tmp_path / "state", tmp_path / "keys", SystemClock(), sandbox_uids=named)
    with pytest.raises(SettingsError, match=f"--sandbox-uids {named}: "):
        await provider.start()


async def test_shared_user_is_said_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox cannot have a user of its own, sandboxes still start and the banner tells why."""
    monkeypatch.setattr(sandbox_users, "_PROGRAMS", ("no-such-program",))
    async with serving(tmp_path, runtime()) as provider:
        why = "there is no no-such-program (util-linux)" if os.geteuid() == 0 else "only root may give them others"
        assert f"users: all sandboxes share the gateway's user outside ({why})" in provider.report.summary()
        sandbox = await provider.claim(KEY, A)
        assert outside_user(provider, sandbox.id) == os.geteuid()


# Sandboxes.


async def test_each_sandbox_has_a_user_that_is_not_root(tmp_path: Path) -> None:
    """Two sandboxes differ outside, are 1000 inside, and what they write belongs to the gateway on the disk."""
    async with serving(tmp_path, runtime()) as provider:
        own_users(provider)
        assert not any("as root" in warning for warning in provider.report.warnings)
        users = set()
        for session in (A, B):
            sandbox = await provider.claim(KEY, session)
            made = await execute(sandbox, "sh", "-c", "id -u; id -g; touch made; stat -c %u:%g made")
            assert made["stdout"].split() == ["1000", "1000", "1000:1000"]
            workspace = provider.workspace(sandbox.id)
            assert workspace is not None
            assert (workspace / "made").stat().st_uid == os.geteuid()
            users.add(outside_user(provider, sandbox.id))
        assert len(users) == 2
        assert os.geteuid() not in users


async def test_id_is_free_again_only_when_its_sandbox_is_gone(tmp_path: Path) -> None:
    """With a single id there is one sandbox at a time, and a later gateway can have it."""
    if os.geteuid() != 0:
        pytest.skip("only root may give sandboxes other users")
    uid = 1_945_000_000 + os.getpid()
    async with serving(tmp_path, runtime()) as provider:
        own_users(provider)
    async with serving(tmp_path, runtime(), sandbox_uids=f"{uid}-{uid}") as provider:
        one = await provider.claim(KEY, A)
        assert outside_user(provider, one.id) == uid
        with pytest.raises(SandboxStartError, match=r"every user id of .* is in use"):
            await provider.claim(KEY, B)
    async with serving(tmp_path, runtime(), sandbox_uids=f"{uid}-{uid}") as provider:
        for session in (A, B):
            sandbox = await provider.claim(KEY, session)
            assert outside_user(provider, sandbox.id) == uid
            await provider.release(sandbox.id)


async def test_escaped_code_could_not_touch_another_sandbox(way_in: Path) -> None:
    """A process outside with the user of one sandbox, which knows all paths and pids, as if it had got out.

    It can neither signal the other's processes, look into them, nor reach any workspace, socket or key.
    """
    async with serving(way_in, runtime()) as provider:
        own_users(provider)
        one, other = await provider.claim(KEY, A), await provider.claim(KEY, B)
        await execute(other, "sh", "-c", "echo secret > needle; chmod 666 needle; chmod 777 .")
        workspace, uid, pid = provider.workspace(other.id), outside_user(provider, one.id), provider.pid(other.id)
        attacks = {
            "signal": f"kill -0 {pid}",
            "memory": f"cat /proc/{pid}/environ",
            "descriptors": f"ls /proc/{pid}/fd/",
            "root": f"ls /proc/{pid}/root/",
            "read": f"cat {workspace}/needle",
            "write": f"echo x > {workspace}/needle",
            "parked": f"ls {way_in}/state/parked",
            "socket": f"test -S {other.endpoint.uds}",
            "stage": "ls /run/wakegate/stage /run/wakegate/uids",
        }
        worked = []
        for name, attack in attacks.items():
            done = subprocess.run(
                ["/bin/sh", "-c", attack],
                user=uid,
                group=uid,
                extra_groups=[],
                capture_output=True,
                cwd="/",
                check=False,
            )
            worked += [name] * (done.returncode == 0)
        assert worked == []
        assert (await execute(other, "cat", "needle"))["stdout"] == "secret\n"


PIPES = """
import fcntl, os
kept = []
try:
    for _ in range(200):
        kept += os.pipe()
        fcntl.fcntl(kept[-1], 1031, 1 << 20)  # F_SETPIPE_SZ
    print("all")
except PermissionError:
    print(len(kept) // 2)
"""
FLYING = """
import array, os, socket
null, most = os.open("/dev/null", os.O_RDONLY), 0
pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(40)]
try:
    for ours, _ in pairs:
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 250))])
        most += 250
    print("all")
except OSError as error:
    print(most)
"""
WATCHERS = """
import ctypes
libc, made = ctypes.CDLL(None), 0
while libc.inotify_init1(0) >= 0:
    made += 1
print(made)
"""
CHILDREN = """
import os, signal
children = []
try:
    for _ in range(500):
        pid = os.fork()
        if not pid:
            signal.pause()
        children.append(pid)
except BlockingIOError:
    pass
print(len(children))
"""
RELEASE = """
for pid in globals().get("children", ()):  # what a command leaves running is no business of this test
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
HOLD = """
import sys, time
sys.stdout.flush()
open("/workspace/full", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("attack", "enough"),
    [(PIPES, 32), (FLYING, 3000), (WATCHERS, 8), (CHILDREN, 30)],
    ids=["pipes", "flying", "watchers", "children"],
)
async def test_what_one_sandbox_uses_up_another_still_has(tmp_path: Path, attack: str, enough: int) -> None:
    """One takes all pipe memory, descriptors in flight, watchers or processes that it can, and holds them.

    The other then gets as much as the first did: nothing of it is counted for both.
    """
    async with serving(tmp_path, runtime(limits=Limits(processes=64, memory=512 << 20))) as provider:
        own_users(provider)
        one, other = await provider.claim(KEY, A), await provider.claim(KEY, B)
        workspace = provider.workspace(one.id)
        assert workspace is not None
        script = 'exec > got\npython3 -c "$1"'
        holding = asyncio.create_task(execute(one, "sh", "-c", script, "sh", attack + HOLD, timeout="60s"))

        async def full() -> bool:
            return holding.done() or (workspace / "full").exists()

        await eventually(full, "the first sandbox has taken all")
        (taken,) = (workspace / "got").read_text().split()
        assert taken != "all"
        assert int(taken) >= enough
        # Not to the last one: picod itself has a few threads more or less. Counted together, none would be left.
        assert int(await python(other, attack + RELEASE)) >= int(taken) * 3 // 4
        assert (await execute(other, "echo", "well"))["stdout"] == "well\n"
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


@pytest.mark.parametrize(("before", "after"), [("auto", "auto"), ("shared", "auto"), ("auto", "shared")])
async def test_workspace_moves_between_users(tmp_path: Path, before: str, after: str) -> None:
    """What a session wrote is its own in a sandbox with another user, also after the setting has changed."""
    session = SessionId("session-m")
    async with serving(tmp_path, runtime(), sandbox_uids=before) as provider:
        sandbox = await provider.claim(KEY, session)
        wrote = (
            "echo one > plain; mkdir -p deep/er; echo two > deep/er/private; chmod 600 deep/er/private; chmod 500 deep"
        )
        assert (await execute(sandbox, "sh", "-c", wrote))["exit_code"] == 0
        assert await provider.keep(sandbox.id, session) == session
    async with serving(tmp_path, runtime(), sandbox_uids=after) as provider:
        first = await provider.claim(KEY, A)  # so that ids do not repeat by chance
        sandbox = await provider.claim(KEY, session)
        await provider.restore(session, sandbox.id, session)
        read = "cat plain deep/er/private; chmod 700 deep; echo more >> deep/er/private; rm plain; stat -c %u deep"
        answer = await execute(sandbox, "sh", "-c", read)
        assert answer["stdout"].split() == ["one", "two", "1000"], answer
        assert answer["exit_code"] == 0
        await provider.release(first.id)


async def test_folders_are_shown_during_the_start_alone(tmp_path: Path) -> None:
    """The machine never has a mount of them; those of a start that has ended, or failed, are gone."""
    async with serving(tmp_path, runtime(), runtime(key=OTHER, python=str(tmp_path))) as provider:
        own_users(provider)
        with pytest.raises(SandboxStartError):
            await provider.claim(OTHER, B)
        one, other = await provider.claim(KEY, A), await provider.claim(KEY, B)
        assert "/run/wakegate/stage" not in Path("/proc/self/mountinfo").read_text()
        await provider.release(other.id)
        # The stage is seen through bwrap's outer process, which is in its mount namespace.
        stage = Path(f"/proc/{provider.pid(one.id)}/root/run/wakegate/stage")

        async def empty() -> bool:
            return os.listdir(stage) == []

        await eventually(empty, "nothing is shown any more")

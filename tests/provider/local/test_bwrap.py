"""bwrap's arguments as a pure function of the host and the runtime."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.model import Limits
from gateway.provider.local.bwrap import BwrapConfig, HostRoot, arguments, minimal_binds

HOST = HostRoot(
    folders=("/usr", "/sbin"),
    symlinks=(("usr/bin", "/bin"),),
    etc=("/etc/ld.so.cache",),
    proc_masked=("kcore",),
)


def config(**fields: object) -> BwrapConfig:
    values: dict[str, object] = {
        "host": HOST,
        "readonly": {"/opt/wakegate/picod": "/src/picod"},
        "workspace": "/state/workspaces/sb-1",
        "environment": {"A": "b"},
        "limits": Limits(tmp_size=123),
    }
    return BwrapConfig(**{**values, **fields})  # type: ignore[arg-type]


def pairs(args: list[str], option: str, count: int) -> list[tuple[str, ...]]:
    return [tuple(args[at + 1 : at + 1 + count]) for at, word in enumerate(args) if word == option]


def test_arguments_take_every_namespace_and_every_capability_away() -> None:
    """All seven namespaces, no capability, an ordinary user, no nested user namespace, no inherited environment."""
    args = arguments(config(), ["true"])
    for name in ("user", "pid", "net", "ipc", "uts", "cgroup"):
        assert f"--unshare-{name}" in args
    for option in ("--disable-userns", "--die-with-parent", "--new-session", "--clearenv"):
        assert option in args
    assert pairs(args, "--cap-drop", 1) == [("ALL",)]
    assert pairs(args, "--uid", 1) == pairs(args, "--gid", 1) == [("1000",)]
    assert "--share-net" not in args
    assert "--disable-userns" not in arguments(config(disable_userns=False), ["true"])


def test_arguments_bind_one_folder_writable() -> None:
    """The workspace is the only host folder that can be written."""
    args = arguments(config(), ["true"])
    assert pairs(args, "--bind", 2) == [
        ("/state/workspaces/sb-1", "/workspace"),
        ("/state/workspaces/sb-1", "/home/user"),
    ]
    assert "--dev-bind" not in args
    assert set(pairs(args, "--ro-bind", 2)) == {
        ("/usr", "/usr"),
        ("/sbin", "/sbin"),
        ("/etc/ld.so.cache", "/etc/ld.so.cache"),
        ("/dev/null", "/proc/kcore"),
        ("/src/picod", "/opt/wakegate/picod"),
    }


def test_arguments_size_every_tmpfs_and_close_the_rest() -> None:
    """Each tmpfs has a size; bwrap's own ones, without a size, and /proc are made read-only after all mounts."""
    args = arguments(config(), ["true"])
    assert set(pairs(args, "--size", 3)) == {("123", "--tmpfs", "/tmp"), (str(64 << 20), "--tmpfs", "/dev/shm")}
    remounts = [at for at, word in enumerate(args) if word == "--remount-ro"]
    assert {args[at + 1] for at in remounts} == {"/", "/dev", "/proc"}
    mounts = [at for at, word in enumerate(args) if word in ("--bind", "--ro-bind", "--tmpfs", "--dir", "--symlink")]
    assert max(mounts) < min(remounts)


def test_arguments_end_with_the_command() -> None:
    """Nothing of the command can be taken for an option."""
    assert arguments(config(), ["--bind", "/", "/"])[-4:] == ["--", "--bind", "/", "/"]


def test_binds_that_show_already_are_left_out() -> None:
    """What /usr or an outer folder shows needs no mount of its own; another source at that place does."""
    wanted = {"/usr/local": "/usr/local", "/a": "/a", "/a/b": "/a/b", "/a/c": "/elsewhere", "/ab": "/ab"}
    assert minimal_binds(wanted, HOST) == {"/a": "/a", "/a/c": "/elsewhere", "/ab": "/ab"}
    hidden = {"/usr/a": "/x", "/usr/a/b": "/usr/a/b"}  # /usr shows neither once something else is mounted at /usr/a
    assert minimal_binds(hidden, HOST) == hidden


@given(st.dictionaries(st.from_regex(r"\A(/[ab]){1,4}\Z"), st.from_regex(r"\A(/[ab]){1,4}\Z"), max_size=8))
def test_binds_show_the_same_with_and_without_the_superfluous(wanted: dict[str, str]) -> None:
    """Every wanted path shows its wanted source, through itself or the nearest kept folder above it."""
    kept = minimal_binds(wanted, HOST)
    for inside, source in wanted.items():
        above = max((path for path in kept if inside == path or inside.startswith(path + "/")), key=len)
        assert kept[above] + inside[len(above) :] == source

"""A workspace as one stream and back, over real picods."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings

from picod.archive.tar_members import (
    SYMLINK,
    Member,
    TarballError,
    encode,
    encode_sparse_map,
    member_of,
    parse_head,
    parse_records,
)
from tests.support.examples import examples
from tests.support.picod import Executor, picod_process, running, with_mounts, without_capabilities
from tests.support.trees import empty_folder, grow, picture, trees
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def source() -> Iterator[Executor]:
    with picod_process("--auth", "none", wrapper=without_capabilities) as executor:
        yield executor


@pytest.fixture(scope="module")
def target() -> Iterator[Executor]:
    with picod_process("--auth", "none", wrapper=without_capabilities) as executor:
        yield executor


@pytest.fixture(autouse=True)
def _empty(source: Executor, target: Executor) -> None:
    for executor in (source, target):
        empty_folder(executor.workspace)


def export(picod: Executor) -> bytes:
    reply = picod.client.get("/api/snapshot")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/zstd"), reply.text
    return reply.content


def restore(picod: Executor, archive: bytes, **query: str) -> httpx.Response:
    return picod.client.put("/api/snapshot", content=archive, params=query)


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Write an archive with another program."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return zstandard.compress(out.getvalue())


def names_in(archive: bytes) -> list[str]:
    """As another program reads it."""
    with tarfile.open(fileobj=io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(archive))) as tar:
        return tar.getnames()


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **more: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    for key, value in more.items():
        setattr(made, key, value)
    return made


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees)
@example(tree={b"%d" % n: {"kind": "file", "content": b"x" * n, "mode": 0o600, "mtime": n} for n in range(300)})
def test_arbitrary_tree_survives_bit_for_bit(source: Executor, target: Executor, tree: dict[bytes, Any]) -> None:
    """Any names, contents, modes, times, links and holes: out of one picod, into another, and nothing differs."""
    for executor in (source, target):
        empty_folder(executor.workspace)
    grow(source.workspace, tree)
    before = picture(source.workspace)

    reply = restore(target, export(source))

    assert reply.status_code == 200, reply.text
    assert picture(target.workspace) == before
    assert picture(source.workspace) == before


def test_same_tree_makes_the_same_archive(source: Executor, target: Executor) -> None:
    """So a snapshot of what did not change is known by its hash; also after a restore."""
    grow(source.workspace, {b"%d" % n: {"kind": "file", "content": b"", "mode": 0o600, "mtime": 5} for n in range(50)})
    archive = export(source)
    restore(target, archive)

    assert archive == export(source) == export(target)


def test_sparse_files_stay_sparse(source: Executor, target: Executor) -> None:
    """A terabyte with a few blocks takes a few blocks, in the archive and afterwards, data where it was."""
    path = source.workspace / "image"
    with open(path, "wb") as file:
        for at in (0, 5 << 30, 1 << 39):
            file.seek(at)
            file.write(b"data at %d" % at)
        file.truncate(1 << 40)
    (source.workspace / "hole").touch()
    os.truncate(source.workspace / "hole", 1 << 33)
    archive = export(source)
    restore(target, archive)
    image, hole = (target.workspace / name for name in ("image", "hole"))

    assert len(archive) < 2000
    assert (image.stat().st_size, hole.stat().st_size) == (1 << 40, 1 << 33)
    assert image.stat().st_blocks <= path.stat().st_blocks
    assert hole.stat().st_blocks == 0
    with open(image, "rb") as file:
        for at in (0, 5 << 30, 1 << 39):
            file.seek(at)
            assert file.read(20).rstrip(b"\0") == b"data at %d" % at


def test_deep_and_long_paths_survive(source: Executor, target: Executor) -> None:
    """Deeper than any path could name and than descriptors could be held."""
    command = (
        "import os\nfor n in range(3000):\n os.mkdir('d' * 20); os.chdir('d' * 20)\nopen('bottom', 'w').write('x')"
    )
    assert source.execute(sys.executable, "-c", command)["exit_code"] == 0
    archive = export(source)
    assert restore(target, archive).status_code == 200
    look = "import os\nfor n in range(3000): os.chdir('d' * 20)\nprint(open('bottom').read())"

    assert target.execute(sys.executable, "-c", look)["stdout"] == "x\n"
    for executor in (source, target):
        assert restore(executor, packed(), replace="true").status_code == 200
        assert list(executor.workspace.iterdir()) == []


def test_attributes_are_carried(source: Executor, target: Executor) -> None:
    """user.* of files and folders, any bytes in them."""
    folder, file = source.workspace / "folder", source.workspace / "file"
    folder.mkdir()
    file.touch()
    for path in (folder, file):
        os.setxattr(path, "user.a=b%3D", b"\0\n=\xff")
    restore(target, export(source))

    assert [os.getxattr(target.workspace / name, "user.a=b%3D") for name in ("folder", "file")] == [b"\0\n=\xff"] * 2


def test_sockets_and_uploads_under_way_stay_behind(source: Executor, target: Executor) -> None:
    """A socket is nothing without its process, half an upload nothing at all."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source.workspace / "socket"))
    (source.workspace / ".wakegate-0123456789abcdef.part").touch()
    (source.workspace / "kept").touch()
    restore(target, export(source))

    assert os.listdir(target.workspace) == ["kept"]


@pytest.mark.parametrize("direction", ["ours-to-gnu", "gnu-to-ours"])
def test_gnu_tar_understands_it(source: Executor, target: Executor, tmp_path: Path, direction: str) -> None:
    """Another program's idea of the format is the same, both ways."""
    tree = {
        b"x" * 150: {"kind": "file", "content": b"long name", "mode": 0o640, "mtime": 1_700_000_000_123_456_789},
        b"\xff\xfe": {"kind": "symlink", "to": b"\xfe" * 120, "mtime": 5},
        b"twin": {"kind": "twin", "of": 0},
        b"holes": {
            "kind": "sparse",
            "holes": [(9, b"data"), (99, b"more")],
            "tail": 1 << 20,
            "mode": 0o600,
            "mtime": 7,
        },
        b"dir": {
            "kind": "folder",
            "inside": {b"f": {"kind": "fifo", "mode": 0o4600, "mtime": 3}},
            "mode": 0o1755,
            "mtime": 9,
        },
    }
    if direction == "ours-to-gnu":
        grow(source.workspace, tree)
        tar = subprocess.run(
            ["tar", "--zstd", "--warning=no-unknown-keyword", "-xpf", "-", "-C", str(tmp_path)],
            input=export(source),
            capture_output=True,
            check=True,
        )
        assert picture(tmp_path) == picture(source.workspace)
        assert tar.stderr == b""
    else:
        grow(tmp_path, tree)
        command = ["tar", "--format=posix", "--sparse", "--xattrs", "--zstd", "-cf", "-", "-C", str(tmp_path), "."]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
        reply = restore(target, archive)
        assert reply.status_code == 200, reply.text
        assert picture(target.workspace) == picture(tmp_path)


# Refusals


HOSTILE = {
    "parent": [(info("../evil"), b"x")],
    "inner parent": [(info("a/../../evil"), b"x")],
    "absolute": [(info("/tmp/evil"), b"x")],
    "through a symlink": [(info("out", tarfile.SYMTYPE, "/tmp"), b""), (info("out/evil"), b"x")],
    "through a symlinked folder": [
        (info("d", tarfile.DIRTYPE), b""),
        (info("l", tarfile.SYMTYPE, "d"), b""),
        (info("l/evil"), b"x"),
    ],
    "folder onto a symlink": [(info("out", tarfile.SYMTYPE, "/tmp"), b""), (info("out", tarfile.DIRTYPE), b"")],
    "file onto a symlink": [(info("out", tarfile.SYMTYPE, "/tmp/evil"), b""), (info("out"), b"x")],
    "hard link out": [(info("passwd", tarfile.LNKTYPE, "/etc/passwd"), b"")],
    "hard link above": [(info("passwd", tarfile.LNKTYPE, "../../etc/passwd"), b"")],
    "hard link through a symlink": [
        (info("etc", tarfile.SYMTYPE, "/etc"), b""),
        (info("passwd", tarfile.LNKTYPE, "etc/passwd"), b""),
    ],
    "hard link to nothing": [(info("a", tarfile.LNKTYPE, "b"), b"")],
    "device": [(info("null", tarfile.CHRTYPE, devmajor=1, devminor=3), b"")],
    "block device": [(info("disk", tarfile.BLKTYPE, devmajor=8), b"")],
    "unknown kind": [(info("x", b"Z"), b"")],
    "twice": [(info("a"), b"x"), (info("a"), b"y")],
    "file and folder": [(info("a"), b"x"), (info("a/b"), b"y")],
    "no name": [(info("."), b"x")],
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_hostile_archive_is_refused_whole(target: Executor, trick: str) -> None:
    """400 that says why, nothing outside, and nothing inside either: not even what was harmless."""
    reply = restore(target, packed((info("harmless"), b"x"), (info("d1/d2/also"), b"x"), *HOSTILE[trick]))

    assert (reply.status_code, "the archive is refused: '" in reply.json()["error"]) == (400, True), reply.text
    assert os.listdir(target.workspace) == []
    assert not os.path.lexists(target.workspace.parent / "evil")
    assert not os.path.lexists("/tmp/evil")


def test_broken_archive_is_refused_whole(source: Executor, target: Executor) -> None:
    """Cut anywhere, followed by something, changed anywhere: 400 and an empty workspace."""
    (source.workspace / "random").write_bytes(os.urandom(700_000))
    (source.workspace / "text").write_bytes(b"hello " * 1000)
    archive = export(source)
    broken = [archive[:length] for length in (0, 1, 20, 5000, len(archive) // 2, len(archive) - 1, len(archive) - 4)]
    broken += [
        archive + b"x",
        archive + archive,
        b"no archive at all",
        zstandard.compress(b""),
        zstandard.compress(b"x"),
    ]
    broken += [zstandard.compress(bytes(512)), zstandard.compress(b"x" * 5000)]
    for at in (0, 7, 300_000, len(archive) - 3):
        changed = bytearray(archive)
        changed[at] ^= 0x10
        broken.append(bytes(changed))
    for number, each in enumerate(broken):
        reply = restore(target, each)
        assert (number, reply.status_code) == (number, 400), reply.text
        assert reply.json()["error"].startswith("the archive is refused: ")
        assert os.listdir(target.workspace) == []
    assert restore(target, archive).status_code == 200


def test_damaged_sparse_maps_are_refused(target: Executor) -> None:
    """Regions that overlap, leave the file, do not add up or are no numbers."""
    for regions, size in (
        ([(0, 512), (100, 512)], 5000),
        ([(0, 512), (4096, 512)], 4100),
        ([(0, 100)], 5000),
        ([(0, 1 << 50)], 1 << 55),
    ):
        data = encode_sparse_map(regions) + b"d" * 1024
        sparse = info(
            "s", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(size)}
        )
        assert "sparse map" in restore(target, packed((sparse, data))).text
    for data in (b"x\n", b"9" * 600, b"1\n", b"1\n5\n-5\n", b""):
        sparse = info("s", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"})
        assert "sparse map" in restore(target, packed((sparse, data.ljust(512, b"\0") if data else b""))).text
    old = info("s", pax_headers={"GNU.sparse.major": "0", "GNU.sparse.minor": "1"})
    assert "another form" in restore(target, packed((old, b""))).text
    assert os.listdir(target.workspace) == []


def test_archive_that_expands_takes_no_memory(target: Executor) -> None:
    """A window of 32 MB is refused, and megabytes of zeros in a few bytes pass through without staying."""
    window = zstandard.ZstdCompressionParameters(window_log=25, compression_level=1)
    greedy = zstandard.ZstdCompressor(compression_params=window).compressobj()
    reply = restore(target, greedy.compress(bytes(1 << 20)) + greedy.flush())
    assert (reply.status_code, "memory" in reply.text or "window" in reply.text.lower()) == (400, True), reply.text

    head = info("zeros", size=300 << 20).tobuf()
    compressor = zstandard.ZstdCompressor().compressobj()
    bomb = compressor.compress(head) + b"".join(compressor.compress(bytes(1 << 20)) for _ in range(300))
    bomb += compressor.compress(bytes(1024)) + compressor.flush()
    assert len(bomb) < 100_000
    before = picod_memory(target)
    assert restore(target, bomb).status_code == 200
    assert (target.workspace / "zeros").stat().st_size == 300 << 20
    assert picod_memory(target) < before + (20 << 20)


def picod_pid(executor: Executor) -> int:
    """Its own process, below bwrap's."""
    family = [executor.process.pid, *(p.pid for p in psutil.Process(executor.process.pid).children(recursive=True))]
    return next(
        pid
        for pid in family
        if "picod" in psutil.Process(pid).cmdline()
        and "--auth" in psutil.Process(pid).cmdline()
        and psutil.Process(pid).name() != "bwrap"
    )


def picod_memory(executor: Executor) -> int:
    """Peak since the last call, in bytes."""
    pid = picod_pid(executor)
    text = Path(f"/proc/{pid}/status").read_text()
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def test_memory_is_flat_both_ways(source: Executor, target: Executor) -> None:
    """Two hundred megabytes go out and in, and neither picod grows by more than a few."""
    for number in range(4):
        with open(source.workspace / str(number), "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(50))
    (source.workspace / "many").mkdir()
    for number in range(2000):
        (source.workspace / "many" / str(number)).write_bytes(b"x" * 100)
    for executor in (source, target):
        picod_memory(executor)
    at_rest = [picod_memory(executor) for executor in (source, target)]

    def chunks() -> Iterator[bytes]:
        with source.client.stream("GET", "/api/snapshot") as reply:
            assert reply.status_code == 200
            yield from reply.iter_raw()

    assert target.client.put("/api/snapshot", content=chunks()).status_code == 200
    peaks = [picod_memory(executor) for executor in (source, target)]
    assert all(peak - rest < 24 << 20 for peak, rest in zip(peaks, at_rest, strict=True)), (at_rest, peaks)
    for name in ("0", "3", "many/1999"):
        assert (target.workspace / name).read_bytes() == (source.workspace / name).read_bytes()


# The workspace before and after


def test_workspace_in_use_is_not_overwritten(source: Executor, target: Executor) -> None:
    """409 unless replacing is asked for; then what was there is gone, whatever its modes."""
    (source.workspace / "new").write_text("new")
    archive = export(source)
    grow(
        target.workspace,
        {
            b"old": {
                "kind": "folder",
                "inside": {b"f": {"kind": "file", "content": b"x", "mode": 0, "mtime": 0}},
                "mode": 0,
                "mtime": 0,
            }
        },
    )
    refused = restore(target, archive)
    assert (refused.status_code, os.listdir(target.workspace)) == (409, ["old"])
    assert refused.json()["error"] == "the workspace is not empty; ?replace=true replaces what is there"

    assert restore(target, archive, replace="true").json() == {"files": 1, "size": 3}
    assert os.listdir(target.workspace) == ["new"]
    assert restore(target, archive, replace="yes").status_code == 400


def test_full_disk_is_reported_and_leaves_the_workspace_empty(source: Executor) -> None:
    """507, and room for another try."""
    (source.workspace / "big").write_bytes(os.urandom(3 << 20))
    (source.workspace / "aaa").write_bytes(b"first")
    archive = export(source)

    def small(workspace: Path) -> Sequence[str]:
        return with_mounts("--size", str(1 << 20), "--tmpfs", str(workspace))

    with picod_process("--auth", "none", wrapper=small) as picod:
        reply = restore(picod, archive)
        assert (reply.status_code, reply.json()["error"]) == (
            507,
            "Failed to restore the snapshot: no space left on device",
        )
        assert picod.client.get("/api/files", params={"path": "/"}).json() == {"files": []}
        (source.workspace / "big").unlink()
        assert restore(picod, export(source)).status_code == 200


def test_mounted_volumes_are_left_out_and_alone(source: Executor) -> None:
    """A volume outlives its sandbox: not carried, not cleared, not counted as content, its folder kept."""

    def with_a_volume(workspace: Path) -> Sequence[str]:
        (workspace / "volume").mkdir()
        return with_mounts("--tmpfs", str(workspace / "volume"))

    with picod_process("--auth", "none", wrapper=with_a_volume) as picod:
        picod.execute("sh", "-c", "echo kept > volume/kept; echo mine > mine")
        archive = export(picod)
        assert names_in(archive) == ["mine", "volume"]

        assert restore(picod, archive, replace="true").status_code == 200
        assert picod.execute("cat", "volume/kept", "mine")["stdout"] == "kept\nmine\n"
        picod.execute("rm", "mine")
        assert restore(picod, archive).status_code == 200  # nothing but the volume is there


def test_client_that_leaves_while_it_restores_leaves_nothing(source: Executor, target: Executor) -> None:
    """Half an archive is none; the next restore works."""
    (source.workspace / "a").write_bytes(b"first")
    (source.workspace / "b").write_bytes(os.urandom(4 << 20))
    archive = export(source)
    with target.connect() as connection:
        connection.sendall(b"PUT /api/snapshot HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(archive))
        connection.sendall(archive[: len(archive) // 2])
        wait_until(lambda: (target.workspace / "b").exists(), "the restore has begun")
    wait_until(lambda: not os.listdir(target.workspace), "the workspace is empty again")

    assert restore(target, archive).status_code == 200


# Frozen while it is read


def counting(picod: Executor, path: str, token: str) -> threading.Thread:
    """A command that makes one file after another, in a shell and in a daemon of it."""
    code = f"import time\nfor n in range(10**9):\n open({path!r} + str(n), 'w').close()\n # {token}"
    script = f'setsid {sys.executable} -c "$1" {token} & {sys.executable} -c "$2" {token}'
    thread = threading.Thread(
        target=lambda: picod.execute(
            "sh", "-c", script, "sh", code.replace(path, path + "-daemon"), code, timeout="50s"
        )
    )
    thread.start()
    return thread


def written(folder: Path) -> tuple[int, int]:
    """How many files there are of the daemon and of the shell's own command."""
    names = os.listdir(folder)
    daemons = sum(name.startswith("f-daemon") for name in names)
    return daemons, len(names) - daemons


def test_commands_stand_still_while_it_is_read(source: Executor) -> None:
    """A slow client gets the files of one point in time: processes are frozen from the first byte to the last."""
    for number in range(4):
        (source.workspace / f"big{number}").write_bytes(os.urandom(4 << 20))
    (source.workspace / "made").mkdir()
    thread = counting(source, "made/f", "frozen-test")
    made = source.workspace / "made"
    wait_until(lambda: min(written(made)) > 10, "both write")
    with source.connect() as connection:
        connection.sendall(b"GET /api/snapshot HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        got = connection.recv(1000)
        frozen = sorted(os.listdir(made))
        processes = [psutil.Process(pid) for pid in running("frozen-test")]
        assert len(processes) >= 2
        assert {process.status() for process in processes} == {"stopped"}
        assert sorted(os.listdir(made)) == frozen
        while more := connection.recv(1 << 20):
            got += more
    wait_until(lambda: len(os.listdir(made)) > len(frozen) + 20, "they go on")
    for process in processes:
        process.kill()
    thread.join(20)
    assert got.endswith(b"0\r\n\r\n")
    body = b"".join(unchunked(got))
    assert sorted(name[5:] for name in names_in(body) if name.startswith("made/")) == frozen


def unchunked(answer: bytes) -> Iterator[bytes]:
    rest = answer.partition(b"\r\n\r\n")[2]
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            return
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


def test_client_that_leaves_thaws_commands(source: Executor) -> None:
    """They are thawed as soon as the client has left, and processes that the user had stopped stay stopped."""
    for number in range(4):
        (source.workspace / f"big{number}").write_bytes(os.urandom(4 << 20))
    threads = [
        threading.Thread(target=lambda token=token: source.execute("sleep", token, timeout="50s"))
        for token in ("4321.5", "4321.6")
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(running("4321.5")) == len(running("4321.6")) == 1, "both run")
    ours, stopped = psutil.Process(running("4321.5")[0]), psutil.Process(running("4321.6")[0])
    stopped.suspend()
    wait_until(lambda: stopped.status() == "stopped", "the user stopped it")
    with source.connect() as connection:
        connection.sendall(b"GET /api/snapshot HTTP/1.1\r\nhost: x\r\n\r\n")
        connection.recv(1000)
        assert ours.status() == "stopped"
    wait_until(lambda: ours.status() == "sleeping", "it goes on")
    assert stopped.status() == "stopped"
    for process in (ours, stopped):
        process.kill()
    for thread in threads:
        thread.join(20)


def test_shell_with_job_control_does_not_notice_the_freeze(source: Executor) -> None:
    """An interactive shell prints nothing about a child that was stopped and went on."""
    (source.workspace / "big").write_bytes(os.urandom(8 << 20))
    answers: list[dict[str, Any]] = []
    script = "set -m; sleep 4321.7 & wait; echo done"
    thread = threading.Thread(target=lambda: answers.append(source.execute("bash", "-c", script, timeout="50s")))
    thread.start()
    wait_until(lambda: len(running("4321.7")) == 1, "the job runs")
    for _ in range(3):
        export(source)
    wait_until(lambda: psutil.Process(running("4321.7")[0]).status() == "sleeping", "it goes on")
    psutil.Process(running("4321.7")[0]).terminate()
    thread.join(20)

    assert "Stopped" not in answers[0]["stdout"] + answers[0]["stderr"]
    assert answers[0]["stdout"] == "done\n"


def test_snapshots_take_turns(source: Executor, target: Executor) -> None:
    """Several at once all come out whole, one after the other."""
    (source.workspace / "big").write_bytes(os.urandom(2 << 20))
    archives: list[bytes] = []

    def fetch() -> None:
        transport = httpx.HTTPTransport(uds=str(source.uds))
        with httpx.Client(transport=transport, base_url="http://x", timeout=30, trust_env=False) as client:
            archives.append(client.get("/api/snapshot").content)

    threads = [threading.Thread(target=fetch) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(archives) == 5
    assert len(set(archives)) == 1


def test_descriptors_are_given_back(source: Executor, target: Executor) -> None:
    """After snapshots, restores, refusals and clients that left."""
    grow(
        source.workspace,
        {
            b"d": {
                "kind": "folder",
                "inside": {b"f": {"kind": "file", "content": b"x", "mode": 0, "mtime": 0}},
                "mode": 0,
                "mtime": 0,
            }
        },
    )
    archive = export(source)
    restore(target, archive)

    def held() -> list[int]:
        return [len(os.listdir(f"/proc/{picod_pid(executor)}/fd")) for executor in (source, target)]

    before = held()
    for _ in range(5):
        export(source)
        assert restore(target, archive, replace="true").status_code == 200
        assert restore(target, packed((info("a/b/../../../x"), b"")), replace="true").status_code == 400
        assert restore(target, archive[:-9], replace="true").status_code == 400
        with target.connect() as connection:
            connection.sendall(b"PUT /api/snapshot HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nabc")
    wait_until(lambda: held() <= before, f"no more than {before} descriptors")


def test_waiting_sandbox_has_loaded_what_a_wake_needs() -> None:
    """The import does not fall into the first restore."""
    with picod_process("--auth", "none") as picod:
        loaded = Path(f"/proc/{picod.process.pid}/maps")
        wait_until(lambda: "zstandard" in loaded.read_text(), "zstandard is loaded though nobody asked for it")


@pytest.mark.parametrize("data", [b"x", b"5", b"9 a=b\n", b"6 a=bc", b"99999999999 a=b\n", b"7 abcd\n", b" a=b\n"])
def test_damaged_records_are_refused(data: bytes) -> None:
    """An extended header whose lengths do not fit."""
    with pytest.raises(TarballError, match="extended header is damaged"):
        parse_records(data)


def test_members_are_parsed_as_they_were_encoded() -> None:
    """Every length of a name and an attribute, around the places where a record's length gains a digit."""
    for length in (*range(80, 130), *range(960, 1010), *range(9960, 10010)):
        member = Member(b"p" * length, SYMLINK, 0o777, -1, link=b"\xff" * length, xattrs={b"user.%3D=%": b"v" * length})
        blocks = encode(member)
        extended, size = parse_head(blocks[:512]), len(blocks) - 512
        records = parse_records(blocks[512 : 512 + extended.size])
        assert (extended.kind, len(blocks) % 512) == (b"x", 0)
        assert member_of(parse_head(blocks[size:]), records) == member


def test_damaged_header_is_refused() -> None:
    """A checksum that does not fit, a number that is none."""
    good = info("x").tobuf()
    for at in (0, 100, 130, 150, 300):
        with pytest.raises(TarballError, match="not a tar archive, or it is damaged"):
            parse_head(good[:at] + b"\xff" + good[at + 1 :])

"""/api/fs/archive over a real picod: what other people's tools write and read, and what hostile archives try."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings

from tests.support.examples import examples
from tests.support.picod import Executor, picod_process
from tests.support.trees import empty_folder, grow, picture, trees
from tests.support.waiting import wait_until

FORMATS = ("tar", "tar.gz", "tar.zst", "zip")


@pytest.fixture
def folder(picod: Executor) -> Path:
    """The workspace, emptied before each test."""
    empty_folder(picod.workspace)
    return picod.workspace


def sample(root: Path) -> None:
    """A few files of all kinds that every format can say."""
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "a.txt").write_text("alpha")
    (root / "sub" / "deep" / "b.bin").write_bytes(os.urandom(300_000))
    (root / "empty").write_text("")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "link").symlink_to("sub/a.txt")
    (root / ("long" * 50)).write_text("long name")
    (root / "ü").write_text("umlaut")
    for path in (*root.rglob("*"), root):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)


def get(picod: Executor, form: str, path: str = ".") -> bytes:
    """Download a folder as an archive."""
    reply = picod.client.get("/api/fs/archive", params={"path": path, "format": form})
    assert reply.status_code == 200, reply.text
    return reply.content


def put(picod: Executor, data: Any, path: str = "in", **params: str) -> httpx.Response:
    """Upload an archive to be unpacked into a folder."""
    return picod.client.put("/api/fs/archive", params={"path": path, **params}, content=data)


def tar_of(*members: tuple[str, Any], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar as Python writes it: names with bytes, or with a change to their TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            data = b""
            if isinstance(what, bytes):
                data = what
            else:
                what(info)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zip_of(*members: tuple[str, bytes]) -> bytes:
    """A zip as Python writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def link(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    """A change for tar_of that turns a member into a link."""

    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, target

    return change


@pytest.mark.parametrize("form", FORMATS)
def test_folder_survives_the_way_out_and_in(picod: Executor, folder: Path, form: str) -> None:
    """In every format: contents, modes, times to the second, links."""
    (folder / "from").mkdir()
    sample(folder / "from")
    reply = put(picod, get(picod, form, "from"), "to/there")
    assert reply.status_code == 200, reply.text
    ours, theirs = picture(folder / "from"), picture(folder / "to" / "there")
    assert ours.keys() == theirs.keys()
    for path, node in ours.items():
        other = theirs[path]
        assert (node.kind, node.content) == (other.kind, other.content), path
        if not stat.S_ISLNK(node.kind):
            assert (node.mode, node.mtime_ns) == (other.mode, other.mtime_ns), path
    assert not [name for name in os.listdir(folder / "to" / "there") if name.endswith(".part")]


@pytest.mark.parametrize("form", FORMATS)
def test_names_of_255_bytes_survive_the_way_out_and_in(picod: Executor, folder: Path, form: str) -> None:
    """Of files and of folders, in every format."""
    for name in ("y" * 255, "\U0001f600" * 63 + "yyy"):
        (folder / "from" / name).mkdir(parents=True)
        (folder / "from" / name / name).write_text("x")
    assert put(picod, get(picod, form, "from"), "to").status_code == 200
    assert picture(folder / "from").keys() == picture(folder / "to").keys()


def test_names_in_a_zip_of_unix_are_the_bytes_that_they_are(picod: Executor, folder: Path) -> None:
    """Info-ZIP without a UTF-8 locale writes a name's bytes and no flag; they are not read as code page 437."""
    data = zip_of(("n\xe4me", b"x"))  # as Python writes it: UTF-8, and the flag that says so
    flag = (1 << 11).to_bytes(2, "little")
    plain = data.replace(b"PK\3\4\x14\0" + flag, b"PK\3\4\x14\0\0\0").replace(
        b"PK\1\2\x14\3\x14\0" + flag, b"PK\1\2\x14\3\x14\0\0\0"
    )
    with zipfile.ZipFile(io.BytesIO(plain)) as archive:
        assert [info.flag_bits for info in archive.infolist()] == [0]
    for number, each in enumerate((data, plain)):
        assert put(picod, each, f"zip{number}").status_code == 200
        assert os.listdir(folder / f"zip{number}") == ["n\xe4me"]


@pytest.mark.parametrize("form", FORMATS)
def test_other_tools_read_what_goes_out(picod: Executor, folder: Path, form: str) -> None:
    """Python's tarfile and zipfile see every file; the name suggested for saving is the folder's."""
    (folder / "data").mkdir()
    sample(folder / "data")
    reply = picod.client.get("/api/fs/archive", params={"path": "data", "format": form})
    assert reply.headers["content-disposition"] == f'attachment; filename="data.{form}"'
    data = reply.content
    if form == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            assert archive.read("sub/a.txt") == b"alpha"
            names = {name.rstrip("/") for name in archive.namelist()}
    else:
        if form == "tar.zst":
            data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive_:
            member = archive_.extractfile("sub/a.txt")
            assert member is not None
            assert member.read() == b"alpha"
            names = {name.rstrip("/") for name in archive_.getnames()}
    assert names == {os.fsdecode(path) for path in picture(folder / "data")}


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_what_gnu_tar_writes_is_read(picod: Executor, folder: Path, tmp_path: Path, form: str) -> None:
    """In each of its formats, long names as each can say them."""
    source = tmp_path / "source"
    source.mkdir()
    sample(source)
    if form in ("ustar", "v7"):
        (source / ("long" * 50)).unlink()
    made = subprocess.run(["tar", f"--format={form}", "-czf", "-", "-C", source, "."], capture_output=True, check=True)
    assert put(picod, made.stdout).status_code == 200
    ours, theirs = picture(source), picture(folder / "in")
    assert {path: node.content for path, node in ours.items()} == {path: node.content for path, node in theirs.items()}


@given(tree=trees)
@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_trees_survive_as_tar(picod: Executor, tree: Any) -> None:
    """Bit for bit, odd names, modes and holes included: the modes of unpacked folders are no obstacle to their move."""
    root = picod.workspace
    empty_folder(root)
    (root / "from").mkdir()
    grow(root / "from", tree)
    assert put(picod, get(picod, "tar", "from"), "to").status_code == 200
    assert picture(root / "from") == picture(root / "to")
    get(picod, "zip", "from")


@pytest.mark.parametrize("data", [
    tar_of(("../evil", b"x")),
    tar_of(("a/../../evil", b"x")),
    tar_of(("/evil", b"x")),
    tar_of(("out", link(tarfile.SYMTYPE, "..")), ("out/evil", b"x")),
    tar_of(("h", link(tarfile.LNKTYPE, "../secret"))),
    tar_of(("h", link(tarfile.LNKTYPE, "/etc/passwd"))),
    tar_of(("dev", link(tarfile.CHRTYPE, ""))),
    tar_of(("../" + "x" * 200, b"x")),
    tar_of(("a", b"1"), ("a", b"2")),
    zip_of(("../evil", b"x")),
    zip_of(("/evil", b"x")),
    zip_of(("a/../../evil", b"x")),
], ids=lambda data: "")  # fmt: skip
def test_hostile_archives_change_nothing(picod: Executor, folder: Path, data: bytes) -> None:
    """Names and links that want out, devices, the same name twice: refused whole."""
    (folder / "secret").write_text("s")
    (folder / "in").mkdir()
    reply = put(picod, data)
    assert reply.status_code == 400
    assert "the archive is refused" in reply.json()["error"]
    assert sorted(os.listdir(folder)) == ["in", "secret"]
    assert os.listdir(folder / "in") == []


@pytest.mark.parametrize("data", [
    b"", b"junk", b"\x1f\x8bjunk", b"\x28\xb5\x2f\xfdjunk", b"PK\3\4junk", b"PK\5\6" + bytes(18), bytes(300),
    tar_of(("a", b"x" * 5000))[:3000],
    gzip.compress(tar_of(("a", os.urandom(5000))))[:3000],
    zstandard.compress(tar_of(("a", os.urandom(500_000))))[:300_000],
    zip_of(("a", os.urandom(5000)))[:3000],
    zip_of(("a", b"x" * 5000)).replace(b"PK\1\2", b"PK\1\3"),
    b"x" * 600,
], ids=lambda data: "")  # fmt: skip
def test_broken_archives_change_nothing(picod: Executor, folder: Path, data: bytes) -> None:
    """Cut off or no archive at all: 400, except an empty zip, which is one."""
    (folder / "in").mkdir()
    status = put(picod, data).status_code
    assert status == (200 if data.startswith(b"PK\5\6") else 400)
    assert os.listdir(folder / "in") == []


def test_damaged_content_of_a_zip_is_found(picod: Executor, folder: Path) -> None:
    """A wrong checksum is 400, and nothing is unpacked."""
    data = bytearray(zip_of(("a", b"some content that is stored")))
    data[45] ^= 0xFF
    assert put(picod, bytes(data)).status_code == 400
    assert os.listdir(folder / "in") == []


def test_bombs_are_stopped_by_what_comes_out() -> None:
    """A small archive of much: 413, in each packing, and nothing stays."""
    zeros = bytes(50 << 20)
    bombs = [
        gzip.compress(tar_of(("zeros", zeros))),
        zstandard.compress(tar_of(("zeros", zeros))),
        zip_of(("zeros", zeros)),
        gzip.compress(zeros),
    ]
    with picod_process("--auth", "none", environ={"PICOD_MAX_UNPACK": str(8 << 20)}) as picod:
        for bomb in bombs:
            before = picod.reset_peak()
            reply = put(picod, bomb, ".")
            assert reply.status_code in (413, 400), reply.text
            assert os.listdir(picod.workspace) == []
            assert picod.memory("VmHWM") - before < 16 << 20
        assert put(picod, bombs[0], ".").status_code == 413


def test_zip_whose_directory_is_huge_takes_no_memory(picod: Executor, folder: Path) -> None:
    """It is refused before it is read."""
    end = b"PK\5\6" + bytes(4) + b"\1\0\1\0" + (90 << 20).to_bytes(4, "little") + bytes(4) + bytes(2)
    before = picod.reset_peak()
    # In pieces: the client's library takes half a minute for the same in one.
    pieces = (b"PK\3\4" if index == 0 else end if index == 100 else bytes(1 << 20) for index in range(101))
    reply = put(picod, pieces)
    assert (reply.status_code, "directory is larger" in reply.json()["error"]) == (400, True)
    assert picod.memory("VmHWM") - before < 16 << 20


def test_set_id_bits_of_files_go_neither_out_nor_in(picod: Executor, folder: Path) -> None:
    """Who unpacks a sandbox's files as root must not get a program of its making that runs as root."""
    (folder / "tool").write_text("")
    (folder / "tool").chmod(0o6755)
    with tarfile.open(fileobj=io.BytesIO(get(picod, "tar"))) as archive:
        assert {each.name: each.mode for each in archive if each.isreg()} == {"tool": 0o755}

    def set_id(info: tarfile.TarInfo) -> None:
        info.mode = 0o6755

    assert put(picod, tar_of(("theirs", set_id))).status_code == 200
    assert stat.S_IMODE((folder / "in" / "theirs").stat().st_mode) == 0o755


def test_existing_files_are_kept_without_overwrite(picod: Executor, folder: Path) -> None:
    """A conflict changes nothing; with `overwrite` files are replaced, folders joined, never one by the other."""
    (folder / "in" / "d").mkdir(parents=True)
    (folder / "in" / "d" / "old").write_text("old")
    (folder / "in" / "d" / "both").write_text("old")
    data = tar_of(("d/both", b"new"), ("d/a", b"new"), ("z", b"z"))
    reply = put(picod, data)
    assert (reply.status_code, reply.json()["code"]) == (409, "EXISTS")
    assert "d/both is there already" in reply.json()["error"]
    assert sorted(os.listdir(folder / "in")) == ["d"]
    assert sorted(os.listdir(folder / "in" / "d")) == ["both", "old"]
    assert put(picod, data, overwrite="true").json()["files"] == 3
    assert {path.name: path.read_text() for path in (folder / "in" / "d").iterdir()} == {
        "both": "new", "a": "new", "old": "old",
    }  # fmt: skip
    assert put(picod, tar_of(("d", b"file")), overwrite="true").status_code == 409
    assert put(picod, tar_of(("z/in", b"x")), overwrite="true").status_code == 409


def test_links_that_are_there_are_not_followed(picod: Executor, folder: Path, tmp_path: Path) -> None:
    """A folder of the archive does not go through a link of the same name."""
    (folder / "in").mkdir()
    (folder / "in" / "d").symlink_to(tmp_path)
    for overwrite in ("false", "true"):
        assert put(picod, tar_of(("d/x", b"x")), overwrite=overwrite).status_code == 409
    assert os.listdir(tmp_path) == []
    (folder / "away").symlink_to(tmp_path)
    assert put(picod, tar_of(("x", b"x")), "away").status_code == 400
    assert picod.client.get("/api/fs/archive?path=away").status_code == 400
    assert os.listdir(tmp_path) == []


def test_client_that_leaves_half_way_leaves_nothing(picod: Executor, folder: Path) -> None:
    """The folder for what was unpacked so far goes with it."""
    (folder / "in").mkdir()
    with picod.connect() as client:
        client.sendall(b"PUT /api/fs/archive?path=in HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        client.sendall(tar_of(("a", b"x" * 50_000))[:40_000])
        wait_until(lambda: bool(os.listdir(folder / "in")), "unpacking has begun")
    wait_until(lambda: not os.listdir(folder / "in"), "nothing is left")


@pytest.mark.parametrize(
    ("method", "query", "status"),
    [
        ("GET", "?format=rar", 400), ("GET", "?path=none", 404), ("GET", "?path=../x", 400), ("GET", "?path=file", 400),
        ("PUT", "", 400), ("PUT", "?path=file", 400), ("PUT", "?path=../x", 400), ("PUT", "?path=x&overwrite=1", 400),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(picod: Executor, folder: Path, method: str, query: str, status: int) -> None:
    """Each gets its status and a message."""
    (folder / "file").write_text("x")
    reply = picod.client.request(method, f"/api/fs/archive{query}", content=tar_of(("a", b"x")))
    assert reply.status_code == status
    assert reply.json()["error"]


def _pieces(size: int) -> Iterator[bytes]:
    info = tarfile.TarInfo("big")
    info.size = size
    yield info.tobuf(tarfile.PAX_FORMAT)
    chunk = os.urandom(1 << 20)
    for _ in range(size >> 20):
        yield chunk
    yield bytes(10240)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("form", "size"), [("tar", 1024), ("tar.zst", 1024), ("tar.gz", 256), ("zip", 256)])
def test_big_folder_streams_both_ways_with_flat_memory(picod: Executor, folder: Path, form: str, size: int) -> None:
    """`size` MiB up as a plain tar, down in every format; deflate is slow, so it gets a quarter of a gigabyte."""
    before = picod.reset_peak()
    assert put(picod, _pieces(size << 20)).json()["size"] == size << 20
    seen = 0
    with picod.client.stream("GET", f"/api/fs/archive?path=in&format={form}", timeout=600) as reply:
        for chunk in reply.iter_raw():
            seen += len(chunk)
    assert seen > size << 20
    assert picod.memory("VmHWM") - before < 48 << 20
    (folder / "in" / "big").unlink()

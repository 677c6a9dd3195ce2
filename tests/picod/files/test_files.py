"""Uploads, listings and downloads over a real picod."""

from __future__ import annotations

import base64
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picod.files.listing import ByteRange, content_type, disposition, parse_range
from tests.support.picod import Executor, picod_process, with_mounts
from tests.support.waiting import wait_until


def put_json(picod: Executor, path: str, content: bytes, **more: Any) -> httpx.Response:
    """Upload a file in the JSON form, with base64."""
    return picod.client.post("/api/files", json={"path": path, "content": base64.b64encode(content).decode(), **more})


def parts_left(picod: Executor) -> list[Path]:
    """Temporary files of uploads that are still there."""
    return list(picod.workspace.rglob(".wakegate-*.part"))


def test_json_upload_writes_the_file(picod: Executor) -> None:
    """Parents are made, the answer describes the file, the bytes are the bytes."""
    reply = put_json(picod, "/up/a/b.bin", b"\0\xff" * 9, mode="0640")

    assert reply.status_code == 200
    assert tuple(reply.json()[key] for key in ("path", "size", "mode")) == ("up/a/b.bin", 18, "-rw-r-----")
    assert (picod.workspace / "up/a/b.bin").read_bytes() == b"\0\xff" * 9


def test_errors_name_no_path_of_the_host(picod: Executor) -> None:
    """Whatever fails, a client reads paths as it gave them, never where the workspace lies on the machine."""
    (picod.workspace / "out").symlink_to("/etc")
    (picod.workspace / "odd").mkdir()
    (picod.workspace / "odd" / "file").write_text("x")
    get, post, put = picod.client.get, picod.client.post, picod.client.put
    replies = [
        *(get(f"/api/files/{path}") for path in ("gone", "odd", "out/passwd", "../x", "odd/file/x", "%00")),
        *(get(url, params={"path": path}) for url in ("/api/files", "/api/fs/stat", "/api/fs/tree", "/api/fs/archive")
          for path in ("gone", "out/x", "../x", "odd/file/x")),
        *(put(f"/api/files/{path}", content=b"x") for path in ("odd", "out/x", "odd/file/x")),
        *(put("/api/fs/archive", params={"path": path}, content=b"x") for path in (".", "odd/file", "out")),
        put("/api/snapshot", content=b"x"),
        post("/api/fs/move", json={"from": "gone", "to": "x"}),
        post("/api/fs/mkdir", json={"path": "odd/file/x"}),
        post("/api/execute", json={"command": ["ls"], "working_dir": "odd/file"}),
        post("/api/processes", json={"command": ["./gone"]}),
        picod.client.delete("/api/files/gone"),
    ]  # fmt: skip
    assert min(reply.status_code for reply in replies) >= 400
    assert not [reply.text for reply in replies if str(picod.workspace.parent) in reply.text]


@pytest.mark.parametrize("mode", ["0999", "abc", "", "01777", None])
def test_odd_modes_are_0644(picod: Executor, mode: str | None) -> None:
    """What is no octal number up to 0777 is the default."""
    assert put_json(picod, f"modes/{mode or 'none'}", b"x", mode=mode).json()["mode"] == "-rw-r--r--"


def test_mode_of_an_existing_file_stays(picod: Executor) -> None:
    """A mode counts when the file is made; writing again keeps what it has, and its content changes whole."""
    put_json(picod, "kept", b"first", mode="0755")
    reply = put_json(picod, "kept", b"2", mode="0600")

    assert reply.json()["mode"] == "-rwxr-xr-x"
    assert (picod.workspace / "kept").read_bytes() == b"2"


@pytest.mark.parametrize("form", ["json", "multipart", "raw"])
def test_empty_files_can_be_written(picod: Executor, form: str) -> None:
    """Zero bytes are a file in each form."""
    path = f"empty-{form}"
    match form:
        case "json":
            reply = put_json(picod, path, b"")
        case "multipart":
            reply = picod.client.post("/api/files", data={"path": path}, files={"file": ("x", b"")})
        case _:
            reply = picod.client.put(f"/api/files/{path}", content=b"")

    assert (reply.status_code, reply.json()["size"]) == (200, 0)
    assert picod.client.get(f"/api/files/{path}").content == b""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            {"content": ""},
            "Key: 'UploadFileRequest.Path' Error:Field validation for 'Path' failed on the 'required' tag",
        ),
        (
            {"path": "x"},
            "Key: 'UploadFileRequest.Content' Error:Field validation for 'Content' failed on the 'required' tag",
        ),
        (
            {"path": 1, "content": ""},
            "json: cannot unmarshal number into Go struct field UploadFileRequest.path of type string",
        ),
        ({"path": "x", "content": "YWJj*A=="}, "Invalid base64 content: illegal base64 data at input byte 4"),
        ({"path": "x", "content": "YWJ"}, "Invalid base64 content: illegal base64 data at input byte 3"),
        ({"path": "x", "content": "\u00e4"}, "Invalid base64 content: illegal base64 data at input byte 0"),
        (
            {"path": "../x", "content": ""},
            "access denied: path '../x' escapes workspace jail (relative path traversal: ../x)",
        ),
        ({"path": "a\0b", "content": ""}, "the path contains a NUL byte"),
        ({"path": "x" * 256, "content": ""}, "the path is too long: a name in it has more than 255 bytes"),
    ],
)
def test_wrong_json_uploads_are_refused(picod: Executor, body: dict[str, Any], error: str) -> None:
    """Each gets 400 with AgentCube's message."""
    reply = picod.client.post("/api/files", json=body)

    assert (400, {"code": 400, "error": error}) == (reply.status_code, reply.json())


def test_uploads_onto_directories_and_below_files_are_refused(picod: Executor) -> None:
    """A clear sentence, and no temporary file stays."""
    (picod.workspace / "adir").mkdir()
    (picod.workspace / "afile").touch()
    onto, below, root = (put_json(picod, path, b"x") for path in ("adir", "afile/x", "/"))

    assert (onto.status_code, onto.json()["error"]) == (400, "Failed to write file: open adir: is a directory")
    assert (below.status_code, below.json()["error"]) == (
        400,
        "Failed to create directory: mkdir afile: not a directory",
    )
    assert root.status_code == 400
    assert parts_left(picod) == []


@pytest.mark.parametrize("path", ["link", "linkdir/new", "linkdir/secret"])
def test_symlinks_out_of_the_workspace_are_refused_both_ways(picod: Executor, tmp_path: Path, path: str) -> None:
    """As the file itself or as a parent: neither written nor read nor listed."""
    secret = tmp_path / "secret"
    secret.write_text("untouched")
    for name, target in (("link", secret), ("linkdir", tmp_path)):
        (picod.workspace / name).symlink_to(target)
    try:
        replies = [
            put_json(picod, path, b"x"),
            picod.client.get(f"/api/files/{path}"),
            picod.client.get("/api/files", params={"path": path}),
            picod.client.put(f"/api/files/{path}", content=b"x"),
            picod.client.post("/api/execute", json={"command": ["pwd"], "working_dir": path}),
        ]
    finally:
        (picod.workspace / "link").unlink()
        (picod.workspace / "linkdir").unlink()

    assert {400} == {reply.status_code for reply in replies}
    assert all("escapes workspace jail via symlink" in reply.json()["error"] for reply in replies)
    assert (os.listdir(tmp_path), secret.read_text()) == (["secret"], "untouched")


def test_upload_through_an_inner_symlink_writes_its_target(picod: Executor) -> None:
    """The target of the symlink is written, and the symlink stays one."""
    (picod.workspace / "inner").mkdir()
    (picod.workspace / "alias").symlink_to("inner/target")
    put_json(picod, "alias", b"through")

    assert (picod.workspace / "alias").is_symlink()
    assert (picod.workspace / "inner/target").read_text() == "through"


def form_body(*parts: tuple[str, bytes], end: bytes = b"--") -> bytes:
    """A multipart body by hand: (Content-Disposition's parameters, content) each; boundary `B`."""
    body = b"".join(
        b"--B\r\ncontent-disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), data) for head, data in parts
    )
    return body + b"--B" + end + b"\r\n"


@pytest.mark.parametrize("file_first", [False, True])
def test_multipart_upload_writes_the_file_whatever_the_order(picod: Executor, file_first: bool) -> None:
    """`path` and `mode` may stand before or after the file; its filename does not matter."""
    path = f"form/{file_first}/x.txt"
    fields = [('name="path"', path.encode()), ('name="mode"', b"0600")]
    file = ('name="file"; filename="../../evil"', b"some\r\n--Bytes\r\n" * 1000)
    body = form_body(file, *fields) if file_first else form_body(*fields, file)
    reply = picod.client.post("/api/files", content=body, headers={"content-type": "multipart/form-data; boundary=B"})

    assert (200, path, "-rw-------") == (reply.status_code, reply.json()["path"], reply.json()["mode"])
    assert file[1] == (picod.workspace / path).read_bytes()
    assert parts_left(picod) == []


PATH, FILE = ('name="path"', b"bad-form"), ('name="file"; filename="x"', b"data")


@pytest.mark.parametrize(
    ("content_type", "body", "error"),
    [
        ("multipart/form-data", form_body(PATH, FILE), "no multipart boundary param in Content-Type"),
        ("multipart/form-data; boundary=B", form_body(FILE), "Missing 'path' field"),
        ("multipart/form-data; boundary=B", form_body(PATH), "Failed to get file: http: no such file"),
        (
            "multipart/form-data; boundary=B",
            form_body(PATH, ('name="file"', b"x")),
            "Failed to get file: http: no such file",
        ),
        ("multipart/form-data; boundary=B", form_body(PATH, FILE, end=b""), "unexpected end"),
        ("multipart/form-data; boundary=B", form_body(PATH, FILE)[:-12], "unexpected end"),
        ("multipart/form-data; boundary=B", b"garbage", "Failed to parse multipart form"),
        ("multipart/form-data; boundary=" + "B" * 300, form_body(PATH, FILE), "Failed to parse multipart form"),
        ("multipart/form-data; boundary=B", form_body(('name="path"', b"x" * 70_000), FILE), "a field has more than"),
        ("multipart/form-data; boundary=B", form_body(('name="path"', b"\xff"), FILE), "the path is not valid UTF-8"),
        ("multipart/form-data; boundary=B", form_body(('name="path"', b"../x"), FILE), "escapes workspace jail"),
        ("multipart/form-data; boundary=B", b"", "unexpected end"),
    ],
)
def test_malformed_forms_are_refused_and_leave_nothing(
    picod: Executor, content_type: str, body: bytes, error: str
) -> None:
    """400 with the reason; neither file nor temporary file."""
    reply = picod.client.post("/api/files", content=body, headers={"content-type": content_type})

    assert reply.status_code == 400, reply.text
    assert error in reply.json()["error"]
    assert not (picod.workspace / "bad-form").exists()
    assert parts_left(picod) == []


def big_form(size: int, path: str) -> tuple[Iterator[bytes], int]:
    """A form with a file of `size` zero bytes, as a stream, and its length."""
    head = form_body(('name="path"', path.encode()), ('name="file"; filename="x"', b""), end=b"")[
        : -len(b"\r\n--B\r\n")
    ]
    tail = b"\r\n--B--\r\n"
    block = bytes(1 << 20)

    def stream() -> Iterator[bytes]:
        yield head
        for _ in range(size >> 20):
            yield block
        yield tail

    return stream(), len(head) + size + len(tail)


@pytest.mark.parametrize("size", [192 << 20, pytest.param(2 << 30, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_big_uploads_and_downloads_leave_memory_flat(picod: Executor, size: int) -> None:
    """Multipart up, whole down again, chunked raw up: each far beyond the JSON limit, memory within 32 MB."""
    before = picod.reset_peak()
    stream, length = big_form(size, "big.bin")
    headers = {"content-type": "multipart/form-data; boundary=B", "content-length": str(length)}
    assert size == picod.client.post("/api/files", content=stream, headers=headers, timeout=250).json()["size"]
    with picod.client.stream("GET", "/api/files/big.bin") as reply:
        assert size == sum(len(chunk) for chunk in reply.iter_raw())
    raw = picod.client.put("/api/files/big.bin", content=(bytes(1 << 20) for _ in range(size >> 20)), timeout=250)
    assert size == raw.json()["size"]

    assert picod.memory("VmHWM") - before < 32 << 20
    (picod.workspace / "big.bin").unlink()


def test_json_bodies_have_a_limit() -> None:
    """413 in AgentCube's words, told by its length or found while reading; forms are not limited."""
    expected = {"detail": "maximum allowed size is 1000 bytes", "error": "request body too large"}
    with picod_process("--auth", "none", environ={"PICOD_MAX_BODY": "1000"}) as picod:
        told = put_json(picod, "x", b"x" * 1000)
        chunked = picod.client.post("/api/files", content=(b" " * 400 for _ in range(9)))
        form = picod.client.post("/api/files", data={"path": "x"}, files={"file": ("x", b"x" * 5000)})

    assert [(413, expected)] * 2 == [(reply.status_code, reply.json()) for reply in (told, chunked)]
    assert form.status_code == 200


def test_listing_is_sorted_and_has_the_type_of_each_entry(picod: Executor) -> None:
    """Files, folders, links (not followed), odd names; not recursive; `[]` when empty."""
    folder = picod.workspace / "listed"
    (folder / "sub" / "deeper").mkdir(parents=True)
    (folder / "b.txt").write_text("12345")
    (folder / "a link").symlink_to("/etc")
    Path(os.fsdecode(bytes(folder) + b"/\xff")).touch()
    (folder / "empty").mkdir()
    entries = picod.client.get("/api/files?path=/listed").json()["files"]

    assert [(entry["name"], entry["mode"][0], entry["is_dir"]) for entry in entries] == [
        ("a link", "L", False),
        ("b.txt", "-", False),
        ("empty", "d", True),
        ("sub", "d", True),
        ("\ufffd", "-", False),
    ]
    assert entries[1]["size"] == 5
    assert [entry.get("name_encoded") for entry in entries] == [None, None, None, None, "%FF"]
    assert picod.client.get("/api/files?path=listed/empty").json() == {"files": []}


@pytest.mark.parametrize("name", ["y" * 255, "ü" * 127 + "y", "😀" * 63 + "yyy"])
def test_names_may_have_255_bytes(picod: Executor, name: str) -> None:
    """Written in each way, read, listed, moved and deleted; a name of 256 bytes is refused in words."""
    assert len(name.encode()) == 255
    url = quote(name)
    key = {"idempotency-key": f"long-{ord(name[0])}"}
    replies = [
        put_json(picod, f"names255/{name}", b"1"),
        picod.client.post("/api/files", data={"path": f"names255/{name}"}, files={"file": (name, b"2")}),
        picod.client.put(f"/api/files/names255/{url}", content=b"3", headers=key),
        picod.client.put(f"/api/files/names255/{url}", content=b"3", headers=key),
    ]
    assert [reply.status_code for reply in replies] == [200] * 4
    assert picod.client.get(f"/api/files/names255/{url}").content == b"3"
    assert [entry["name"] for entry in picod.client.get("/api/files?path=names255").json()["files"]] == [name]
    assert picod.client.get("/api/fs/stat", params={"path": f"names255/{name}"}).json()["name"] == name
    assert picod.execute("cat", name, working_dir="names255")["stdout"] == "3"
    moved = picod.client.post(
        "/api/fs/move", json={"from": f"names255/{name}", "to": f"names255/{name}/../{name[:-1]}x"}
    )
    assert moved.status_code == 200
    assert picod.client.delete(f"/api/files/names255/{quote(name[:-1])}x").status_code == 204
    assert picod.client.post("/api/fs/mkdir", json={"path": f"names255/{name}"}).status_code == 201
    assert picod.client.delete("/api/files/names255?recursive=true").status_code == 204

    refused = put_json(picod, f"names255/{name}y", b"")
    assert refused.status_code == 400
    assert "more than 255 bytes" in refused.json()["error"]


@pytest.mark.parametrize(
    ("query", "status", "error"),
    [
        ("", 400, "Missing 'path' query parameter"),
        ("?path=", 400, "Missing 'path' query parameter"),
        ("?path=nowhere", 404, "Directory not found"),
        ("?path=../..", 400, "access denied: path '../..' escapes workspace jail (relative path traversal: ../..)"),
        ("?path=%ff", 400, "the query string is not valid UTF-8"),
        ("?path=a%00", 400, "the path contains a NUL byte"),
        ("?path=a-plain-file", 400, "Failed to read directory: open a-plain-file: not a directory"),
    ],
)
def test_wrong_listings_are_refused(picod: Executor, query: str, status: int, error: str) -> None:
    """The status fits and the sentence says what was wrong."""
    (picod.workspace / "a-plain-file").touch()
    reply = picod.client.get(f"/api/files{query}")

    assert (status, {"code": status, "error": error}) == (reply.status_code, reply.json())


def test_download_carries_agentcubes_headers(picod: Executor) -> None:
    """All of them; an index.html is a file like any other."""
    put_json(picod, "site/index.html", b"<p>hi</p>")
    reply = picod.client.get("/api/files/site/index.html")

    assert (reply.status_code, reply.content) == (200, b"<p>hi</p>")
    expected = {
        "content-description": "File Transfer",
        "content-transfer-encoding": "binary",
        "content-disposition": 'attachment; filename="index.html"',
        "content-type": "text/html; charset=utf-8",
        "accept-ranges": "bytes",
        "content-length": "9",
    }
    assert expected == {name: reply.headers[name] for name in expected}
    head = picod.client.head("/api/files/site/index.html")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "9", b"")


@pytest.mark.parametrize(
    "name", ["sp ace", "\u00fcml\u00e4ut", 'q"uo\\te', "per%25cent", "tab\there", "new\nline", "?#&"]
)
def test_files_with_odd_names_come_back(picod: Executor, name: str) -> None:
    """Up by JSON, down by percent-encoded URL, one header line."""
    put_json(picod, f"odd names/{name}", name.encode())
    encoded = "".join(f"%{byte:02x}" for byte in name.encode())
    reply = picod.client.get(f"/api/files/odd%20names%2F{encoded}")

    assert (200, name.encode()) == (reply.status_code, reply.content)
    assert reply.headers["content-disposition"].startswith("attachment; filename=")


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("nowhere", 404, "File not found"),
        ("", 400, "Path is a directory, not a file"),
        ("downs", 400, "Path is a directory, not a file"),
        ("downs/pipe", 400, "Path is not a regular file"),
        ("downs/%00", 400, "the path contains a NUL byte"),
        ("downs/%ff", 400, "the path is not valid UTF-8"),
        ("downs/loop", 400, "Failed to read file: open downs/loop: too many levels of symbolic links"),
        ("%2e%2e/x", 400, "access denied: path '../x' escapes workspace jail (relative path traversal: ../x)"),
    ],
)
def test_wrong_downloads_are_refused(picod: Executor, path: str, status: int, error: str) -> None:
    """Also a pipe, which would else hold the request for ever."""
    folder = picod.workspace / "downs"
    if not folder.exists():
        folder.mkdir()
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
    reply = picod.client.get(f"/api/files/{path}")

    assert (status, {"code": status, "error": error}) == (reply.status_code, reply.json())


@pytest.mark.parametrize(
    ("header", "status", "body", "part"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
    ],
)
def test_ranges_are_answered(picod: Executor, header: str, status: int, body: bytes, part: str | None) -> None:
    """One range is sent as a part; several, or nonsense, send the whole."""
    put_json(picod, "range.txt", b"0123456789")
    reply = picod.client.get("/api/files/range.txt", headers={"range": header})

    assert (status, body, part) == (reply.status_code, reply.content, reply.headers.get("content-range"))


@given(st.text(alphabet="bytes=0123456789-, ", max_size=25), st.integers(0, 1000))
def test_any_range_header_stays_in_the_file(header: str, size: int) -> None:
    """Whatever is asked for, what is sent lies within the file."""
    try:
        part = parse_range("bytes=" + header, size)
    except LookupError:
        return
    if part is not None:
        assert 0 <= part.start < part.start + part.length <= size
        assert isinstance(part, ByteRange)


def test_conditional_requests_are_answered(picod: Executor) -> None:
    """304 for what the client has; If-Range of another version sends all."""
    put_json(picod, "cond.txt", b"0123456789")
    reply = picod.client.get("/api/files/cond.txt")
    etag, modified = reply.headers["etag"], reply.headers["last-modified"]
    old = "Sat, 01 Jan 2000 00:00:00 GMT"

    def status(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return picod.client.get("/api/files/cond.txt", headers=named).status_code

    assert 304 == status(if_modified_since=modified) == status(if_none_match=etag) == status(if_none_match="*")
    assert 200 == status(if_modified_since=old) == status(if_none_match='"x"') == status(if_modified_since="nonsense")
    assert status(if_none_match='"x"', if_modified_since=modified) == 200
    assert 206 == status(range="bytes=0-1", if_range=etag) == status(range="bytes=0-1", if_range=modified)
    assert status(range="bytes=0-1", if_range='"x"') == 200


def test_content_types_follow_the_extension() -> None:
    """Text says its charset; packed and unknown files are what they are; no name is a URL."""
    seen = [content_type(name) for name in ("a.py", "a.json", "a.tar.gz", "a", "data:text/html,x", "a.png")]
    octets = "application/octet-stream"

    assert ["text/x-python; charset=utf-8", "application/json", "application/gzip", octets, octets, "image/png"] == seen


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.encode("utf-8", "replace").decode() == text))
def test_disposition_is_one_plain_line_for_any_name(name: str) -> None:
    """Nothing in a name can end the header or its quotes."""
    line = disposition(name).decode("ascii")

    assert line.isprintable()
    assert line.count('"') == 2


def test_clients_that_leave_in_the_middle_leave_nothing(picod: Executor) -> None:
    """Half a form, half a raw upload, half a download: temporary files and descriptors are gone."""
    (picod.workspace / "long").write_bytes(bytes(64 << 20))
    picod.client.get("/api/files/range.txt")
    before = picod.descriptors()
    form = form_body(('name="path"', b"half"), ('name="file"; filename="x"', bytes(1 << 20)))[:-40]
    length = b"host: x\r\ncontent-length: 9999999\r\n"
    for request in (
        b"POST /api/files HTTP/1.1\r\n" + length + b"content-type: multipart/form-data; boundary=B\r\n\r\n" + form,
        b"PUT /api/files/half HTTP/1.1\r\n" + length + b"\r\n" + bytes(1 << 20),
        b"GET /api/files/long HTTP/1.1\r\nhost: x\r\n\r\n",
    ):
        with picod.connect() as connection:
            connection.sendall(request)
            # A count would not do: what earlier tests left may be closed meanwhile.
            wait_until(picod.open_files, "the request is under way")
        wait_until(lambda: not picod.open_files(), "its file is closed")
        wait_until(lambda: picod.descriptors() <= before, "descriptors come back")
    assert parts_left(picod) == []
    assert not (picod.workspace / "half").exists()


def test_client_that_does_not_read_holds_up_only_itself(picod: Executor) -> None:
    """A download whose client does not read uses little memory, and other requests are served."""
    (picod.workspace / "long").write_bytes(bytes(128 << 20))
    before = picod.reset_peak()
    with picod.connect() as lazy:
        lazy.sendall(b"GET /api/files/long HTTP/1.1\r\nhost: x\r\n\r\n")
        assert lazy.recv(10, socket.MSG_PEEK)
        assert len(picod.client.get("/api/files/long").content) == 128 << 20
        assert picod.memory("VmHWM") - before < 24 << 20
    (picod.workspace / "long").unlink()


def on_a_small_disk(workspace: Path) -> list[str]:
    """Run with one megabyte of workspace."""
    return with_mounts("--size", str(1 << 20), "--tmpfs", str(workspace))


def test_full_disk_is_507_and_picod_lives_on() -> None:
    """Each form of upload answers 507, leaves nothing, and the next small one works; output beyond the disk is cut."""
    with picod_process("--auth", "none", wrapper=on_a_small_disk) as picod:
        big = bytes(2 << 20)
        replies = [
            put_json(picod, "big", big),
            picod.client.post("/api/files", data={"path": "big"}, files={"file": ("x", big)}),
            picod.client.post(
                "/api/files",
                content=form_body((FILE[0], big), PATH),
                headers={"content-type": "multipart/form-data; boundary=B"},
            ),
            picod.client.put("/api/files/big", content=big),
        ]
        assert [reply.status_code for reply in replies] == [507] * 4
        assert all(reply.json()["error"].endswith(": no space left on device") for reply in replies)
        assert picod.client.get("/api/files?path=.").json() == {"files": []}
        assert put_json(picod, "small", b"x").status_code == 200
        answer = picod.execute("head", "-c", "20M", "/dev/zero")
        assert (len(answer["stdout"]), answer["stdout_truncated"], "stdout_file" in answer) == (10_000_000, True, False)
        assert put_json(picod, "small", b"y" * 500_000).status_code == 200


def with_a_volume(workspace: Path) -> list[str]:
    """Run with another file system mounted at `volume` in the workspace."""
    return with_mounts("--tmpfs", str(workspace / "volume"))


def test_uploads_reach_a_mounted_volume() -> None:
    """Also when the path comes after the file, so that the bytes waited on the other file system."""
    with picod_process("--auth", "none", wrapper=with_a_volume) as picod:
        body = form_body(FILE, ('name="path"', b"volume/a/x"), ('name="mode"', b"0751"))
        reply = picod.client.post(
            "/api/files", content=body, headers={"content-type": "multipart/form-data; boundary=B"}
        )
        assert (reply.status_code, reply.json()["mode"]) == (200, "-rwxr-x--x")
        assert picod.client.get("/api/files/volume/a/x").content == FILE[1]
        assert [entry["name"] for entry in picod.client.get("/api/files?path=.").json()["files"]] == ["volume"]
        assert [entry["name"] for entry in picod.client.get("/api/files?path=volume/a").json()["files"]] == ["x"]


def test_file_size_limit_is_413_and_picod_lives_on() -> None:
    """A process limit on file sizes, as sandboxes set it, neither kills picod nor leaves a piece."""
    with picod_process("--auth", "none") as picod:
        resource.prlimit(picod.process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
        reply = put_json(picod, "big", bytes(200_000))
        assert (reply.status_code, reply.json()["error"]) == (
            413,
            "Failed to save file content: write big: file too large",
        )
        assert os.listdir(picod.workspace) == []
        assert put_json(picod, "small", b"x").status_code == 200

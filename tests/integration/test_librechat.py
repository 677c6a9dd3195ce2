"""LibreChat's code API over a real gateway: what LibreChat and its agents send, keys, tenants, and bad input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.keyed import make_key, serve_with_keys
from tests.support.serve import Server

ID = re.compile(r"[A-Za-z0-9_-]{21}")  # LibreChat's own check of what it downloads


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that asks for keys."""
    with serve_with_keys(tmp_path_factory.mktemp("wg")) as served:
        yield served


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    """A member's."""
    return make_key(server, "acme")


def ask(server: Server, key: str, method: str, path: str, **options: Any) -> httpx.Response:
    return server.client.request(method, "/librechat" + path, headers={"x-api-key": key}, **options)


def run(server: Server, key: str, code: str, lang: str = "py", **fields: Any) -> Any:
    reply = ask(server, key, "POST", "/exec", json={"lang": lang, "code": code, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def upload(server: Server, key: str, name: str, data: bytes, **fields: str) -> tuple[str, str]:
    """The storage session and the id of an uploaded file."""
    reply = ask(server, key, "POST", "/upload", files={"file": (name, data)}, data=fields)
    assert reply.status_code == 200, reply.text
    document = reply.json()
    assert document["message"] == "success"
    assert document["session_id"] == document["storage_session_id"]
    assert document["files"][0]["filename"] == name
    return document["storage_session_id"], document["files"][0]["fileId"]


def test_programs_find_uploads_and_the_files_of_programs_before(server: Server, key: str) -> None:
    """Two uploads and a run of a conversation, then another run by what the first answered; variables do not stay."""
    first, first_id = upload(server, key, "in.csv", b"a,b\n1,2\n", kind="user", id="ada")
    second, second_id = upload(server, key, "more.txt", b"more")
    assert ID.fullmatch(first)
    assert ID.fullmatch(first_id)
    files = [
        {"id": first_id, "name": "in.csv", "storage_session_id": first, "kind": "user", "resource_id": "ada"},
        {"id": second_id, "name": "more.txt", "session_id": second},
    ]
    code = "import os, sys\nprint(open('/mnt/data/in.csv').read() + open('more.txt').read(), sys.argv[1])\nx = 1\n"
    code += "os.makedirs('/mnt/data/plots')\nopen('/mnt/data/plots/a.png', 'wb').write(b'png')"
    ran = run(server, key, code, files=files, args=["arg"])
    assert (ran["stdout"], ran["stderr"]) == ("a,b\n1,2\nmore arg\n", "")
    shown = {each["name"]: each for each in ran["files"]}
    assert shown.keys() == {"plots/a.png", "in.csv", "more.txt"}
    assert [name for name, each in shown.items() if each.get("inherited")] == ["in.csv", "more.txt"]
    picture = shown["plots/a.png"]
    got = ask(server, key, "GET", f"/download/{ran['session_id']}/{picture['id']}?kind=user&id=ada")
    assert got.content == b"png"
    assert ID.fullmatch(picture["id"])

    later = [{"id": each["id"], "name": each["name"], "storage_session_id": each["storage_session_id"]}
             for each in ran["files"]]  # fmt: skip
    again = run(server, key, "print(open('/mnt/data/plots/a.png').read(), 'x' in globals())", files=later)
    assert again["stdout"] == "png False\n"
    assert again["session_id"] == ran["session_id"]
    bash = run(server, key, "ls; echo no >&2; exit 3", "bash", session_id=ran["session_id"])
    assert (bash["stdout"], bash["stderr"]) == ("in.csv\nmore.txt\nplots\n", "no\n")
    assert run(server, key, "exit 3", "bash")["stderr"] == "exit status 3\n"
    listed = ask(server, key, "GET", f"/files/{first}?detail=full").json()
    assert {each["metadata"]["original-filename"] for each in listed} >= {"in.csv"}
    object_ = ask(server, key, "GET", f"/sessions/{second}/objects/{second_id}?kind=user&id=ada").json()
    assert (object_["originalFilename"], object_["size"]) == ("more.txt", 4)
    assert object_["lastModified"].endswith("Z")
    assert ask(server, key, "DELETE", f"/files/{second}/{second_id}").json() == {"message": "success"}
    gone = run(server, key, "print(1)", files=files[1:])
    assert (gone["stdout"], gone["stderr"]) == ("1\n", "more.txt is not stored any more; upload it again\n")


def test_no_program_runs_where_an_agents_files_are_stored(server: Server, key: str) -> None:
    """They are for all its users: what one of them makes of them would be found by the others."""
    reply = ask(
        server, key, "POST", "/upload/batch", data={"kind": "agent", "id": "agent_1"},
        files=[("file", ("a.txt", b"a")), ("file", ("dir/b.txt", b"b"))],
    )  # fmt: skip
    batch = reply.json()
    assert (batch["message"], batch["succeeded"], batch["failed"]) == ("success", 2, 0)
    stored = batch["storage_session_id"]
    files = [{"id": each["fileId"], "name": each["filename"], "storage_session_id": stored} for each in batch["files"]]
    code = "print(open('/mnt/data/dir/b.txt').read()); open('mine', 'w').write('1')"
    ran = run(server, key, code, files=files, session_id=stored)
    assert ran["stdout"] == "b\n"
    assert ran["session_id"] != stored
    names = {each["originalFilename"] for each in ask(server, key, "GET", f"/files/{stored}").json()}
    assert names == {"a.txt", "dir/b.txt"}
    old, old_id = upload(server, key, "o.txt", b"o", entity_id="agent_1")  # as older clients say it
    by_old = run(server, key, "print(1)", files=[{"id": old_id, "name": "o.txt", "session_id": old}])
    assert by_old["session_id"] != old


def test_another_tenant_reaches_no_file_by_its_id(server: Server, key: str) -> None:
    """404 for every verb, a run without the file, and another API's session is no storage session."""
    stored, wanted = upload(server, key, "secret.txt", b"1")
    other = make_key(server, "other")
    for method, path in (
        ("GET", f"/files/{stored}"), ("GET", f"/download/{stored}/{wanted}"),
        ("GET", f"/sessions/{stored}/objects/{wanted}"), ("DELETE", f"/files/{stored}/{wanted}"),
    ):  # fmt: skip
        assert ask(server, other, method, path).status_code == 404, path
    files = [{"id": wanted, "name": "secret.txt", "storage_session_id": stored}]
    ran = run(server, other, "import os; print(os.listdir('/mnt/data'))", files=files, session_id=stored)
    assert "secret.txt" not in ran["stdout"]
    assert ran["session_id"] != stored
    native = server.client.post("/v1/sessions", json={}, headers={"x-api-key": key}).json()["id"]
    assert ask(server, key, "GET", f"/files/{native}").status_code == 404
    assert ask(server, "wk_wrong", "GET", f"/files/{stored}").status_code == 401


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("/exec", {"content": b"1"}, "JSON object"),
        ("/exec", {"json": {"lang": "cpp", "code": "1"}}, "lang: there are py, bash, js"),
        ("/exec", {"json": {"lang": "py", "code": ""}}, "code: expected text"),
        ("/exec", {"content": b'{"lang": "py", "code": "\\ud800"}'}, "surrogate"),
        ("/exec", {"json": {"lang": "py", "code": "1", "args": [1]}}, "args: expected"),
        ("/exec", {"json": {"lang": "py", "code": "1", "files": [1]}}, "files[0]: expected"),
        ("/exec", {"json": {"lang": "py", "code": "1", "session_id": 1}}, "session_id"),
        ("/exec/programmatic", {"json": {"code": "1"}}, "programmatic"),
        ("/upload", {"json": {}}, "multipart"),
        ("/upload", {"files": {"other": ("a", b"1")}}, "file: the form has no such part"),
        ("/upload", {"files": {"file": ("a", b"1")}, "data": {"kind": "nobody"}}, "kind: expected"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(server: Server, key: str, path: str, options: dict[str, Any], said: str) -> None:
    """400 with the field, before a session is made for it."""
    reply = ask(server, key, "POST", path, **options)
    assert reply.status_code == 400, reply.text
    assert said in reply.json()["error"]


def test_names_that_lead_out_of_the_workspace_are_refused(server: Server, key: str) -> None:
    """Of a form's files and of a program's."""
    files = [{"id": "x", "name": "../../etc/passwd", "storage_session_id": "s"}]
    reply = ask(server, key, "POST", "/exec", json={"lang": "py", "code": "1", "files": files})
    assert reply.status_code == 403, reply.text
    assert ask(server, key, "POST", "/upload", files={"file": ("../a", b"1")}).status_code == 403

"""Open Terminal's API over a real gateway: what Open WebUI sends for a chat, keys, tenants, users, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as sync_connect

from gateway.api.open_terminal.socket import MAX_STRANGERS
from tests.support.keyed import make_key, serve_with_keys
from tests.support.serve import Server
from tests.support.waiting import LIMIT_S, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that asks for keys."""
    with serve_with_keys(tmp_path_factory.mktemp("wg")) as served:
        yield served


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    """A member's."""
    return make_key(server, "acme")


class Chat:
    """Requests of Open WebUI's for one chat of one user."""

    def __init__(self, server: Server, key: str, name: str, user: str = "ada") -> None:
        self._client = server.client
        self.headers = {"authorization": f"Bearer {key}", "x-user-id": user, "x-session-id": name}

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._client.request(method, "/open-terminal" + path, headers=self.headers, **options)

    def get(self, target: str, status: int = 200, /, **params: Any) -> Any:
        reply = self.ask("GET", target, params=params)
        assert reply.status_code == status, reply.text
        return reply.json()

    def post(self, target: str, body: Any, status: int = 200, /, **params: Any) -> Any:
        reply = self.ask("POST", target, json=body, params=params)
        assert reply.status_code == status, reply.text
        return reply.json()

    def run(self, command: str, **params: Any) -> Any:
        return self.post("/execute", {"command": command}, **params)


def shown(answer: Any) -> str:
    return "".join(each["data"] for each in answer["output"])


def test_chat_has_a_computer_of_its_own_from_its_first_command_on(server: Server, key: str) -> None:
    """Reading starts none; a command does; another chat, and another user's of that name, see nothing of it."""
    chat = Chat(server, key, "chat-1")
    assert chat.get("/files/cwd") == {
        "cwd": "/workspace", "home": "/workspace", "root": {"path": "/workspace", "label": "Home"},
    }  # fmt: skip
    assert chat.get("/files/read", 404, path="/workspace/AGENTS.md")["detail"] == "File not found"
    assert chat.get("/files/list")["entries"] == []
    assert chat.get("/execute") == []
    mine = {"authorization": f"Bearer {key}"}
    assert server.client.get("/v1/sessions", headers=mine).json()["sessions"] == []

    ran = chat.run("echo one > note; cat note; pwd; echo $HOME")
    assert (ran["status"], ran["exit_code"], ran["cwd"], ran["truncated"]) == ("done", 0, "/workspace", False)
    assert ran["command"] == "echo one > note; cat note; pwd; echo $HOME"
    assert [each["data"] for each in ran["output"]] == ["one\r\n", "/workspace\r\n", "/workspace\r\n"]
    assert chat.run("cat note; exit 3")["exit_code"] == 3  # in the same sandbox
    for other in (Chat(server, key, "chat-2"), Chat(server, key, "chat-1", user="bob")):
        assert other.get("/files/read", 404, path="note")["error"] == "File not found"
        assert "No such file" in shown(other.run("cat note"))
    sessions = server.client.get("/v1/sessions", headers=mine).json()["sessions"]
    assert [each["metadata"]["name"] for each in sessions] == ["Open WebUI chat"] * 3


def test_command_that_takes_long_is_followed_typed_into_and_killed(server: Server, key: str) -> None:
    """As a model does with get_process_status, send_process_input and kill_process."""
    chat = Chat(server, key, "chat-1")
    begun = chat.run("echo ready; read line; echo got $line; sleep 600", wait=0.5)
    assert (begun["status"], begun["exit_code"]) == ("running", None)
    process = f"/execute/{begun['id']}"
    wait_until(lambda: "ready" in shown(chat.get(f"{process}/status", wait=0)), "the command to be ready")
    ready = chat.get(f"{process}/status", wait=0, tail="null")["next_offset"]
    chat.post(f"{process}/input", {"input": r"hello\n"})  # two letters, as models write it
    wait_until(lambda: "got hello" in shown(chat.get(f"{process}/status", wait=0)), "what was typed to be read")
    status = chat.get(f"{process}/status", wait=0, offset=ready, tail=1)
    assert shown(status) == "got hello\r\n"
    assert status["next_offset"] > ready
    assert chat.get(f"{process}/status", wait=0, offset=status["next_offset"])["output"] == []
    assert begun["id"] in [each["id"] for each in chat.get("/execute")]
    assert chat.ask("DELETE", process, params={"force": "true"}).json() == {"status": "killed"}
    ended = chat.get(f"{process}/status", wait=0)
    assert (ended["status"], ended["exit_code"]) == ("killed", -9)
    assert chat.post(f"{process}/input", {"input": "x"}, 409)
    assert Chat(server, key, "chat-2").get(f"{process}/status", 404) == {
        "detail": "Process not found", "error": "Process not found",
    }  # fmt: skip


def test_files_are_written_edited_moved_searched_and_shown(server: Server, key: str) -> None:
    """What a model's tools and Open WebUI's file browser send, in the workspace and outside of it."""
    chat = Chat(server, key, "chat-files")
    assert chat.post("/files/write", {"path": "src/a.py", "content": "x = 1\ny = 2\nx = 1\n"}) == {
        "path": "/workspace/src/a.py", "size": 18,
    }  # fmt: skip
    edit = {"target": "x = 1", "replacement": "x = 3", "start_line": 2}
    chat.post("/files/replace", {"path": "/home/user/src/a.py", "replacements": [edit]})
    assert chat.get("/files/read", path="src/a.py", start_line=2, end_line=3) == {
        "path": "/workspace/src/a.py", "total_lines": 3, "content": "y = 2\nx = 3\n",
    }  # fmt: skip
    twice = {"path": "src/a.py", "replacements": [{"target": "=", "replacement": ":"}]}
    assert "3 occurrences" in chat.post("/files/replace", twice, 400)["detail"]

    upload = chat.ask(
        "POST", "/files/upload", params={"directory": "/workspace/up"}, files={"file": ("p.png", b"\x89PNG")}
    )
    assert upload.json() == {"path": "/workspace/up/p.png", "size": 4}
    picture = chat.ask("GET", "/files/read", params={"path": "up/p.png"})
    assert (picture.content, picture.headers["content-type"]) == (b"\x89PNG", "image/png")
    assert chat.ask("GET", "/files/serve/workspace/up/p.png").content == b"\x89PNG"
    assert chat.get("/files/display", path="up/p.png") == {"path": "/workspace/up/p.png", "exists": True}
    assert not chat.get("/files/display", path="/nowhere")["exists"]
    chat.run("printf '\\377\\376' > data.bin; ln -s src link; echo 'a: b' > 'n:1'")
    assert "Unsupported binary" in chat.get("/files/read", 415, path="data.bin")["detail"]
    kinds = {each["name"]: each["type"] for each in chat.get("/files/list", directory=".")["entries"]}
    assert kinds == {"data.bin": "file", "link": "directory", "n:1": "file", "src": "directory", "up": "directory"}

    assert chat.post("/files/cwd", {"path": "/workspace/src"}) == {"cwd": "/workspace/src"}
    assert shown(chat.run("pwd")) == "/workspace/src\r\n"
    found = chat.get("/files/grep", query=r"x\s=\s\d", path="/home/user")
    assert found["matches"] == [
        {"file": "/home/user/src/a.py", "line": 1, "content": "x = 1"},
        {"file": "/home/user/src/a.py", "line": 3, "content": "x = 3"},
    ]
    assert chat.get("/files/grep", query="X = 1", max_results=1, case_insensitive="true")["truncated"] is False
    assert chat.get("/files/grep", query="a: b", regex="false", path="..")["matches"] == [
        {"file": "/workspace/n:1", "line": 1, "content": "a: b"}
    ]
    assert "Invalid regex" in chat.get("/files/grep", 400, query="(")["detail"]
    assert [each["path"] for each in chat.get("/files/glob", pattern="*.py", path="..")["matches"]] == ["src/a.py"]
    assert [each["path"] for each in chat.get("/files/search", query="A.P", path="/workspace")["results"]] == [
        "/workspace/src/a.py"
    ]
    chat.post("/files/mkdir", {"path": "/tmp/made/deep"})
    assert chat.get("/files/list", directory="/tmp/made")["entries"][0]["name"] == "deep"
    chat.post("/files/move", {"source": "/tmp/made", "destination": "/tmp/moved"})
    assert chat.post("/files/move", {"source": "a.py", "destination": "/workspace/up"}, 409)
    gone = chat.ask("DELETE", "/files/delete", params={"path": "/tmp/moved"}).json()
    assert gone == {"path": "/tmp/moved", "type": "directory"}
    assert chat.get("/files/list", 404, directory="/tmp/moved")["detail"] == "Directory not found"


def test_chat_goes_on_after_its_session_slept_and_begins_anew_after_it_ended(server: Server, key: str) -> None:
    """A hibernated one wakes with its files; one that was deleted is followed by an empty one."""
    chat = Chat(server, key, "chat-lives")
    mine = {"authorization": f"Bearer {key}"}
    before = {each["id"] for each in server.client.get("/v1/sessions", headers=mine).json()["sessions"]}
    chat.post("/files/write", {"path": "kept", "content": "1"})
    after = {each["id"] for each in server.client.get("/v1/sessions", headers=mine).json()["sessions"]}
    (session,) = after - before
    assert server.client.post(f"/v1/sessions/{session}/hibernate", headers=mine).status_code == 200
    assert chat.get("/files/read", path="kept")["content"] == "1"
    assert server.client.delete(f"/v1/sessions/{session}", headers=mine).status_code == 204
    assert chat.get("/files/list")["entries"] == []
    assert "No such file" in shown(chat.run("cat kept"))


def test_another_tenant_and_nobody_are_kept_out(server: Server, key: str) -> None:
    """The same chat and user of another tenant's key are another computer; without a key there is none."""
    chat = Chat(server, key, "chat-1")
    chat.post("/files/write", {"path": "secret", "content": "1"})
    other = Chat(server, make_key(server, "other"), "chat-1")
    assert other.get("/files/read", 404, path="secret")
    assert other.get("/execute") == []
    nobody = Chat(server, "wk_wrong", "chat-1")
    for path in ("/files/cwd", "/execute", "/system"):
        assert nobody.get(path, 401)["detail"]
    assert nobody.get("/health") == {"status": "ok"}
    assert nobody.get("/openapi.json")["info"]["title"] == "Open Terminal"


@pytest.mark.parametrize(
    ("method", "path", "options", "said"),
    [
        ("POST", "/execute", {"content": b"[]"}, "JSON object"),
        ("POST", "/execute", {"json": {"command": 1}}, "command: expected text"),
        ("POST", "/execute", {"json": {"command": "true", "cwd": 1}}, "cwd: expected text"),
        ("POST", "/execute", {"json": {"command": "true", "env": {"A": 1}}}, "env: expected"),
        ("POST", "/execute?wait=1e9", {"json": {"command": "true"}}, "wait: expected seconds from 0 to 300"),
        ("POST", "/execute?wait=nan", {"json": {"command": "true"}}, "wait: expected"),
        ("POST", "/execute?tail=-1", {"json": {"command": "true"}}, "tail: expected a whole number"),
        ("POST", "/execute", {"json": {"command": "true", "cwd": "/no/where"}}, "working_dir"),
        ("GET", "/files/read", {}, "path: missing"),
        ("GET", "/files/read?path=%00", {}, "NUL"),
        ("GET", "/files/read?path=a&start_line=0", {}, "start_line"),
        ("POST", "/files/write", {"json": {"path": "/workspace", "content": ""}}, "home itself"),
        ("POST", "/files/write", {"content": b'{"path": "a", "content": "\\ud800"}'}, "surrogate"),
        ("POST", "/files/upload?directory=x", {"json": {}}, "multipart"),
        ("POST", "/files/replace", {"json": {"path": "note", "replacements": []}}, "replacements: expected a list"),
        ("GET", "/files/glob?pattern=" + "*a" * 17, {}, "16 stars"),
        ("GET", "/files/grep?query=a&max_results=501", {}, "max_results"),
        ("GET", "/files/search?type=socket", {}, "type: expected"),
        ("DELETE", "/execute/00000000?force=maybe", {}, "force: expected true or false"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(
    server: Server, key: str, method: str, path: str, options: dict[str, Any], said: str
) -> None:
    """400 with the field, in the shape that Open WebUI shows."""
    chat = Chat(server, key, "chat-1")
    chat.post("/files/write", {"path": "note", "content": "one"})
    reply = chat.ask(method, path, **options)
    assert reply.status_code == 400, reply.text
    assert said in reply.json()["detail"]
    assert reply.json()["error"] == reply.json()["detail"]


def test_name_of_a_chat_that_is_too_long_is_refused(server: Server, key: str) -> None:
    """Before anything is looked up by it."""
    assert "x-session-id" in Chat(server, key, "c" * 257).get("/files/cwd", 400)["detail"]


@contextmanager
def connect(
    server: Server, terminal: str, first: str, headers: dict[str, str] | None = None
) -> Iterator[ClientConnection]:
    """What Open WebUI does: no key in the handshake, but in the first message."""
    address = server.url.replace("http", "ws") + f"/open-terminal/api/terminals/{terminal}?user_id=ada"
    with sync_connect(address, additional_headers=headers, proxy=None, open_timeout=LIMIT_S) as socket:
        socket.send(first)
        yield socket


def auth(key: str) -> str:
    return json.dumps({"type": "auth", "token": key})


def read_until(socket: ClientConnection, wanted: bytes) -> bytes:
    printed = b""
    while wanted not in printed:
        message = socket.recv(LIMIT_S)
        assert isinstance(message, bytes)
        printed += message
    return printed


def closed(socket: ClientConnection) -> int:
    """The code that a connection is closed with, after whatever was printed."""
    try:
        while True:
            socket.recv(LIMIT_S)
    except ConnectionClosed as end:
        return end.rcvd.code if end.rcvd is not None else 0


def test_users_terminal_is_typed_into_resized_and_ends_with_its_connection(server: Server, key: str) -> None:
    """As the browser's terminal does; a model reads and types into the same one."""
    chat = Chat(server, key, "chat-shell")
    chat.post("/files/cwd", {"path": "/tmp"})
    made = chat.post("/api/terminals", None)["id"]
    assert chat.get("/api/terminals") == []  # its connection starts it
    with connect(server, made, auth(key)) as socket:
        socket.send(b"stty size; pwd\n")
        assert b"24 80\r\n/tmp\r\n" in read_until(socket, b"/tmp\r\n")
        socket.send(json.dumps({"type": "resize", "cols": 100, "rows": 30}))
        for unknown in ("{", "[]", json.dumps({"type": "resize", "cols": 0, "rows": 1e9}), json.dumps({"type": "x"})):
            socket.send(unknown)
        socket.send(b"stty size\n")
        read_until(socket, b"30 100\r\n")
        assert [each["id"] for each in chat.get("/api/terminals")] == [made]
        assert chat.get(f"/api/terminals/{made}")["pid"] > 0
        assert "30 100" in chat.get("/api/terminals/user/output")["output"]
        chat.post("/api/terminals/user/input", {"input": "echo by $((6 * 7))\n"})
        read_until(socket, b"by 42\r\n")
    wait_until(lambda: chat.get("/api/terminals") == [], "the shell to end with its connection")
    assert chat.get("/api/terminals/user/output", 404)["detail"] == "No connected user shell"
    with connect(server, chat.post("/api/terminals", None)["id"], auth(key)) as socket:
        socket.send(b"exit\n")
        assert closed(socket) == 1000


def test_terminal_of_another_user_chat_or_tenant_is_not_there(server: Server, key: str) -> None:
    """A wrong key is 4001, any other terminal than the chat's own 4004, and none of them starts a shell."""
    chat = Chat(server, key, "chat-shell")
    made = chat.post("/api/terminals", None)["id"]
    other = make_key(server, "other")
    mine = {"authorization": f"Bearer {key}"}
    native = server.client.post("/v1/sessions", json={}, headers=mine).json()["id"]
    for terminal, token, headers, code in (
        (made, "wk_wrong", {}, 4001),
        (made, other, {}, 4004),
        (made, key, {"x-user-id": "bob"}, 4004),
        (made, key, {"x-user-id": "ada", "x-session-id": "chat-1"}, 4004),
        (made[:-1] + "/", key, {}, 4004),
        ("nothing.00000000", key, {}, 4004),
        (native + ".00000000", key, {}, 4004),
    ):
        with connect(server, terminal, auth(token), headers) as socket:
            assert closed(socket) == code, (terminal, headers)
    for first in ("hello", "[]", json.dumps({"type": "auth", "token": 1}), json.dumps({"token": key})):
        with connect(server, made, first) as socket:
            assert closed(socket) == 4001
    assert chat.get("/api/terminals") == []
    assert chat.get(f"/api/terminals/{made}", 404)["error"] == "Session not found"


def test_strangers_who_send_no_key_are_few_at_a_time(server: Server, key: str) -> None:
    """Each may hold 16 MiB for ten seconds; once they have left, or said who they are, there is room again."""
    chat = Chat(server, key, "chat-shell")
    made = chat.post("/api/terminals", None)["id"]
    address = server.url.replace("http", "ws") + f"/open-terminal/api/terminals/{made}"
    with ExitStack() as stack:
        for _ in range(MAX_STRANGERS):
            stack.enter_context(sync_connect(address, proxy=None, open_timeout=LIMIT_S))
        with pytest.raises(InvalidStatus) as refused:
            stack.enter_context(sync_connect(address, proxy=None, open_timeout=LIMIT_S))
        assert refused.value.response.status_code == 503
        # Whose handshake has a key is none of them.
        known = {"authorization": f"Bearer {key}", "x-user-id": "ada", "x-session-id": "chat-shell"}
        with connect(server, made, auth(""), known) as socket:
            socket.send(b"exit\n")
            assert closed(socket) == 1000

    def is_open() -> bool:
        with connect(server, made, auth("wk_wrong")) as socket:
            return closed(socket) == 4001

    wait_until(lambda: _without_refusal(is_open), "room for another stranger")


def _without_refusal(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except InvalidStatus:
        return False


SERVER = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        names = sorted(name.lower() for name in self.headers)
        said = json.dumps({"path": self.path, "body": body, "headers": names}).encode()
        self.send_response(201)
        self.send_header("content-length", str(len(said)))
        self.send_header("set-cookie", "a=b")
        for name in ("service-worker-allowed", "clear-site-data", "strict-transport-security", "x-session-id"):
            self.send_header(name, "evil")
        self.send_header("x-own", "1")
        self.end_headers()
        self.wfile.write(said)
    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST
http.server.HTTPServer(("127.0.0.1", 8123), Echo).serve_forever()
"""


def test_servers_of_a_chat_are_listed_and_asked(server: Server, key: str) -> None:
    """Path, query and body as they were sent; no credential and no cookie either way; other chats see none."""
    chat = Chat(server, key, "chat-ports")
    assert chat.get("/ports") == {"ports": []}
    chat.post("/files/write", {"path": "server.py", "content": SERVER})
    chat.run("python3 server.py", wait=0)
    wait_until(lambda: chat.get("/ports")["ports"] != [], "the server to listen")
    assert chat.get("/ports")["ports"] == [{"port": 8123, "pid": None, "process": None}]
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        chat.headers |= {"cookie": "c=d", "x-auth-request-email": "me@example.com", "x-forwarded-access-token": "t"}
        body = {} if method == "GET" else {"content": b"data"}
        reply = chat.ask(method, "/proxy/8123/a%2Fb/c?q=1&q=2", **body)
        assert reply.status_code == 201, reply.text
        assert (reply.json()["path"], reply.json()["body"]) == ("/a%2Fb/c?q=1&q=2", "data" if body else "")
        unseen = {"authorization", "cookie", "x-user-id", "x-session-id"}
        unseen |= {"x-auth-request-email", "x-forwarded-access-token"}
        assert not unseen & set(reply.json()["headers"])
        assert "set-cookie" not in reply.headers
        assert "evil" not in reply.headers.values()
        assert reply.headers["x-own"] == "1"
    assert "8124" in chat.get("/proxy/8124/", 502)["error"]
    assert chat.get("/proxy/0/", 400)["detail"].startswith("port: expected")
    assert chat.get("/proxy/22/", 400)["detail"].startswith("port: expected")
    assert Chat(server, key, "chat-without").get("/proxy/8123/", 404)["detail"] == "Port not found"

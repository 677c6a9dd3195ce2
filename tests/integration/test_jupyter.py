"""Jupyter's protocol over a real gateway: kernels, their channels in both framings, keys, and bad input."""

from __future__ import annotations

import itertools
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from tests.support.keyed import make_key, serve_with_keys
from tests.support.serve import Server

V1 = "v1.kernel.websocket.jupyter.org"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that asks for keys."""
    with serve_with_keys(tmp_path_factory.mktemp("wg")) as served:
        yield served


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    """A member's."""
    return make_key(server, "acme")


@pytest.fixture
def kernel(server: Server, key: str) -> Iterator[str]:
    """A kernel, made as Open WebUI does: no body, the token in the query."""
    reply = server.client.post("/jupyter/api/kernels", params={"token": key})
    assert reply.status_code == 201, reply.text
    made = str(reply.json()["id"])
    yield made
    server.client.delete(f"/jupyter/api/kernels/{made}", params={"token": key})


def address(server: Server, kernel: str, key: str, prefix: str = "/jupyter") -> str:
    return f"{server.url.replace('http', 'ws', 1)}{prefix}/api/kernels/{kernel}/channels?token={key}"


def request(kind: str, **content: Any) -> dict[str, Any]:
    header = {"msg_id": uuid4().hex, "msg_type": kind, "username": "", "session": "s", "date": "", "version": "5.3"}
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}


async def replies(socket: ClientConnection, sent: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Everything about a request until its idle, which has to be the last."""
    await socket.send(orjson.dumps(sent).decode())
    while True:
        got = orjson.loads(await socket.recv())
        assert got["parent_header"]["msg_id"] == sent["header"]["msg_id"]
        yield got
        if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
            return


async def run(socket: ClientConnection, code: str) -> list[tuple[str, Any]]:
    return [
        (each["msg_type"], each["content"]) async for each in replies(socket, request("execute_request", code=code))
    ]


@asynccontextmanager
async def connect(server: Server, kernel: str, key: str) -> AsyncIterator[ClientConnection]:
    async with websockets.connect(address(server, kernel, key)) as socket:
        yield socket


async def test_code_runs_and_keeps_its_variables(server: Server, kernel: str, key: str) -> None:
    """Streams, values, displays and errors in the order that clients wait for; a second connection has the state."""
    async with connect(server, kernel, key) as socket:
        told = await run(socket, "x = 41\nprint('hi')\nx + 1")
        kinds = [kind for kind, _ in told]
        assert kinds[:2] == ["status", "execute_input"]
        assert kinds[-2:] == ["execute_reply", "status"]
        assert dict(told)["stream"] == {"name": "stdout", "text": "hi\n"}
        assert dict(told)["execute_result"]["data"]["text/plain"] == "42"
        assert dict(told)["execute_reply"]["status"] == "ok"
        failed = dict(await run(socket, "1/0"))
        assert failed["error"]["ename"] == failed["execute_reply"]["ename"] == "ZeroDivisionError"
        assert isinstance(failed["error"]["traceback"], list)
        shown = dict(await run(socket, "import matplotlib.pyplot as p; p.plot([1]); p.show()"))
        assert "image/png" in shown["display_data"]["data"]
        info = [each["msg_type"] async for each in replies(socket, request("kernel_info_request"))]
        assert info == ["status", "kernel_info_reply", "status"]
    async with connect(server, kernel, key) as socket:
        assert dict(await run(socket, "x"))["execute_result"]["data"]["text/plain"] == "41"
    headers = {"authorization": f"token {key}"}
    assert server.client.post(f"/v1/sessions/{kernel}/hibernate", headers=headers).status_code == 200
    restarted = server.client.post(f"/jupyter/api/kernels/{kernel}/restart", headers=headers)
    assert restarted.json()["id"] == kernel
    async with connect(server, kernel, key) as socket:
        assert dict(await run(socket, "x"))["error"]["ename"] == "NameError"


DEEP = "d = []\nfor _ in range(300): d = [d]\n"


@pytest.mark.parametrize(
    "code",
    [
        "display({'application/json': d, 'text/plain': 'x'}, raw=True)",
        "display({'application/json': 10**400, 'text/plain': 'x'}, raw=True)",
        "from comm import create_comm; create_comm(target_name='x', data={'d': d}); display(1)",
    ],
    ids=["result", "number", "comm"],
)
async def test_value_that_json_hardly_takes_ends_no_connection(
    server: Server, kernel: str, key: str, code: str
) -> None:
    """Nested or large beyond what readers of JSON take: it is left out, and the client hears of the run's end."""
    async with connect(server, kernel, key) as socket:
        told = dict(await run(socket, DEEP + code))
        assert told["execute_reply"]["status"] == "ok"
        assert told["display_data"]["data"]["text/plain"] in ("x", "1")
        assert dict(await run(socket, "6 * 7"))["execute_result"]["data"]["text/plain"] == "42"


async def test_message_of_a_client_that_is_nested_deeply_is_refused(server: Server, kernel: str, key: str) -> None:
    """It would have to be repeated in each answer to it."""
    async with connect(server, kernel, key) as socket:
        sent = request("execute_request", code="1")
        text = orjson.dumps({**sent, "header": {**sent["header"], "x": 0}}).decode()
        await socket.send(text.replace('"x":0', '"x":' + "[" * 300 + "]" * 300))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, "nested" in closed.value.rcvd.reason) == (1003, True)


async def test_binary_framing_is_spoken_where_it_is_offered(server: Server, kernel: str, key: str) -> None:
    """v1.kernel.websocket.jupyter.org: offsets and parts."""
    async with websockets.connect(address(server, kernel, key), subprotocols=[websockets.Subprotocol(V1)]) as socket:
        assert socket.subprotocol == V1
        sent = request("execute_request", code="'v1'")
        parts = [b"shell", *(orjson.dumps(sent[name]) for name in ("header", "parent_header", "metadata", "content"))]
        offsets = [8 * 7]
        for part in parts:
            offsets.append(offsets[-1] + len(part))
        await socket.send(struct.pack("<7Q", 6, *offsets) + b"".join(parts))
        results = []
        while True:
            frame = await socket.recv()
            assert isinstance(frame, bytes)
            (count,) = struct.unpack_from("<Q", frame)
            ends = struct.unpack_from(f"<{count}Q", frame, 8)
            _, header, _, _, content = (frame[a:b] for a, b in itertools.pairwise(ends))
            results.append((orjson.loads(header)["msg_type"], orjson.loads(content)))
            if results[-1] == ("status", {"execution_state": "idle"}):
                break
        assert dict(results)["execute_result"]["data"]["text/plain"] == "'v1'"


MIRROR = """
from comm import create_comm, get_comm_manager
def opened(comm, message):
    comm.on_msg(lambda m: (print('said', m['content']['data']), comm.send({'back': m['content']['data']},
                           buffers=[bytes(reversed(bytes(b))) for b in m['buffers']])))
    comm.send({'hello': message['content']['data']})
get_comm_manager().register_target('mirror', opened)
"""


async def test_comms_of_both_sides_carry_messages(server: Server, kernel: str, key: str) -> None:
    """A widget's way: the kernel opens one, a front end another; what handlers print and send comes; numbers stay."""
    async with connect(server, kernel, key) as socket:
        assert dict(await run(socket, MIRROR))["execute_reply"]["status"] == "ok"
        told = dict(
            await run(socket, "mine = create_comm(target_name='w', data={'value': 1}); mine.send({'value': 2})")
        )
        comm = told["comm_open"]["comm_id"]
        assert told["comm_open"]["target_name"] == "w"
        assert told["comm_open"]["data"] == {"value": 1}
        assert told["comm_msg"] == {"comm_id": comm, "data": {"value": 2}}
        await run(socket, "mine.on_msg(lambda m: globals().update(got=m['content']['data']['value']))")
        changed = [
            each["msg_type"] async for each in replies(socket, request("comm_msg", comm_id=comm, data={"value": 7}))
        ]
        assert changed == ["status", "status"]
        assert dict(await run(socket, "got"))["execute_result"] == {
            "data": {"text/plain": "7"}, "metadata": {}, "execution_count": 4,
        }  # fmt: skip

        opening = request("comm_open", comm_id="theirs", target_name="mirror", data={"a": "?'\\n%magic"})
        answers = [each async for each in replies(socket, opening)]
        assert [each["content"]["data"] for each in answers if each["msg_type"] == "comm_msg"] == [
            {"hello": {"a": "?'\\n%magic"}}
        ]
        said = [each async for each in replies(socket, request("comm_msg", comm_id="theirs", data={"b": 1}))]
        assert [each["content"]["text"] for each in said if each["msg_type"] == "stream"] == ["said {'b': 1}\n"]
        assert [each["content"]["data"] for each in said if each["msg_type"] == "comm_msg"] == [{"back": {"b": 1}}]
        listed = {each["msg_type"]: each["content"] async for each in replies(socket, request("comm_info_request"))}
        assert listed["comm_info_reply"]["comms"] == {comm: {"target_name": "w"}, "theirs": {"target_name": "mirror"}}
        async for _ in replies(socket, request("comm_close", comm_id="theirs")):
            pass
        only = request("comm_info_request", target_name="mirror")
        assert [each["content"]["comms"] async for each in replies(socket, only) if "reply" in each["msg_type"]] == [{}]
        for wrong in ({"comm_id": 1}, {"comm_id": "x" * 257}, {"comm_id": "theirs", "data": []}, {}):
            refused = [each async for each in replies(socket, request("comm_msg", **wrong))]
            assert [each["content"]["ename"] for each in refused if each["msg_type"] == "error"] == ["CommError"]


async def test_raw_data_of_comms_goes_both_ways_in_the_binary_framing(server: Server, kernel: str, key: str) -> None:
    """As pictures of widgets do."""
    async with connect(server, kernel, key) as socket:
        await run(socket, MIRROR)
        async for _ in replies(socket, request("comm_open", comm_id="raw", target_name="mirror", data={})):
            pass
    async with websockets.connect(address(server, kernel, key), subprotocols=[websockets.Subprotocol(V1)]) as socket:
        await socket.send(binary(request("comm_msg", comm_id="raw", data={}), b"abc", b""))
        back: list[bytes] = []
        while not back:
            frame = await socket.recv()
            assert isinstance(frame, bytes)
            *named, content, first, second = (
                parts_of(frame) if len(parts_of(frame)) == 7 else [*parts_of(frame), b"", b""]
            )
            if orjson.loads(named[1])["msg_type"] == "comm_msg":
                assert orjson.loads(content) == {"comm_id": "raw", "data": {"back": {}}}
                back = [first, second]
        assert back == [b"cba", b""]


def binary(sent: dict[str, Any], *buffers: bytes) -> bytes:
    parts = [
        b"shell",
        *(orjson.dumps(sent[name]) for name in ("header", "parent_header", "metadata", "content")),
        *buffers,
    ]
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


def parts_of(frame: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<Q", frame)
    return [frame[a:b] for a, b in itertools.pairwise(struct.unpack_from(f"<{count}Q", frame, 8))]


async def test_interrupt_ends_the_code_that_runs(server: Server, kernel: str, key: str) -> None:
    """Over HTTP, and over the control channel."""
    async with connect(server, kernel, key) as socket:
        for over_http in (True, False):
            sent = request("execute_request", code="print('on', flush=True)\nimport time\ntime.sleep(1000)")
            kinds = {}
            async for each in _until_interrupted(server, socket, sent, kernel, key, over_http=over_http):
                kinds[each["msg_type"]] = each["content"]
            assert kinds["execute_reply"]["ename"] == "KeyboardInterrupt"


async def _until_interrupted(
    server: Server, socket: ClientConnection, sent: dict[str, Any], kernel: str, key: str, *, over_http: bool
) -> AsyncIterator[dict[str, Any]]:
    await socket.send(orjson.dumps(sent).decode())
    while True:
        got = orjson.loads(await socket.recv())
        if got["msg_type"] == "interrupt_reply":
            continue
        yield got
        if got["msg_type"] == "stream" and over_http:
            async with httpx.AsyncClient(timeout=30) as http:
                url = f"{server.url}/jupyter/api/kernels/{kernel}/interrupt"
                assert (await http.post(url, params={"token": key})).status_code == 204
        elif got["msg_type"] == "stream":
            await socket.send(orjson.dumps({**request("interrupt_request"), "channel": "control"}).decode())
        if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
            return


def test_kernels_and_notebooks_are_listed_and_ended(server: Server, key: str) -> None:
    """At the prefix and, for clients that know a host alone, at the root."""
    http = httpx.Client(base_url=server.url, headers={"authorization": f"token {key}"}, timeout=30)
    with http:
        assert "python3" in http.get("/jupyter/api/kernelspecs").json()["kernelspecs"]
        assert "python3" in http.get("/api/kernelspecs").json()["kernelspecs"]
        made = http.post("/api/kernels", json={"name": "python3"})
        assert made.status_code == 201
        kernel = made.json()["id"]
        assert kernel in [each["id"] for each in http.get("/api/kernels").json()]
        assert http.get(f"/api/kernels/{kernel}").json()["name"] == "python3"
        assert http.delete(f"/api/kernels/{kernel}").status_code == 204
        gone = http.get(f"/jupyter/api/kernels/{kernel}")
        assert (gone.status_code, gone.json()["message"]) == (404, f"Kernel does not exist: {kernel}")
        body = {"path": "a.ipynb", "name": "a", "type": "notebook", "kernel": {"name": "python3"}}
        notebook = http.post("/jupyter/api/sessions", json=body).json()
        assert (notebook["path"], notebook["kernel"]["id"]) == ("a.ipynb", notebook["id"])
        assert http.delete(f"/jupyter/api/sessions/{notebook['id']}").status_code == 204
        assert http.post("/jupyter/api/kernels", json={"name": "julia"}).status_code == 400
        assert http.post("/jupyter/api/kernels", content=b"{").status_code == 400
        assert http.post("/jupyter/api/kernels", content=b"[1]").status_code == 400


async def test_others_kernels_are_not_found(server: Server, kernel: str, key: str) -> None:
    """404 for another tenant, 401 without a key, on every path; a key in the query of other paths stays refused."""
    other = make_key(server, "other")
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/restart"), ("POST", "/interrupt")):
        url = f"/jupyter/api/kernels/{kernel}{rest}"
        assert server.client.request(method, url, params={"token": other}).status_code == 404
        assert server.client.request(method, url).status_code == 401
    for sent, status in ((other, 404), ("wk_wrong", 401)):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(address(server, kernel, sent))
        assert refused.value.response.status_code == status
    assert server.client.get("/v1/sessions", params={"token": key}).status_code == 400


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"header": {}, "content": {}}',
        '{"header": {"msg_id": 1, "msg_type": "x"}, "content": {}}',
        b"",
    ],
)
async def test_frames_that_are_no_messages_close_the_connection(
    server: Server, kernel: str, key: str, frame: str | bytes
) -> None:
    """With a reason; the kernel lives on."""
    async with connect(server, kernel, key) as socket:
        await socket.send(frame)
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1003
    async with connect(server, kernel, key) as socket:
        assert dict(await run(socket, "'alive'"))["execute_reply"]["status"] == "ok"


@pytest.mark.parametrize("count", [0, 5, 65, 2**63, 6])
async def test_offsets_that_lie_close_the_connection(server: Server, kernel: str, key: str, count: int) -> None:
    """Counts and offsets beyond the frame, or backwards."""
    async with websockets.connect(address(server, kernel, key), subprotocols=[websockets.Subprotocol(V1)]) as socket:
        await socket.send(struct.pack("<7Q", count, 56, 10, 2**62, 56, 56, 56))
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1003


@pytest.fixture(scope="module")
def files(server: Server, key: str) -> Iterator[tuple[httpx.Client, str]]:
    """A client of the contents API, and the kernel whose files it sees."""
    with httpx.Client(base_url=server.url, headers={"authorization": f"token {key}"}, timeout=60) as http:
        kernel = http.post("/jupyter/api/kernels").json()["id"]
        yield http, kernel
        http.delete(f"/jupyter/api/kernels/{kernel}")


def test_files_are_saved_listed_renamed_and_deleted(files: tuple[httpx.Client, str]) -> None:
    """What a notebook's front end asks: models with content, untitled files, copies, checkpoints."""
    http, kernel = files
    root = f"/jupyter/api/contents/{kernel}"
    assert kernel in [each["name"] for each in http.get("/jupyter/api/contents").json()["content"]]
    notebook = {"cells": [{"source": "1"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    saved = http.put(f"{root}/d/a.ipynb", json={"type": "notebook", "format": "json", "content": notebook})
    assert (saved.status_code, saved.json()["path"], saved.json()["content"]) == (201, f"{kernel}/d/a.ipynb", None)
    again = http.put(f"{root}/d/a.ipynb", json={"type": "notebook", "format": "json", "content": notebook})
    assert again.status_code == 200
    got = http.get(f"{root}/d/a.ipynb").json()
    assert (got["type"], got["format"], got["content"]) == ("notebook", "json", notebook)
    assert http.get(f"{root}/d/a.ipynb", params={"type": "file"}).json()["format"] == "text"
    assert http.get(f"{root}/d/a.ipynb", params={"content": "0"}).json()["content"] is None

    http.put(f"{root}/b.bin", json={"type": "file", "format": "base64", "content": "/wA="})
    assert http.get(f"{root}/b.bin").json()["content"] == "/wA="
    http.put(f"{root}/é.txt", json={"type": "file", "format": "text", "content": "ü"})
    assert http.get(f"{root}/é.txt").json() | {"created": 0, "last_modified": 0} == {
        "name": "é.txt", "path": f"{kernel}/é.txt", "type": "file", "size": 2, "writable": True,
        "mimetype": "text/plain", "format": "text", "content": "ü", "created": 0, "last_modified": 0,
    }  # fmt: skip
    assert http.put(f"{root}/e", json={"type": "directory"}).status_code == 201
    listed = {each["name"]: each["type"] for each in http.get(root).json()["content"]}
    assert listed == {"b.bin": "file", "d": "directory", "e": "directory", "é.txt": "file"}

    made = [http.post(f"{root}/e", json={"type": "notebook"}).json()["name"] for _ in range(2)]
    assert made == ["Untitled.ipynb", "Untitled1.ipynb"]
    copy = http.post(root, json={"copy_from": f"{kernel}/d/a.ipynb"})
    assert (copy.status_code, copy.json()["name"]) == (201, "a-Copy1.ipynb")
    assert http.patch(f"{root}/a-Copy1.ipynb", json={"path": f"{kernel}/e/c.ipynb"}).json()["name"] == "c.ipynb"

    assert http.get(f"{root}/d/a.ipynb/checkpoints").json() == []
    assert http.post(f"{root}/d/a.ipynb/checkpoints").json()["id"] == "checkpoint"
    http.put(f"{root}/d/a.ipynb", json={"type": "notebook", "content": {"cells": []}})
    assert len(http.get(f"{root}/d/a.ipynb/checkpoints").json()) == 1
    assert http.post(f"{root}/d/a.ipynb/checkpoints/checkpoint").status_code == 204
    assert http.get(f"{root}/d/a.ipynb").json()["content"] == notebook
    assert [each["name"] for each in http.get(f"{root}/d").json()["content"]] == ["a.ipynb"]
    assert http.delete(f"{root}/d/a.ipynb/checkpoints/checkpoint").status_code == 204
    for name in ("d", "e", "b.bin", "é.txt"):
        assert http.delete(f"{root}/{name}").status_code == 204
    assert http.get(root).json()["content"] == []

    body = {"path": f"{kernel}/a.ipynb", "name": "a", "type": "notebook", "kernel": {"name": "python3"}}
    assert http.post("/jupyter/api/sessions", json=body).json()["kernel"]["id"] == kernel


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "none.txt", None, 404),
        ("GET", "%2e%2e/%2e%2e/etc/passwd", None, 403),
        ("GET", "?type=notebook", None, 400),
        ("PUT", "a", b"[]", 400),
        ("PUT", "a", b'{"type":"file","content":1}', 400),
        ("PUT", "a", b'{"type":"file","format":"base64","content":"%"}', 400),
        ("PUT", "a", b'{"type":"file","content":"x","chunk":1}', 400),
        ("PUT", "a.ipynb", b'{"type":"notebook","content":%b1%b}' % (b'{"a":' * 500, b"}" * 500), 400),
        ("PUT", "a.ipynb", b'{"type":"notebook","content":{"a":[%b[]]}}' % (b"[]," * 300_000), 400),
        ("POST", "", b'{"type":"socket"}', 400),
        ("POST", "", b'{"type":"file","ext":"/../x"}', 400),
        ("POST", "", b'{"copy_from":"other/a"}', 400),
        ("PATCH", "a", b'{"path":"other/a"}', 400),
        ("DELETE", "none", None, 404),
        ("POST", "a/checkpoints/other", b"{}", 404),
    ],
)
def test_bad_requests_for_files_say_what_is_wrong(
    files: tuple[httpx.Client, str], method: str, path: str, body: bytes | None, status: int
) -> None:
    """In Jupyter's shape; what is nested deeper than can be written, and more values than are read, too."""
    http, kernel = files
    separator = "" if path.startswith("?") or not path else "/"
    reply = http.request(method, f"/jupyter/api/contents/{kernel}{separator}{path}", content=body)
    assert (reply.status_code, set(reply.json())) == (status, {"message", "reason"}), reply.text[:300]


def test_a_notebook_of_hostile_code_is_refused(files: tuple[httpx.Client, str], server: Server, key: str) -> None:
    """Nested deeper than JSON is written here: a 400, not a traceback."""
    http, kernel = files
    script = "import pathlib; pathlib.Path('deep.ipynb').write_text('{\"a\":' * 600 + '1' + '}' * 600)"
    http.post(
        "/api/execute", json={"command": ["python3", "-c", script]}, headers={"x-session-id": kernel}
    ).raise_for_status()
    for text in ("{", "[]"):
        http.put(f"/jupyter/api/contents/{kernel}/bad.ipynb", json={"type": "file", "content": text})
        assert http.get(f"/jupyter/api/contents/{kernel}/bad.ipynb").status_code == 400
    assert http.get(f"/jupyter/api/contents/{kernel}/deep.ipynb").status_code == 400


def test_another_tenant_sees_no_files(files: tuple[httpx.Client, str], server: Server) -> None:
    """Neither in the root nor by the kernel's id."""
    http, kernel = files
    http.put(f"/jupyter/api/contents/{kernel}/mine.txt", json={"type": "file", "content": "secret"})
    other = {"authorization": f"token {make_key(server, 'other')}"}
    with httpx.Client(base_url=server.url, headers=other, timeout=60) as stranger:
        assert kernel not in stranger.get("/jupyter/api/contents").text
        assert stranger.get(f"/jupyter/api/contents/{kernel}/mine.txt").status_code == 404

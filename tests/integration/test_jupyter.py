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

from tests.support.serve import Server, serve

ADMIN = "a" * 40
V1 = "v1.kernel.websocket.jupyter.org"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with an admin key from a file."""
    folder = tmp_path_factory.mktemp("wg")
    (folder / "admin").write_text(ADMIN)
    with serve(folder / "state", "--admin-key-file", str(folder / "admin")) as served:
        yield served


def make_key(server: Server, tenant: str) -> str:
    reply = server.client.post(
        "/v1/keys", json={"role": "member", "tenant": tenant}, headers={"authorization": f"Bearer {ADMIN}"}
    )
    return str(reply.json()["key"])


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

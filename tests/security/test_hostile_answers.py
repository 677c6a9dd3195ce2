"""What a sandbox sends in picod's place to the clients of other products: their calls end, and others are answered."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import httpx
import orjson
import pytest
import websockets

from tests.support.scripted import Call, OpenScripted, Served, slots_free
from tests.support.waiting import LIMIT_S, eventually

ON_UVLOOP = True
MB = 1 << 20
LEAVES_S = 0.1
ENOUGH = 4 * MB  # after which a client of these leaves what does not end
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
OTHER = "/of/another/session"
DEEP = "deep"
Door = Callable[[Served, str], Coroutine[Any, Any, None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(name: str, data: object) -> bytes:
    # What orjson reads and does not write: so many levels can be made by a text only.
    text = orjson.dumps(data).replace(b'"deep"', b"[" * 300 + b"]" * 300)
    return chunk(b"event: %b\ndata: %b\n\n" % (name.encode(), text))


STARTED = event("start", {"pid": 7, "id": "p1", "run_id": "r1", "context_id": "default"}) + event("ready", {})
EXIT = event("exit", {"exit_code": 0}) + chunk(b"")
# Bytes that are sent once, and bytes that are sent until the gateway ends the connection.
ANSWERS: dict[str, tuple[bytes, bytes]] = {
    "lines-in-one-event": (CHUNKED + STARTED, chunk(b"a\n" * 32768)),
    "deep-result": (CHUNKED + STARTED + event("result", {"data": {"application/json": DEEP}}) + EXIT, b""),
    "deep-error": (CHUNKED + STARTED + event("error", {"name": "E", "traceback": DEEP}) + EXIT, b""),
    "deep-comm": (
        CHUNKED
        + STARTED
        + event("comm", {"type": "comm_msg", "content": {"comm_id": "c", "data": DEEP}, "buffers": []})
        + EXIT,
        b"",
    ),
    "values-of-other-types": (
        CHUNKED + event("start", {"pid": "x", "id": []}) + event("change", {"type": [], "path": 5}) + EXIT,
        b"",
    ),
    "strings-for-numbers": (CHUNKED + STARTED + event("exit", {"exit_code": "0", "timed_out": [], "signal": 5}), b""),
    "endless-changes": (CHUNKED + STARTED, event("change", {"type": "created", "path": "x"}) * 1000),
    "endless-output": (CHUNKED + STARTED, event("stdout", {"text": "x" * 4096, "data": "eHh4"}) * 16),
    "endless-comms": (
        CHUNKED + STARTED,
        event("comm", {"type": "comm_msg", "content": {"comm_id": "c"}, "buffers": ["eHh4"]}) * 200,
    ),
    "no-content-with-a-body": (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello", b""),
    "field-of-a-megabyte": (b"HTTP/1.1 200 OK\r\nx: " + b"x" * MB + b"\r\ncontent-length: 0\r\n\r\n", b""),
    "endless-trailers": (CHUNKED + STARTED + b"0\r\n", b"x: y\r\n" * 1000),
    "lists": (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" + b"[]," * (2 * MB), b"[]," * 20_000),
    "entries-of-other-types": (b'HTTP/1.1 200 OK\r\ncontent-length: 26\r\n\r\n{"entries": 5, "next": []}', b""),
}


async def stream(gateway: Served, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
    """Read an answer to its end, or until it is long."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S, trust_env=False) as client:
        received = 0
        # What was begun may be cut; it may not hang.
        with suppress(httpx.RemoteProtocolError, httpx.ReadError):
            async with client.stream(method, path, headers=headers, content=body) as reply:
                assert reply.status_code != 500, await reply.aread()
                async for data in reply.aiter_raw():
                    received += len(data)
                    if received > ENOUGH:
                        return


def connect_call(method: str, message: object, *, streams: bool = False) -> Door:
    """A call of E2B's envd."""

    async def door(gateway: Served, session: str) -> None:
        data = orjson.dumps(message)
        body = struct.pack(">BI", 0, len(data)) + data if streams else data
        kind = "application/connect+json" if streams else "application/json"
        headers = {"e2b-sandbox-id": session, "e2b-sandbox-port": "49983", "content-type": kind}
        await stream(gateway, "POST", method, headers, body)

    return door


def plain_call(method: str, path: str, document: object, **headers: str) -> Door:
    """A call of HTTP; `{}` in the path is the session, in a header's value too."""

    async def door(gateway: Served, session: str) -> None:
        fields = {name.replace("_", "-"): value.replace("{}", session) for name, value in headers.items()}
        await stream(gateway, method, path.replace("{}", session), fields, orjson.dumps(document))

    return door


async def jupyter(gateway: Served, session: str) -> None:
    """A run over a kernel's channels: it is told that the run is over, or the connection is closed."""
    header = {"msg_id": "a", "msg_type": "execute_request"}
    sent = {"header": header, "parent_header": {}, "metadata": {}, "content": {"code": "1"}, "channel": "shell"}
    url = f"{gateway.url.replace('http', 'ws', 1)}/jupyter/api/kernels/{session}/channels"
    async with websockets.connect(url, max_size=None, close_timeout=0.1) as socket:
        await socket.send(orjson.dumps(sent).decode())
        received = 0
        try:
            while received < ENOUGH:
                message = await socket.recv()
                received += len(message)
                told = orjson.loads(message)
                if told["msg_type"] == "status" and told["content"]["execution_state"] == "idle":
                    return
        except websockets.ConnectionClosed:
            pass
        finally:
            socket.transport.abort()  # with frames that nobody reads a close in order may not come to its end


DOORS: dict[str, Door] = {
    "e2b-execute": plain_call("POST", "/execute", {"code": "1"}, e2b_sandbox_id="{}", e2b_sandbox_port="49999"),
    "e2b-contexts": plain_call("GET", "/contexts", None, e2b_sandbox_id="{}", e2b_sandbox_port="49999"),
    "e2b-start": connect_call("/process.Process/Start", {"process": {"cmd": "x"}}, streams=True),
    "e2b-watch": connect_call("/filesystem.Filesystem/WatchDir", {"path": "/home/user"}, streams=True),
    "e2b-watcher": connect_call("/filesystem.Filesystem/CreateWatcher", {"path": "/home/user"}),
    "e2b-list": connect_call("/filesystem.Filesystem/ListDir", {"path": "/home/user", "depth": 5}),
    "e2b-processes": connect_call("/process.Process/List", {}),
    "jupyter": jupyter,
    "jupyter-contents": plain_call("GET", "/jupyter/api/contents/{}", None),
    "jupyter-file": plain_call("GET", "/jupyter/api/contents/{}/a.ipynb", None),
    "containers": plain_call("GET", "/v1/containers/{}/files", None),
    "metrics": plain_call("GET", "/v1/sessions/{}/metrics", None),
    "run": plain_call("POST", "/v1/run", {"code": "1", "results": True}),
    "dify": plain_call("POST", "/v1/sandbox/run", {"code": "1", "language": "python3"}),
    "librechat": plain_call("POST", "/librechat/exec", {"code": "1", "lang": "py"}),
    "terminal-execute": plain_call("POST", "/open-terminal/execute?wait=1", {"command": "x"}, x_session_id="c"),
    "terminal-grep": plain_call("GET", "/open-terminal/files/grep?query=x&path=/", None, x_session_id="c"),
}


async def test_interrupts_that_nobody_answers_are_bounded(open_gateway: OpenScripted) -> None:
    """They wait in a short line, where a sandbox takes them slowly; then the connection is closed."""
    asked = 0

    async def script(call: Call) -> None:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()

    gateway, _ = await open_gateway(script)
    session = await gateway.session()
    header = {"msg_id": "a", "msg_type": "interrupt_request"}
    sent = orjson.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": {}, "channel": "control"})
    url = f"{gateway.url.replace('http', 'ws', 1)}/jupyter/api/kernels/{session}/channels"
    async with websockets.connect(url) as socket:
        with suppress(websockets.ConnectionClosed):
            for _ in range(200):
                await socket.send(sent.decode())
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    assert asked <= 1


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
async def test_hostile_answer_ends_the_call_and_harms_no_other(open_gateway: OpenScripted, door: Door) -> None:
    """Whatever picod's place sends: no error of ours, nothing that hangs, and another session is answered meanwhile."""
    answer = (b"", b"")

    async def script(call: Call) -> None:
        if call.request.path == OTHER:
            await call.body()
            await call.reply(b"well")
            return
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await call.body()
            first, forever = answer
            call.writer.write(first)
            while forever:
                call.writer.write(forever)
                await call.writer.drain()
        call.writer.close()

    gateway, _ = await open_gateway(script)
    hostile, other = await gateway.session(), await gateway.session()
    for name, sent in ANSWERS.items():
        answer = sent
        endless = bool(sent[1])
        attack = asyncio.create_task(door(gateway, hostile), name=name)
        client = await gateway.connect()
        try:
            async with asyncio.timeout(LEAVES_S if endless else LIMIT_S):
                while not attack.done():
                    said = await client.ask(f"GET {OTHER} HTTP/1.1\nhost: h\nx-session-id: {other}")
                    assert (said.status, said.body) == (200, b"well")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            assert endless, f"{name} hangs"
            attack.cancel()  # a client that has had enough; what is endless may come for as long as one reads
        finally:
            await client.close()
        with suppress(asyncio.CancelledError):
            await attack
    # A watcher that is polled goes on without its client, for as long as its directory's changes come.
    if door is not DOORS["e2b-watcher"]:
        await eventually(lambda: slots_free(gateway), "the hostile session's slots are given back")

"""Invocations of an agent that is an ASGI application, as AgentScope's AgentApp is one: through a real gateway."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.serve import Server, serve

pytestmark = pytest.mark.processes

# The endpoints of AgentScope's sample of a deployment, on the packages that AgentApp is made of: /process, which
# streams, and five of its own. What was said is remembered in memory, so a turn shows whether it is the same process.
PROGRAM = """
import asyncio, json, uuid
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

said, tasks, running = {}, {}, {"now": 0, "most": 0}

async def events(body):
    turns = said.setdefault(body["session_id"], [])
    turns.append(body["input"][0]["content"][0]["text"])
    for turn in list(turns):
        yield "data: " + json.dumps({"object": "content", "text": turn}) + "\\n\\n"
        await asyncio.sleep(0)
    yield "data: " + json.dumps({"object": "response", "status": "completed", "turns": len(turns)}) + "\\n\\n"

async def process(request):
    return StreamingResponse(events(await request.json()), media_type="text/event-stream")

async def sync(request):
    running["now"] += 1
    running["most"] = max(running["most"], running["now"])
    await asyncio.sleep(0.05)
    running["now"] -= 1
    body = await request.body()
    return JSONResponse({"bytes": len(body), "turns": said, "most": running["most"]})

def stream(request):
    async def numbers():
        for n in range(3):
            yield f"data: {n}\\n\\n"
    return StreamingResponse(numbers(), media_type="text/event-stream")

async def submit(request):
    body = await request.json()
    tasks[task := uuid.uuid4().hex] = {"status": "finished", "result": body["n"] + 1}
    return JSONResponse({"task_id": task, "status": "submitted"})

def result(request):
    return JSONResponse(tasks[request.path_params["task"]])

async def talk(ws):
    await ws.accept(subprotocol="chat")
    while (text := await ws.receive_text()) != "bye":
        await ws.send_text(text.upper())
    await ws.close(4000, "bye")

uvicorn.run(Starlette(routes=[
    Route("/health", lambda request: PlainTextResponse("ok")),
    Route("/process", process, methods=["POST"]),
    Route("/sync", sync, methods=["POST"]), Route("/async", sync, methods=["POST"]),
    Route("/stream_async", stream, methods=["POST"]), Route("/stream_sync", stream, methods=["POST"]),
    Route("/task", submit, methods=["POST"]), Route("/task/{task}", result),
    WebSocketRoute("/talk", talk),
]), host="127.0.0.1", port=8080, log_level="warning")
"""
INVOCATIONS = "/v1/namespaces/default/agent-runtimes/app/invocations"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway with the agent, on the packages of the tests' own Python."""
    with serve(tmp_path_factory.mktemp("invocation") / "state", "--sandbox-python", sys.prefix) as one:
        container = {
            "name": "agent", "image": "x", "command": ["python3", "-c", PROGRAM],
            "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 1},
        }  # fmt: skip
        spec = {
            "targetPort": [{"port": 8080, "protocol": "HTTP"}],
            "podTemplate": {"spec": {"containers": [container]}},
            "wakegate": {"invocation": {"session": "session_id", "requestsPerSession": 4}},
        }
        made = one.client.post("/v1/agents", json={"name": "app", "spec": spec})
        assert made.status_code == 201, made.text
        yield one


def message(text: str, conversation: Any) -> dict[str, Any]:
    """As AgentScope's clients send one."""
    return {"input": [{"role": "user", "content": [{"type": "text", "text": text}]}], "session_id": conversation}


def process(server: Server, body: Any, **more: Any) -> tuple[str, list[dict[str, Any]]]:
    """The session that answered, and the events of its answer."""
    with server.client.stream("POST", f"{INVOCATIONS}/process", json=body, **more) as answer:
        lines = list(answer.iter_lines())
        assert answer.status_code == 200, lines
        assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.headers["x-session-id"], [json.loads(line[6:]) for line in lines if line]


def test_three_turns_of_a_conversation_that_the_body_names_are_one_session(server: Server) -> None:
    """Another conversation has another; a session header comes first; a task of the conversation joins it."""
    turns = [process(server, message(text, "ada")) for text in ("one", "two", "three")]
    ada = turns[0][0]
    assert [session for session, _ in turns] == [ada] * 3
    assert [event.get("text") for event in turns[2][1]] == ["one", "two", "three", None]
    assert turns[2][1][-1] == {"object": "response", "status": "completed", "turns": 3}
    bob, events = process(server, message("one", 7))
    assert (bob != ada, events[-1]["turns"]) == (True, 1)
    assert process(server, message("four", "ada"), headers={"x-session-id": bob})[0] == bob
    assert server.state(ada)["metadata"]["conversation"] == "ada"
    asked = server.client.post(
        f"{INVOCATIONS}/process", json=message("later", "ada"), headers={"prefer": "respond-async"}
    )
    task = server.client.get(f"{asked.headers['location']}?wait=30s").json()
    assert (task["state"], task["session"]) == ("succeeded", ada), task


def test_a_conversation_goes_on_in_a_new_session_once_its_session_has_ended(server: Server) -> None:
    """Which its next request finds out, and nobody else."""
    first, _ = process(server, message("one", "ends"))
    assert server.client.delete(f"/v1/sessions/{first}").status_code < 300
    second, events = process(server, message("two", "ends"))
    assert (second != first, [event.get("text") for event in events]) == (True, ["two", None])
    assert process(server, message("three", "ends"))[0] == second


def test_first_messages_that_come_together_make_one_session(server: Server) -> None:
    """And no session that nobody uses."""
    answers: list[str] = []
    asking = [
        threading.Thread(target=lambda: answers.append(process(server, message("hi", "crowd"))[0])) for _ in range(8)
    ]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert (len(answers), len(set(answers))) == (8, 1)
    assert len(sessions_of(server, "crowd")) == 1


def sessions_of(server: Server, conversation: str) -> list[str]:
    """Those that were made for it, also such as have ended."""
    every = server.client.get("/v1/sessions", params={"state": "all", "limit": 100}).json()["sessions"]
    return [each["id"] for each in every if each["metadata"].get("conversation") == conversation]


def pieces(*parts: bytes) -> Iterator[bytes]:
    """A body whose length nobody announces."""
    yield from parts


def test_bodies_reach_the_agent_as_they_were_sent(server: Server) -> None:
    """In pieces, with the name at their end; one that is no object is not read for a name, however long it is."""
    body = json.dumps({"filler": "x" * 300_000, "session_id": "long"}).encode()
    sent = [
        server.client.post(f"{INVOCATIONS}/sync", content=each) for each in (body, pieces(b" ", body[:9], body[9:]))
    ]
    assert [each.json()["bytes"] for each in sent] == [len(body), len(body) + 1]
    assert sent[0].headers["x-session-id"] == sent[1].headers["x-session-id"]
    plain = [b"x" * (3 << 20), b"{not json"]
    others = [server.client.post(f"{INVOCATIONS}/async", content=each) for each in plain]
    others.append(server.client.post(f"{INVOCATIONS}/async", content=pieces(*[b"y" * 70_000] * 20)))
    assert [each.json()["bytes"] for each in others] == [*map(len, plain), 1_400_000]
    sessions = {each.headers["x-session-id"] for each in others}
    assert len(sessions) == len(others)
    for each in sessions:
        server.client.delete(f"/v1/sessions/{each}")


def test_what_is_no_name_and_what_is_too_large_is_refused(server: Server) -> None:
    """With the field that is wrong, and with what to do."""
    wrong = server.client.post(f"{INVOCATIONS}/sync", json={"session_id": ["a"]})
    assert (wrong.status_code, "session_id" in wrong.text) == (400, True)
    large = json.dumps({"filler": "x" * (2 << 20), "session_id": "large"}).encode()
    refused = server.client.post(f"{INVOCATIONS}/sync", content=large)
    assert (refused.status_code, "x-session-id" in refused.json()["error"]) == (413, True)


def test_a_client_that_leaves_while_it_sends_makes_no_session(server: Server) -> None:
    """Its body names none yet."""
    host, port = httpx.URL(server.url).host, httpx.URL(server.url).port
    with socket.create_connection((host, port or 80)) as client:
        client.sendall(f"POST {INVOCATIONS}/sync HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n".encode())
        client.sendall(b'{"session_id": "left"')
    after, _ = process(server, message("hi", "left"))
    assert sessions_of(server, "left") == [after]


def test_five_endpoints_of_an_agentapp_work_through_the_gateway(server: Server) -> None:
    """Answers at once, streams, and tasks of the agent's own."""
    body = {"session_id": "five", "n": 1}
    for path in ("sync", "async"):
        assert server.client.post(f"{INVOCATIONS}/{path}", json=body).json()["bytes"] > 0
    for path in ("stream_async", "stream_sync"):
        streamed = server.client.post(f"{INVOCATIONS}/{path}", json=body)
        assert streamed.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    submitted = server.client.post(f"{INVOCATIONS}/task", json=body)
    session = {"x-session-id": submitted.headers["x-session-id"]}
    finished = server.client.get(f"{INVOCATIONS}/task/{submitted.json()['task_id']}", headers=session)
    assert finished.json() == {"status": "finished", "result": 2}


def test_a_websocket_joins_a_session_and_ends_as_the_agent_says(server: Server) -> None:
    """Its session is named by the header, as it has no body."""
    session, _ = process(server, message("one", "socket"))
    url = f"ws://{server.url.removeprefix('http://')}{INVOCATIONS}/talk"
    with connect(url, additional_headers={"x-session-id": session}, subprotocols=["chat"]) as client:  # type: ignore[list-item]
        client.send("hello")
        assert (client.recv(), client.subprotocol) == ("HELLO", "chat")
        client.send("bye")
        with contextlib.suppress(Exception):
            client.recv()
        assert (client.close_code, client.close_reason) == (4000, "bye")


def test_a_session_takes_as_many_requests_at_a_time_as_its_agent_says(server: Server) -> None:
    """Further ones wait for their turn, and none is refused."""
    answers: list[int] = []
    body = {"session_id": "crowd"}
    asking = [
        threading.Thread(
            target=lambda: answers.append(server.client.post(f"{INVOCATIONS}/sync", json=body).status_code)
        )
        for _ in range(12)
    ]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    last = server.client.post(f"{INVOCATIONS}/sync", json={"session_id": "crowd"})
    assert last.json()["most"] <= 4
    assert answers == [200] * 12

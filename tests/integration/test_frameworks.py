"""Agents of other people's frameworks, deployed from code: with the real packages (scripts/test-agents).

WAKEGATE_AGENT_PYTHON names an environment that has them; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.support.kube.served import in_cluster
from tests.support.serve import Server, serve

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

Deploy = Callable[..., str]

FASTAPI = """
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

class Question(BaseModel):
    text: str

api = FastAPI()
asked = []

@api.post("/ask")
async def ask(question: Question) -> dict:
    asked.append(question.text)
    return {"answer": question.text.upper(), "asked": asked}

@api.get("/stream")
async def stream() -> StreamingResponse:
    async def events():
        for n in range(3):
            yield f"data: {n}\\n\\n"
    return StreamingResponse(events(), media_type="text/event-stream")

@api.websocket("/talk")
async def talk(ws: WebSocket) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(text[::-1])
"""
FLASK = """
import time
from flask import Flask, Response, request, stream_with_context

app = Flask(__name__)

@app.post("/ask/<name>")
def ask(name):
    return {"answer": f"{name}: {request.get_json()['text']}", "method": request.method, "host": bool(request.host)}

@app.get("/stream")
def stream():
    return Response(stream_with_context(f"data: {n}\\n\\n" for n in range(3)), mimetype="text/event-stream")
"""
SCRIPT = """
import http.server, json, os, sys

class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = json.dumps({"greeting": os.environ["GREETING"], "python": sys.executable}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Agent).serve_forever()
"""
# A model that says what a script has for it, and asks for a tool once: no network, and each turn is known.
GRAPH = """
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

class Scripted(GenericFakeChatModel):
    def bind_tools(self, tools, **_):
        return self

@tool
async def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b

def script():
    yield AIMessage("", tool_calls=[{"name": "add", "args": {"a": 2, "b": 3}, "id": "1"}])
    yield AIMessage("It is 5.")
    while True:
        yield AIMessage("You asked before.")

agent = create_agent(Scripted(messages=script()), tools=[add], checkpointer=InMemorySaver())
"""
SAVED = """
import sqlite3
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

def say(state):
    return {"messages": [("ai", f"turn {len(state['messages'])}")]}

builder = StateGraph(MessagesState)
builder.add_node("say", say)
builder.add_edge(START, "say")
builder.add_edge("say", END)
graph = builder.compile(checkpointer=SqliteSaver(sqlite3.connect("/workspace/memory.db", check_same_thread=False)))
"""
CHAIN = """
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
chain = prompt | FakeListChatModel(responses=["Hi"]) | StrOutputParser()
def make(): return chain
bot = make()
"""


@pytest.fixture(scope="module")
def python() -> str:
    """An environment with the packages."""
    found = os.environ.get("WAKEGATE_AGENT_PYTHON")
    if found is None:
        pytest.skip("WAKEGATE_AGENT_PYTHON is not set (scripts/test-agents makes such an environment)")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, python: str) -> Iterator[Server]:
    """A gateway whose sandboxes have the packages."""
    with serve(tmp_path_factory.mktemp("frameworks") / "state", "--sandbox-python", python) as one:
        yield one


@pytest.fixture
def deploy(server: Server, tmp_path: Path) -> Deploy:
    """Deploys one file under a name; returns the path of its invocations."""
    return deployer(server, tmp_path)


def deployer(server: Server, tmp_path: Path) -> Deploy:
    """The same for any gateway."""

    def deploy(name: str, file: str, source: str, *words: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_text(source)
        environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "gateway", "deploy", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        assert done.returncode == 0, done.stdout + done.stderr + server.log.read_text()[-4000:]
        assert "revision 1 serves" in done.stdout
        return f"/v1/namespaces/default/agent-runtimes/{name}/invocations"

    return deploy


def in_session(answer: httpx.Response) -> dict[str, str]:
    """The header by which the next request joins it."""
    assert answer.status_code == 200, answer.text
    return {"x-session-id": answer.headers["x-session-id"]}


def events_of(answer: httpx.Response) -> list[Any]:
    """The data of its server-sent events."""
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_fastapi_answers_streams_and_talks(server: Server, deploy: Deploy) -> None:
    """With its validation, in one session that remembers."""
    path = deploy("with-fastapi", "main.py", FASTAPI)
    first = server.client.post(f"{path}/ask", json={"text": "hello"})
    session = in_session(first)
    again = server.client.post(f"{path}/ask", json={"text": "you"}, headers=session)
    assert again.json() == {"answer": "YOU", "asked": ["hello", "you"]}
    assert server.client.post(f"{path}/ask", json={"txt": 1}, headers=session).status_code == 422
    assert events_of(server.client.get(f"{path}/stream", headers=session)) == [0, 1, 2]
    url = f"ws://{server.url.removeprefix('http://')}{path}/talk"
    with connect(url, additional_headers=session) as client:
        client.send("abc")
        assert client.recv() == "cba"
    assert "/ask" in server.client.get(f"{path}/openapi.json", headers=session).json()["paths"]


def test_flask_answers_and_streams(server: Server, deploy: Deploy) -> None:
    """On the standard library's server."""
    path = deploy("with-flask", "app.py", FLASK)
    answer = server.client.post(f"{path}/ask/ada", json={"text": "hello"})
    assert answer.json() == {"answer": "ada: hello", "method": "POST", "host": True}
    assert events_of(server.client.get(f"{path}/stream", headers=in_session(answer))) == [0, 1, 2]


def test_a_plain_script_listens_where_it_is_told(server: Server, deploy: Deploy) -> None:
    """With its variables, on another port."""
    path = deploy("a-script", "serve.py", SCRIPT, "--env", "GREETING=Welcome", "--port", "9000")
    assert server.client.get(f"{path}/").json()["greeting"] == "Welcome"


def test_an_agent_of_langchain_calls_its_tool_and_remembers(server: Server, deploy: Deploy) -> None:
    """The tool is asynchronous, as those of MCP are; the thread is the session's."""
    path = deploy("with-langchain", "agent.py", GRAPH)
    ask = {"input": {"messages": [{"role": "user", "content": "What is 2 + 3?"}]}}
    first = server.client.post(f"{path}/invoke", json=ask)
    session = in_session(first)
    said = first.json()["output"]["messages"]
    assert [each["type"] for each in said] == ["human", "ai", "tool", "ai"]
    assert (said[2]["content"], said[3]["content"]) == ("5", "It is 5.")
    second = server.client.post(f"{path}/invoke", json=ask, headers=session).json()["output"]["messages"]
    assert (len(second), second[-1]["content"]) == (6, "You asked before.")
    streamed = events_of(server.client.post(f"{path}/stream", json=ask, headers=session))
    assert [list(each) for each in streamed] == [["model"]]
    tokens = events_of(server.client.post(f"{path}/stream", json={**ask, "stream_mode": "messages"}, headers=session))
    assert "".join(each[0]["content"] for each in tokens) == "You asked before."
    assert server.client.post(f"{path}/invoke", json={"input": 7}, headers=session).status_code == 500


def test_an_agent_of_langchain_is_deployed_from_code_into_a_cluster(python: str, tmp_path: Path) -> None:
    """With the same words; the packages stand for those of picod's image. It calls its tool, and remembers."""
    with in_cluster(tmp_path) as (server, _):
        path = f"PATH={python}/bin:/usr/bin:/bin"
        path = deployer(server, tmp_path)("with-langchain", "agent.py", GRAPH, "--env", path)
        ask = {"input": {"messages": [{"role": "user", "content": "What is 2 + 3?"}]}}
        first = server.client.post(f"{path}/invoke", json=ask)
        said = first.json()["output"]["messages"]
        assert [(each["type"], each["content"]) for each in said[1:]] == [("ai", ""), ("tool", "5"), ("ai", "It is 5.")]
        second = server.client.post(f"{path}/invoke", json=ask, headers=in_session(first)).json()["output"]["messages"]
        assert (len(second), second[-1]["content"]) == (6, "You asked before.")
        streamed = events_of(server.client.post(f"{path}/stream", json=ask, headers=in_session(first)))
        assert [list(each) for each in streamed] == [["model"]]


def test_a_graph_that_remembers_with_a_synchronous_saver_is_called_so(server: Server, deploy: Deploy) -> None:
    """SqliteSaver has no asynchronous methods; its file is in the workspace."""
    path = deploy("with-langgraph", "graph.py", SAVED)
    ask = {"input": {"messages": [["user", "hello"]]}}
    first = server.client.post(f"{path}/invoke", json=ask)
    assert first.json()["output"]["messages"][-1]["content"] == "turn 1"
    second = server.client.post(f"{path}/invoke", content=iter([json.dumps(ask).encode()]), headers=in_session(first))
    assert second.json()["output"]["messages"][-1]["content"] == "turn 3"


def test_a_chain_is_found_and_one_that_is_named_is_served(server: Server, deploy: Deploy) -> None:
    """`prompt | model | parser`; what a function returned is seen for what it is where it runs."""
    ask = {"input": {"question": "Hello?"}}
    for name, words in (("a-chain", ()), ("a-named-chain", ("--entry", "chain.py:bot"))):
        path = deploy(name, "chain.py", CHAIN, *words)
        answer = server.client.post(f"{path}/invoke", json=ask)
        assert answer.json() == {"output": "Hi"}
        assert "".join(events_of(server.client.post(f"{path}/stream", json=ask, headers=in_session(answer)))) == "Hi"

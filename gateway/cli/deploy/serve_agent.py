"""Runs in the agent's sandbox: serves what `wakegate deploy` found. The standard library only; a part of each bundle.

python3 serve_agent.py KIND MODULE NAME PORT
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import socketserver
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

MAX_BODY_BYTES = 16 << 20
# Loopback: picod, in the same sandbox, brings the requests. An image has no picod, and names its own (image.py).
HOST = os.environ.get("AGENT_HOST") or "127.0.0.1"


def main(kind: str, module: str, name: str, port: int) -> None:
    """Import it and serve it for ever."""
    sys.path.insert(0, os.getcwd())
    found = getattr(importlib.import_module(module), name)
    if kind == "named":
        kind = kind_of(found)
    if kind == "asgi":
        serve_asgi(found, port)
    elif kind == "wsgi":
        serve_wsgi(found, port)
    elif kind == "agentapp":
        found.run(host=HOST, port=port)
    else:
        serve_runnable(found, port)


def serve_asgi(app: Any, port: int) -> None:
    """With uvicorn, which has to be among the requirements."""
    try:
        import uvicorn
    except ImportError:
        raise SystemExit("uvicorn is not installed: add it to the requirements") from None
    uvicorn.run(app, host=HOST, port=port, access_log=False)


# A thread per request: an agent waits for a model most of the time, and one at a time would let a second conversation
# of the session wait for minutes.
class _Threading(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """No line per request: the agent's own output is what its log is for."""


def serve_wsgi(app: Any, port: int) -> None:
    """With the standard library's server, a thread per request."""
    make_server(HOST, port, app, server_class=_Threading, handler_class=_Quiet).serve_forever()


def kind_of(found: Any) -> str:
    """How an object is served that was named and not recognised in the source: by what it has."""
    if callable(getattr(found, "invoke", None)):
        return "runnable"
    if callable(getattr(found, "wsgi_app", None)):
        return "wsgi"
    if callable(getattr(found, "run", None)) and callable(getattr(found, "endpoint", None)):
        return "agentapp"
    return "asgi"


class Agent:
    """A LangChain runnable or a LangGraph graph, called from any thread.

    Through its asynchronous methods on one loop, where it has such: tools and nodes may have no others, and clients of
    models are bound to the loop that they were first used on. Its synchronous ones are for what remembers with a saver
    that has no others.
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._is_async = hasattr(agent, "ainvoke") and self._await(remembers_async(agent))

    def invoke(self, given: Any, config: Any) -> Any:
        """The agent's answer, waited for if it is a coroutine."""
        if self._is_async:
            return self._await(self._agent.ainvoke(given, config))
        result = self._agent.invoke(given, config) if hasattr(self._agent, "invoke") else self._agent(given)
        return self._await(result) if inspect.isawaitable(result) else result

    def stream(self, given: Any, config: Any, **options: Any) -> Generator[Any, None, None]:
        """The pieces of its answer as they come."""
        if not self._is_async:
            yield from self._agent.stream(given, config, **options)
            return
        pieces = self._agent.astream(given, config, **options)
        try:
            while (piece := self._await(anext(pieces, _END))) is not _END:
                yield piece
        finally:
            self._await(pieces.aclose())  # stops it where the client has left

    def _await(self, result: Any) -> Any:
        async def awaited() -> Any:
            return await result

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()


_END = object()


async def remembers_async(agent: Any) -> bool:
    """Whether what it remembers with, if anything, has asynchronous methods: the savers of SQLite have theirs apart."""
    look = getattr(getattr(agent, "checkpointer", None), "aget_tuple", None)
    if look is None:
        return True
    try:
        await look({"configurable": {"thread_id": "", "checkpoint_ns": ""}})
    except NotImplementedError:
        return False
    except Exception:  # a data base that is not there yet, which the first request is told of
        return True
    return True


def serve_runnable(runnable: Any, port: int) -> None:
    """A LangChain runnable or a LangGraph graph.

    POST /invoke `{"input": ..., "config": {...}}` answers `{"output": ...}`; POST /stream answers server-sent events of
    its chunks, with `stream_mode` as a graph takes it. A thread id is set from the session, for those that keep a
    memory.
    """
    agent = Agent(runnable)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """No line per request."""

        def do_GET(self) -> None:
            self._answer(200, {"status": "ok"})

        def do_POST(self) -> None:
            try:
                body = self._body()
                if body is None:
                    return self._answer(413, {"error": "the body is too large"})
                if not isinstance(body, dict) or "input" not in body:
                    return self._answer(400, {"error": "expected an object with input"})
                config = dict(body.get("config") or {})
                session = self.headers.get("x-agentcube-session-id") or "default"
                config["configurable"] = {"thread_id": session, **(config.get("configurable") or {})}
            except (ValueError, TypeError) as error:
                return self._answer(400, {"error": f"the body is not JSON of that form: {error}"})
            try:
                if self.path.partition("?")[0].rstrip("/").endswith("/stream"):
                    return self._stream(body, config)
                return self._answer(200, {"output": plain(agent.invoke(body["input"], config))})
            except OSError:
                self.close_connection = True  # the client has left
            except Exception as error:
                return self._answer(500, {"error": f"{type(error).__name__}: {error}"})

        def _body(self) -> Any:
            """What was sent; None: more than is read, so the connection ends and the rest is no next request."""
            data = self._read()
            if data is None:
                self.close_connection = True
                return None
            return json.loads(data or b"{}")

        def _read(self) -> bytes | None:
            if "chunked" not in (self.headers.get("transfer-encoding") or "").lower():
                length = int(self.headers.get("content-length") or 0)
                return self.rfile.read(length) if length <= MAX_BODY_BYTES else None
            data = bytearray()
            while size := int(self.rfile.readline(128).partition(b";")[0], 16):  # RFC 9112 7.1
                if len(data) + size > MAX_BODY_BYTES:
                    return None
                data += self.rfile.read(size)
                self.rfile.readline(8)
            while self.rfile.readline(65536).strip():
                pass  # trailers
            return bytes(data)

        def _answer(self, status: int, document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, body: Any, config: Any) -> None:
            # No length is known, and chunks would have to be written by hand: the end of the connection is the end.
            self.close_connection = True
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            options = {"stream_mode": body["stream_mode"]} if "stream_mode" in body else {}
            pieces = agent.stream(body["input"], config, **options)
            try:
                for piece in pieces:
                    self._event(b"", plain(piece))
            except OSError:
                return  # the client has left
            except Exception as error:
                self._event(b"event: error\n", {"error": f"{type(error).__name__}: {error}"})
            finally:
                pieces.close()

        def _event(self, before: bytes, value: Any) -> None:
            self.wfile.write(before + b"data: " + json.dumps(value).encode() + b"\n\n")
            self.wfile.flush()

    ThreadingHTTPServer((HOST, port), Handler).serve_forever()


def plain(value: Any) -> Any:
    """As JSON: messages and models by their own conversion."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    # Of pydantic 2 and of pydantic 1, which older versions of LangChain have.
    for method in ("model_dump", "dict"):
        if hasattr(value, method):
            return plain(getattr(value, method)())
    return str(value)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

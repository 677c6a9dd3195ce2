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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

MAX_BODY_BYTES = 16 << 20


def main(kind: str, module: str, name: str, port: int) -> None:
    """Import it and serve it for ever."""
    sys.path.insert(0, os.getcwd())
    found = getattr(importlib.import_module(module), name)
    if kind == "asgi":
        serve_asgi(found, port)
    elif kind == "wsgi":
        serve_wsgi(found, port)
    elif kind == "agentapp":
        found.run(host="127.0.0.1", port=port)
    else:
        serve_runnable(found, port)


def serve_asgi(app: Any, port: int) -> None:
    """With uvicorn, which has to be among the requirements."""
    try:
        import uvicorn
    except ImportError:
        raise SystemExit("uvicorn is not installed: add it to the requirements") from None
    uvicorn.run(app, host="127.0.0.1", port=port, access_log=False)


# A thread per request: an agent waits for a model most of the time, and one at a time would let a second conversation
# of the session wait for minutes. Loopback everywhere: picod, in the same sandbox, brings the requests.
class _Threading(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """No line per request."""


def serve_wsgi(app: Any, port: int) -> None:
    """With the standard library's server, a thread per request."""
    make_server("127.0.0.1", port, app, server_class=_Threading, handler_class=_Quiet).serve_forever()


def serve_runnable(agent: Any, port: int) -> None:
    """A LangChain runnable or a LangGraph graph.

    POST /invoke `{"input": ..., "config": {...}}` answers `{"output": ...}`; POST /stream answers server-sent events of
    its chunks. A thread id is set from the session, for those that keep a memory.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """No line per request."""

        def do_GET(self) -> None:
            self._answer(200, {"status": "ok"})

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("content-length") or 0)
                if length > MAX_BODY_BYTES:
                    # The body is not read, so the connection ends: its bytes would be taken for the next request.
                    self.close_connection = True
                    return self._answer(413, {"error": "the body is too large"})
                body = json.loads(self.rfile.read(length) or b"{}")
                if not isinstance(body, dict) or "input" not in body:
                    return self._answer(400, {"error": "expected an object with input"})
                config = dict(body.get("config") or {})
                session = self.headers.get("x-agentcube-session-id") or "default"
                config["configurable"] = {"thread_id": session, **(config.get("configurable") or {})}
            except ValueError as error:
                return self._answer(400, {"error": f"the body is not JSON: {error}"})
            try:
                if self.path.rstrip("/").endswith("/stream"):
                    return self._stream(body["input"], config)
                return self._answer(200, {"output": plain(invoke(agent, body["input"], config))})
            except Exception as error:
                return self._answer(500, {"error": f"{type(error).__name__}: {error}"})

        def _answer(self, status: int, document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, given: Any, config: Any) -> None:
            # No length is known, and chunks would have to be written by hand: the end of the connection is the end.
            self.close_connection = True
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            try:
                for chunk in agent.stream(given, config):
                    self.wfile.write(b"data: " + json.dumps(plain(chunk)).encode() + b"\n\n")
                    self.wfile.flush()
            except Exception as error:
                failed = {"error": f"{type(error).__name__}: {error}"}
                self.wfile.write(b"event: error\ndata: " + json.dumps(failed).encode() + b"\n\n")

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def invoke(agent: Any, given: Any, config: Any) -> Any:
    """Its answer, whether it is synchronous or not."""
    result = agent.invoke(given, config) if hasattr(agent, "invoke") else agent(given)
    if inspect.isawaitable(result):

        async def awaited() -> Any:
            return await result

        return asyncio.run(awaited())
    return result


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

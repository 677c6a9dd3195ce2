"""Ordinary tools/call requests of the revision without sessions, recognised and answered without the SDK's machinery.

The SDK builds a server, a connection, streams and two tasks for each request, and validates what it gets and what it
sends: 2 ms of CPU, as much as the call itself. A request counts as ordinary if it has the form that the SDK has
accepted before from the same kind of client (the same `_meta` and the same header fields that the SDK reads), and
nothing that calls for more than one JSON answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway import __version__
from gateway.api.tools.calls import Call

_MAX_KNOWN, _MAX_FORM_BYTES = 256, 2048  # of a client's `_meta`, with its name and capabilities, and header fields
_SERVER_INFO = {"io.modelcontextprotocol/serverInfo": {"name": "wakegate", "version": __version__}}
_READ_BY_SDK = (b"accept", b"content-type")  # and what begins with mcp-


class PlainCalls:
    """Recognises calls in the form that the SDK has accepted before, which need not pass through it again.

    Its state: the forms of clients' calls, the latest used last.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def recognise(self, request: Request, message: Mapping[str, Any]) -> Call | None:
        """An ordinary call; None for everything else, which is for the SDK to answer or to refuse."""
        params, request_id = message.get("params"), message.get("id")
        if message.keys() != {"jsonrpc", "id", "method", "params"} or message["jsonrpc"] != "2.0":
            return None
        if message["method"] != "tools/call" or type(request_id) not in (int, str) or not isinstance(params, dict):
            return None
        name, arguments = params.get("name"), params.get("arguments", {})
        if (
            params.keys() - {"name", "arguments", "_meta"}
            or not isinstance(name, str)
            or not isinstance(arguments, dict)
        ):
            return None
        form = request.state.mcp_form = _form(params.get("_meta"), name, request.scope["headers"])
        if form not in self._known:
            return None
        self._known.move_to_end(form)
        return Call(str(request_id), name, dict(arguments))

    def learn(self, request: Request) -> None:
        """The SDK has accepted this request: others of its form need not be checked by it."""
        form: bytes = getattr(request.state, "mcp_form", b"")
        if form:
            self._known[form] = None
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    @staticmethod
    def answer(request_id: str | int, result: Mapping[str, Any]) -> Response:
        """The JSON answer, as the SDK would send it; `result` has the fields of a CallToolResult by their aliases."""
        fields = {**result, "_meta": {**result.get("_meta", {}), **_SERVER_INFO}}
        document = {"jsonrpc": "2.0", "id": request_id, "result": {"resultType": "complete", **fields}}
        return Response(orjson.dumps(document), media_type="application/json")


def _form(meta: Any, name: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """What the SDK's verdict on a call of this tool depends on, the same for all tools; empty for no ordinary call.

    That is `_meta`, where a progress token is one of its keys, and header fields. Parameters in header fields are not
    ordinary, nor is Mcp-Name if it is missing, sent twice, encoded or another tool's.
    """
    if not isinstance(meta, dict) or not all(key.startswith("io.modelcontextprotocol/") for key in meta):
        return b""
    read = [(field, value) for field, value in headers if field in _READ_BY_SDK or field.startswith(b"mcp-")]
    names = [value for field, value in read if field == b"mcp-name"]
    if names != [name.encode("utf-8", "replace")] or any(field.startswith(b"mcp-param-") for field, _ in read):
        return b""
    # A field ends at its NUL, which no value contains: other fields cannot make the same bytes.
    parts = [part for field, value in read if field != b"mcp-name" for part in (field, value)]
    form = b"\0".join([*parts, orjson.dumps(meta)])
    return form if len(form) <= _MAX_FORM_BYTES else b""

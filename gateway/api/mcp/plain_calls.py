"""Ordinary tools/call requests of the revision without sessions, recognised and answered without the SDK's machinery.

The SDK builds a server, a connection, streams and two tasks for each request, and validates what it gets and what it
sends: 2 ms of CPU, as much as the call itself. A request counts as ordinary if it has the form that the SDK has
accepted before from the same kind of client (the same `_meta`), and nothing that calls for more than one JSON answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import orjson
from mcp import types
from mcp.server.streamable_http import check_accept_headers
from mcp.shared.inbound import InboundLadderRejection, classify_inbound_request, find_duplicated_routing_header
from starlette.requests import Request
from starlette.responses import Response

from gateway import __version__
from gateway.api.tools.calls import Call

_MAX_KNOWN, _MAX_META_BYTES = 256, 2048  # of a client's `_meta`, in which its name and its capabilities are
_SERVER_INFO = {"io.modelcontextprotocol/serverInfo": {"name": "wakegate", "version": __version__}}


class PlainCalls:
    """Knows the clients whose calls the SDK has accepted. Its state: their `_meta`, the latest used last."""

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
        meta = params.get("_meta")
        known = _key(meta)
        request.state.mcp_meta = known
        if known not in self._known or not _is_routed_as_it_says(request, message):
            return None
        self._known.move_to_end(known)
        return Call(str(request_id), name, dict(arguments))

    def learn(self, request: Request) -> None:
        """The SDK has accepted this request: others of its form need not be checked by it."""
        meta: bytes = getattr(request.state, "mcp_meta", b"")
        if meta:
            self._known[meta] = None
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    @staticmethod
    def answer(request_id: str | int, result: types.CallToolResult) -> Response:
        """The JSON answer, as the SDK would send it."""
        fields = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        fields["_meta"] = {**fields.get("_meta", {}), **_SERVER_INFO}
        document = {"jsonrpc": "2.0", "id": request_id, "result": {"resultType": "complete", **fields}}
        return Response(orjson.dumps(document), media_type="application/json")


def _key(meta: Any) -> bytes:
    """A client's `_meta`; empty where a call is no ordinary one, as with a progress token, which is one of its keys."""
    if not isinstance(meta, dict) or not all(name.startswith("io.modelcontextprotocol/") for name in meta):
        return b""
    key = orjson.dumps(meta)
    return key if len(key) <= _MAX_META_BYTES else b""


def _is_routed_as_it_says(request: Request, message: Mapping[str, Any]) -> bool:
    headers = request.headers
    return (
        headers.get("content-type", "").lower().startswith("application/json")
        and check_accept_headers(request) == (True, True)
        and find_duplicated_routing_header(headers.items()) is None
        and not any(name.startswith("mcp-param-") for name in headers)
        and not isinstance(classify_inbound_request(message, headers=dict(headers)), InboundLadderRejection)
    )

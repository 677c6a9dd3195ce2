"""Reads bodies and fields of requests and writes JSON answers, for all control surfaces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from gateway.core import json_depth
from gateway.core.errors import BadRequestError, RequestTimeoutError, TooLargeError
from gateway.core.model import PRIVATE_METADATA, Kind, RuntimeKey
from gateway.core.units import parse_lifetime
from gateway.egress.rule_entries import MAX_ENTRIES

MAX_BODY_BYTES = 1 << 20  # control requests are a few hundred bytes
_MAX_PUBLIC_PORTS = 32
_MAX_METADATA_BYTES = 16 << 10
_UPLOAD_CHUNK_BYTES = 1 << 20
_INLINE_BYTES = 256 << 10  # larger bodies are parsed in a thread, which would cost a small one more than parsing does


class JSON(Response):
    """A JSON response, encoded by orjson."""

    media_type = "application/json; charset=utf-8"

    def render(self, content: Any) -> bytes:
        """Encode the content in UTF-8. Raises TypeError for values that JSON does not have."""
        return orjson.dumps(content)


def session_headers(session_id: str | None) -> dict[str, str]:
    """Both spellings of the session header, ours and AgentCube's; empty without a session."""
    return {} if session_id is None else {"x-session-id": session_id, "x-agentcube-session-id": session_id}


async def read_object(request: Request) -> Mapping[str, Any]:
    """The body as a JSON object, whatever its Content-Type says. Raises BadRequestError, RequestTimeoutError."""
    value = await read_json(request, MAX_BODY_BYTES)
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    return value


async def read_optional_object(request: Request) -> Mapping[str, Any]:
    """As `read_object`; without a body an empty object."""
    value = await read_json(request, MAX_BODY_BYTES, lambda body: json_depth.loads(body or b"{}"))
    if not isinstance(value, dict):
        raise BadRequestError("the body must be a JSON object")
    return value


async def read_json(request: Request, limit: int, loads: Callable[[bytes], Any] = json_depth.loads) -> Any:
    """The body as JSON, at most `limit` bytes. Raises BadRequestError, TooLargeError, RequestTimeoutError."""
    body = await read_bytes(request, limit)
    try:
        return loads(body) if len(body) <= _INLINE_BYTES else await asyncio.to_thread(loads, body)
    except ValueError as error:
        raise unreadable("the body", error) from None


def unreadable(what: str, error: ValueError) -> BadRequestError:
    """The error for a text that json_depth.loads has refused."""
    return BadRequestError(
        f"{what}: {error}" if isinstance(error, json_depth.TooDeepError) else f"{what} is not JSON: {error}"
    )


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes. Raises BadRequestError, TooLargeError, RequestTimeoutError."""
    body = bytearray()
    async for chunk in read_chunks(request, limit):
        body += chunk
    request.state.body = bytes(body)  # `relay` sends it again if another gateway owns the session
    return bytes(body)


async def read_chunks(request: Request, limit: int | None) -> AsyncGenerator[bytes, None]:
    """The body as it comes, at most `limit` bytes of it. Raises BadRequestError, TooLargeError, RequestTimeoutError."""
    idle: float = request.app.state.body_idle
    size, more = 0, True
    # ASGI's messages and not Request.stream(), which yields twice more after the last byte: each would need a timer.
    while more:
        try:
            # Per chunk, not for the whole body: a slow upload is fine, a connection that sends nothing is not.
            async with asyncio.timeout(idle):
                message = await request.receive()
        except TimeoutError:
            raise RequestTimeoutError(f"no byte of the request's body came for {idle:g} s") from None
        if message["type"] == "http.disconnect":
            raise BadRequestError("the client left while sending its request")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if limit is not None and size > limit:
            raise TooLargeError(f"the body is larger than {limit} bytes")
        if chunk:
            yield chunk


async def chunks_of(upload: UploadFile) -> AsyncIterator[bytes]:
    """The bytes of a file of a form, from memory or from its temporary file."""
    while chunk := await upload.read(_UPLOAD_CHUNK_BYTES):
        yield chunk


def read_seconds(body: Mapping[str, Any], name: str) -> float | None:
    """A duration: a number of seconds or text such as "15m". Raises BadRequestError."""
    value = body.get(name)
    if value is None:
        return None
    try:
        seconds = parse_lifetime(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    # float(True) is 1.0, and 1e9 s are 31 years.
    if isinstance(value, bool) or not 0 < seconds < 1e9:
        raise BadRequestError(
            f"{name}: expected a duration above zero, in seconds or as text such as 15m; got {repr(value)[:64]}"
        )
    return seconds


def read_metadata(body: Mapping[str, Any]) -> dict[str, str]:
    """`metadata` as a map of strings; numbers and booleans become their JSON text. Raises BadRequestError."""
    value = body.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > 64:
        raise BadRequestError("metadata: expected an object of at most 64 entries")
    result: dict[str, str] = {}
    size = 0
    for key, entry in value.items():
        if isinstance(entry, dict | list):
            raise BadRequestError(f"metadata.{key[:64]}: expected text")
        if key.startswith(PRIVATE_METADATA):
            raise BadRequestError(f"metadata.{key[:64]}: names with {PRIVATE_METADATA} are the gateway's own")
        text = entry if isinstance(entry, str) else orjson.dumps(entry).decode()
        if len(key) > 256 or len(text) > 4096:
            raise BadRequestError(f"metadata.{key[:64]}: keys hold at most 256 characters, values 4096")
        size += len(key.encode()) + len(text.encode())
        if size > _MAX_METADATA_BYTES:  # a record is read and written whole, and lists hold up to 1,000 of them
            raise BadRequestError(f"metadata: expected at most {_MAX_METADATA_BYTES} bytes of keys and values in all")
        result[key] = text
    return result


def read_egress(body: Mapping[str, Any]) -> list[Any] | None:
    """`egress` as a list, whose entries are checked against the runtime's. Raises BadRequestError."""
    value = body.get("egress")
    if value is not None and (not isinstance(value, list) or len(value) > MAX_ENTRIES):
        raise BadRequestError(f"egress: expected a list of at most {MAX_ENTRIES} entries, got {repr(value)[:64]}")
    return value


def read_public_ports(body: Mapping[str, Any]) -> tuple[int, ...]:
    """`publicPorts` as numbers of ports. Raises BadRequestError."""
    value = body.get("publicPorts")
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MAX_PUBLIC_PORTS:
        raise BadRequestError(f"publicPorts: expected a list of at most {_MAX_PUBLIC_PORTS} ports such as [8000]")
    for port in value:
        if type(port) is not int or not 1 <= port <= 65535:
            raise BadRequestError(f"publicPorts: expected numbers from 1 to 65535, got {repr(port)[:64]}")
    return tuple(dict.fromkeys(value))


def read_runtime(value: Any) -> RuntimeKey:
    """`"name"`, `"namespace/name"` or `{"namespace", "name", "kind"}`. Raises BadRequestError."""
    if isinstance(value, str) and value:
        namespace, slash, name = value.partition("/")
        return RuntimeKey(namespace, name) if slash else RuntimeKey("default", namespace)
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        kind, namespace = value.get("kind", Kind.CODE_INTERPRETER), value.get("namespace", "default")
        if kind in list(Kind) and isinstance(namespace, str):
            return RuntimeKey(namespace, value["name"], Kind(kind))
    raise BadRequestError('runtime: expected "namespace/name", or an object with name, namespace and kind')

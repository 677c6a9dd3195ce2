"""Parses a model's tool calls from any of the four forms that a client may post. Pure.

    a whole assistant message      {"role": "assistant", "tool_calls": [...]}   also below "message"
    a list of tool calls           [{"id", "type": "function", "function": {"name", "arguments"}}]
    items of the Responses API     {"output": [{"type": "function_call", "call_id", "name", "arguments"}, ...]}
    an Anthropic message           {"role": "assistant", "content": [{"type": "tool_use", "id", "name", "input"}, ...]}

An object may also have `session_id`, `runtime` and `stream`. An invalid form is an error of the request, because the
client built it; invalid arguments are an answer for the model (`Call.problem`), which wrote them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from gateway.api.errors import ParamError
from gateway.api.tools.results import ToolResult, failure
from gateway.core.errors import BadRequestError

MAX_CALLS = 128  # as many as OpenAI allows tools in a request
MAX_ARGUMENTS_BYTES = 8 << 20  # of one call's arguments, as JSON
MAX_ID_CHARS = 256


class Shape(StrEnum):
    """The form in which calls were sent, and results are returned."""

    CHAT = "chat"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a model. `problem`: its arguments are invalid, and this is the answer in place of a run."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    problem: ToolResult | None = None


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """The calls of one request in order, and the session or runtime to use; `runtime` is unchecked JSON."""

    shape: Shape
    calls: tuple[Call, ...]
    session_id: str | None = None
    runtime: Any = None
    stream: bool = False


def parse_tool_calls(body: Any) -> ToolCalls:
    """Parse a decoded JSON body. Raises BadRequestError, ParamError."""
    where, items, shape = _items(body)
    calls: list[Call] = []
    seen: Shape | None = None
    for index, item in enumerate(items):
        param = f"{where}[{index}]"
        found = _shape_of(item, param)
        if found is None:
            continue
        if seen is not None and found is not seen:
            raise ParamError(param, f"a call in the {found} form among calls in the {seen} form; send one form")
        seen = found
        calls.append(_READERS[found](item, param))
        # While they are read, so that a list of a million calls costs no more than one of 129.
        if len(calls) > MAX_CALLS:
            raise ParamError(where, f"more than {MAX_CALLS} calls; send them in several requests")
    extras = body if isinstance(body, dict) else {}
    session_id, stream = extras.get("session_id"), extras.get("stream")
    if session_id is not None and (not isinstance(session_id, str) or not 0 < len(session_id) <= 128):
        raise ParamError("session_id", "expected the id of a session, as text")
    if stream is not None and not isinstance(stream, bool):
        raise ParamError("stream", "expected true or false")
    return ToolCalls(seen or shape, tuple(calls), session_id, extras.get("runtime"), bool(stream))


def _items(body: Any) -> tuple[str, list[Any], Shape]:
    """The list with the calls, its path for errors, and the form of the answer if the list is empty."""
    if isinstance(body, list):
        return "", body, Shape.CHAT
    if not isinstance(body, dict):
        raise BadRequestError("the body must be an assistant message, or a list of tool calls, or hold one")
    if isinstance(body.get("message"), dict):
        where, items, shape = _items({key: body["message"].get(key) for key in ("tool_calls", "content", "role")})
        return f"message.{where}", items, shape
    for key, shape in (("tool_calls", Shape.CHAT), ("output", Shape.RESPONSES), ("input", Shape.RESPONSES)):
        if isinstance(body.get(key), list):
            return key, body[key], shape
        if body.get(key) is not None:
            raise ParamError(key, "expected a list")
    if isinstance(body.get("content"), list):
        return "content", body["content"], Shape.ANTHROPIC
    if body.get("type") in ("function_call", "tool_use") or isinstance(body.get("function"), dict):
        return "", [body], Shape.CHAT
    if body.get("role") == "assistant":
        return "tool_calls", [], Shape.CHAT  # an agent loop may post every message, also those without calls
    raise ParamError("tool_calls", "missing; expected a list of tool calls, or an assistant message that has one")


def _shape_of(item: Any, param: str) -> Shape | None:
    """The form of one item; None for other parts of a model's answer, such as text and reasoning."""
    if not isinstance(item, dict):
        raise ParamError(param, "expected an object")
    kind = item.get("type")
    if kind == "function_call":
        return Shape.RESPONSES
    if kind == "tool_use":
        return Shape.ANTHROPIC
    if kind in ("function", "custom") or "function" in item:
        return Shape.CHAT
    if isinstance(kind, str):
        return None
    raise ParamError(param, 'not a tool call; expected type "function", "function_call" or "tool_use"')


def _chat(item: Mapping[str, Any], param: str) -> Call:
    call_id = _id(item, "id", param)
    if item.get("type") == "custom":
        custom = item.get("custom")
        name = custom.get("name") if isinstance(custom, dict) else None
        problem = failure("unsupported_tool_type", "custom tools are not run here; call a function tool")
        return Call(call_id, str(name), {}, problem)
    function = item.get("function")
    if not isinstance(function, dict):
        raise ParamError(f"{param}.function", "expected an object with name and arguments")
    return _with_arguments(call_id, function.get("name"), function.get("arguments"), f"{param}.function")


def _responses(item: Mapping[str, Any], param: str) -> Call:
    return _with_arguments(_id(item, "call_id", param), item.get("name"), item.get("arguments"), param)


def _anthropic(item: Mapping[str, Any], param: str) -> Call:
    return _with_arguments(_id(item, "id", param), item.get("name"), item.get("input"), param)


_READERS = {Shape.CHAT: _chat, Shape.RESPONSES: _responses, Shape.ANTHROPIC: _anthropic}


def _with_arguments(call_id: str, named: Any, arguments: Any, param: str) -> Call:
    """Make a call from arguments that are an object, its JSON text, or absent: models differ in this."""
    name = _name(named)
    if not name:
        # The model's mistake as well: the other calls of its message run.
        problem = failure("unknown_tool", f"the call names no tool; expected a name of 1 to {MAX_ID_CHARS} characters")
        return Call(call_id, "", {}, problem)
    if isinstance(arguments, str):
        if (
            len(arguments) > MAX_ARGUMENTS_BYTES
            or len(arguments.encode("utf-8", "surrogatepass")) > MAX_ARGUMENTS_BYTES
        ):
            raise ParamError(f"{param}.arguments", f"larger than {MAX_ARGUMENTS_BYTES} bytes")
        try:
            arguments = _parse_arguments(arguments)
        except ValueError as error:
            # The model's mistake and not the client's: as a result it reaches the model, which can correct it.
            problem = failure("invalid_json", f"the arguments are not JSON: {error}; nothing was run")
            return Call(call_id, name, {}, problem)
    if arguments is None:
        return Call(call_id, name, {})
    if not isinstance(arguments, dict):
        problem = failure("invalid_json", "the arguments must be a JSON object; nothing was run")
        return Call(call_id, name, {}, problem)
    try:
        orjson.dumps(arguments)  # unpaired surrogates, for example, could neither be sent on nor hashed for the key
    except TypeError as error:
        problem = failure("invalid_json", f"the arguments contain what JSON cannot: {error}; nothing was run")
        return Call(call_id, name, {}, problem)
    return Call(call_id, name, arguments)


def _parse_arguments(text: str) -> Any:
    """Decode a model's JSON text; None if it is empty. Raises ValueError.

    Common mistakes are accepted: raw line breaks inside strings, which JSON forbids, text encoded twice, a byte order
    mark, and the fence that Markdown has around code.
    """
    text = text.removeprefix("\ufeff").strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2].removesuffix("```")
    if not text.strip():
        return None  # some models send this for a function without arguments
    value = loads_leniently(text)
    if value is None:
        raise ValueError("null; expected an object")
    if isinstance(value, str):
        value = loads_leniently(value)
    return value


def loads_leniently(text: str | bytes) -> Any:
    """Decode JSON, also with control characters inside strings. Raises ValueError.

    Unpaired surrogates, which orjson refuses, are let through: then only the call that contains one fails, and not all
    calls of the message.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as refused:
        try:
            return json.loads(text, strict=False, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise ValueError(str(refused)) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _id(holder: Mapping[str, Any], key: str, param: str) -> str:
    """The call's id. A missing one is derived from content and position, so that a retry gets the same id."""
    if holder.get(key) in (None, ""):
        # `param` holds the position, so two equal calls of one message have two ids.
        content = repr((param, sorted(holder.items(), key=str))).encode("utf-8", "surrogatepass")
        return f"call_{hashlib.blake2b(content, digest_size=12).hexdigest()}"
    return _text(holder, key, param)


def _text(holder: Mapping[str, Any], key: str, param: str) -> str:
    """An id, which the answer needs: without it a client could not tell whose it is. Raises ParamError."""
    if not (value := _name(holder.get(key))):
        raise ParamError(f"{param}.{key}", f"expected text of 1 to {MAX_ID_CHARS} characters")
    return value


def _name(value: Any) -> str:
    """A name or an id, or "" for what is none. Unpaired surrogates become U+FFFD, since answers could not have them."""
    if not isinstance(value, str) or len(value) > MAX_ID_CHARS:
        return ""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

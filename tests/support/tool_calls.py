"""Calls as models write them."""

from __future__ import annotations

from typing import Any

import orjson


def chat_call(call_id: str, name: str, /, **arguments: Any) -> dict[str, Any]:
    """As in an assistant message of chat.completions."""
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": orjson.dumps(arguments).decode()},
    }


def item(call_id: str, name: str, /, **arguments: Any) -> dict[str, Any]:
    """As in a response of the Responses API."""
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": orjson.dumps(arguments).decode()}


def tool_use(call_id: str, name: str, /, **arguments: Any) -> dict[str, Any]:
    """As in an Anthropic message."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}

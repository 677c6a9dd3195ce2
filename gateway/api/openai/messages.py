"""Renders results as messages to append: role-`tool` messages, `function_call_output` items, `tool_result` blocks.

Pictures are content parts if the form has them. A tool's answer in chat.completions can only be text, so there the text
has a link to the picture's file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.api.file_links import Link
from gateway.api.tools.calls import Call, Shape
from gateway.api.tools.results import ToolResult

LIST_NAMES: Mapping[Shape, str] = {Shape.CHAT: "messages", Shape.RESPONSES: "output", Shape.ANTHROPIC: "content"}


def message(shape: Shape, call: Call, result: ToolResult, links: Sequence[Link]) -> dict[str, Any]:
    """One result in the form of its call. `links`: to the originals of its pictures."""
    return _FORMS[shape](call, result, links)


def _chat(call: Call, result: ToolResult, links: Sequence[Link]) -> dict[str, Any]:
    # A message of role `tool` holds text only: pictures are links to their files.
    lines = [result.text] if result.text else []
    lines += [link.line() for link in links]
    return {"role": "tool", "tool_call_id": call.id, "content": "\n".join(lines)}


def _responses(call: Call, result: ToolResult, _: Sequence[Link]) -> dict[str, Any]:
    output: str | list[dict[str, Any]] = result.text
    if result.images:
        output = [{"type": "input_text", "text": result.text}] if result.text else []
        output += [
            {"type": "input_image", "detail": "auto", "image_url": f"data:{image.mime};base64,{image.data}"}
            for image in result.images
        ]
    return {"type": "function_call_output", "call_id": call.id, "output": output}


def _anthropic(call: Call, result: ToolResult, _: Sequence[Link]) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": result.text}] if result.text else []
    content += [
        {"type": "image", "source": {"type": "base64", "media_type": image.mime, "data": image.data}}
        for image in result.images
    ]
    return {"type": "tool_result", "tool_use_id": call.id, "content": content, "is_error": result.failed}


_FORMS = {Shape.CHAT: _chat, Shape.RESPONSES: _responses, Shape.ANTHROPIC: _anthropic}

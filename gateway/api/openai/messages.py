"""Results as messages, ready to append: role-`tool` messages, `function_call_output` items, `tool_result` blocks.

Pictures are content parts where the form has them. Messages of chat.completions take text only in a tool's answer, so
there the picture is a file of the session and the text holds its link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.api.tools.calls import Call, Shape
from gateway.api.tools.results import ToolResult


@dataclass(frozen=True, slots=True)
class Link:
    """Where a client finds a picture. `path` is relative to the workspace."""

    url: str
    path: str
    mime: str
    size: int  # bytes

    def document(self, call_id: str) -> dict[str, Any]:
        """One entry of the answer's `files`."""
        return {"tool_call_id": call_id, "url": self.url, "path": self.path, "mime_type": self.mime, "bytes": self.size}


LIST_NAMES: Mapping[Shape, str] = {Shape.CHAT: "messages", Shape.RESPONSES: "output", Shape.ANTHROPIC: "content"}


def message(shape: Shape, call: Call, result: ToolResult, links: Sequence[Link]) -> dict[str, Any]:
    """One result in the form of its call. `links`: one per image where the form takes no images, else none."""
    return _FORMS[shape](call, result, links)


def takes_images(shape: Shape) -> bool:
    """Whether the form has a content part for a picture."""
    return shape is not Shape.CHAT


def _chat(call: Call, result: ToolResult, links: Sequence[Link]) -> dict[str, Any]:
    lines = [result.text] if result.text else []
    lines += [f"[{link.mime}, {link.size} bytes: {link.url} , in the workspace as {link.path}]" for link in links]
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

"""Parse a kernel's reply: each field checked and bounded in size. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from picod.interpreter.jupyter import Message

_MAX_TEXT_CHARS = 64 << 10  # of an error's message, or of one part of its traceback
_MAX_TRACEBACK_CHARS = 1 << 20  # of all parts together
_MAX_PARTS = 100  # of a traceback


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a run. `error` has name, value and traceback; `expressions` maps each name to its evaluated value."""

    error: dict[str, Any] | None
    execution_count: int | None
    expressions: Mapping[str, Any] = field(default_factory=dict)


def read_reply(message: Message) -> Reply:
    """Parse an execute_reply; malformed fields count as absent."""
    content = message.content
    if content is None:
        return Reply(
            {"name": "TooLarge", "value": "the end of the run was too large to be read", "traceback": []}, None
        )
    count = content.get("execution_count")
    expressions = content.get("user_expressions")
    error = None
    if content.get("status") != "ok":
        trace = content.get("traceback")
        error = {
            "name": _text(content.get("ename")) or "Error",
            "value": _text(content.get("evalue")),
            "traceback": _traceback(trace) if isinstance(trace, list) else [],
        }
    return Reply(
        error,
        count if isinstance(count, int) and not isinstance(count, bool) else None,
        expressions if isinstance(expressions, dict) else {},
    )


def _traceback(parts: list[Any]) -> list[str]:
    """Keep the first and the last frames when there are too many: in deep recursion those between repeat."""
    if len(parts) > _MAX_PARTS:
        first, last = parts[: _MAX_PARTS // 2], parts[-(_MAX_PARTS // 2) :]
        parts = [*first, f"[... {len(parts) - len(first) - len(last):,} frames left out ...]\n", *last]
    texts = [_text(part) for part in parts]
    # An equal share each, e.g. 10,485 characters of 100 frames: one frame with a huge line displaces no other.
    limit = _MAX_TRACEBACK_CHARS // max(1, len(texts))
    return [_shorten(text, limit) for text in texts] if sum(map(len, texts)) > _MAX_TRACEBACK_CHARS else texts


def _text(value: object) -> str:
    return _shorten(value, _MAX_TEXT_CHARS) if isinstance(value, str) else ""


def _shorten(text: str, limit: int) -> str:
    """Beginning and end of a text that is too long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}[... {len(text) - limit:,} characters left out ...]{text[-(limit - limit // 2) :]}"

"""What came of a call, and the words that a model reads of it. Pure.

A failure begins with `Error (KIND): message`, so that a model sees at once that, and why, its call failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

MAX_TEXT = 60_000  # characters of one answer: some 15,000 tokens, more than a model can use at once
MAX_TRACEBACK = 4_000  # characters; its end says what happened
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_DEFAULT_REPR = re.compile(
    r"<[\w.]+( object)?( at 0x[0-9a-fA-F]+)?>"
)  # IPython's Markdown, HTML, JSON and Latex have it
_MAX_DEFAULT_REPR = 300  # characters
_TEXT_TYPES = ("text/markdown", "text/latex", "application/json", "text/html", "image/svg+xml")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as base64 `data` of MIME type `mime`."""

    mime: str
    data: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a model reads of one call: text and pictures; `failed` where the call did not do what it asked."""

    text: str
    images: tuple[Image, ...] = ()
    failed: bool = False

    @property
    def size(self) -> int:
        """About how much memory it takes, in bytes."""
        return 512 + len(self.text) + sum(len(image.data) for image in self.images)


def failure(kind: str, message: str, detail: str = "") -> ToolResult:
    """A call that failed. `detail` is put below, its end kept if it is long."""
    text = f"Error ({kind}): {shortened(message, MAX_TRACEBACK)}"
    return ToolResult(f"{text}\n{_end_of(detail)}" if detail else text, failed=True)


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """Text of at most about `limit` characters: beginning and end, and how much was left out between them."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit:,} characters left out ...]\n{text[-tail:]}"


def from_execute(answer: Mapping[str, Any]) -> ToolResult:
    """Of picod's answer to /api/execute. Raises ValueError where it is none."""
    status = answer.get("exit_code")
    if not isinstance(status, int):
        raise ValueError("no exit code")  # a hostile sandbox may answer anything
    stdout, stderr = _text(answer.get("stdout")), _text(answer.get("stderr"))
    parts = _streams(stdout, stderr)
    for stream in ("stdout", "stderr"):
        if answer.get(f"{stream}_truncated"):
            kept = answer.get(f"{stream}_file")
            parts.append(f"[{stream} was cut off" + (f"; all of it is in {kept}]" if kept else "]"))
    body = "\n".join(parts)
    if status == 0:
        return ToolResult(body or "(no output)")
    kind = "timeout" if status == 124 and "timed out" in stderr else "exit_status"
    message = "the command was stopped" if kind == "timeout" else f"the command ended with exit status {status}"
    return ToolResult(f"Error ({kind}): {message}\n{body}".rstrip(), failed=True)


def from_run_code(answer: Mapping[str, Any]) -> ToolResult:
    """Of picod's answer to /api/run_code."""
    texts: list[str] = []
    images: list[Image] = []
    for result in answer.get("results") or ():
        if not isinstance(result, Mapping):
            continue
        found = next((mime for mime in IMAGE_TYPES if isinstance(result.get(mime), str)), None)
        if found is not None:
            images.append(Image(found, "".join(result[found].split())))
        else:
            texts.append(_plain(result))
    parts = _streams(_text(answer.get("stdout")), _text(answer.get("stderr")))
    parts += [shortened(text) for text in texts if text]
    parts += [f"[{note}]" for note in _notes(answer)]
    error = answer.get("error")
    if isinstance(error, Mapping):
        name, value = str(error.get("name") or "Error"), str(error.get("value") or "")
        told = failure(name, value, _traceback(error.get("traceback")))
        return ToolResult("\n".join([told.text, *parts]), tuple(images), failed=True)
    return ToolResult("\n".join(parts) or ("" if images else "(no output)"), tuple(images))


def _plain(result: Mapping[str, Any]) -> str:
    """The form of a result that reads best as text; the plain one, unless it names nothing but the object's class."""
    plain = result.get("text/plain")
    says_nothing = isinstance(plain, str) and len(plain) < _MAX_DEFAULT_REPR and _DEFAULT_REPR.fullmatch(plain)
    for mime in (*(_TEXT_TYPES if says_nothing else ()), "text/plain", *_TEXT_TYPES):
        value = result.get(mime)
        if isinstance(value, str):
            return value
        if value is not None and mime == "application/json":
            return orjson.dumps(value).decode()
    return f"[a result of type {', '.join(map(str, result))}]" if result else ""


def _notes(answer: Mapping[str, Any]) -> list[str]:
    notes = []
    for stream in ("stdout", "stderr"):
        if answer.get(f"{stream}_truncated"):
            kept = answer.get(f"{stream}_file")
            notes.append(f"{stream} was cut off" + (f"; all of it is in {kept}" if isinstance(kept, str) else ""))
    omitted = answer.get("results_omitted")
    if omitted or answer.get("results_truncated"):
        notes.append(f"results were too large: {omitted} left out" if omitted else "a result was too large and cut off")
    if isinstance(answer.get("notice"), str):
        notes.append(answer["notice"])
    restored = answer.get("restored")
    if isinstance(restored, Mapping):
        lost = restored.get("unsaved")
        names = [str(each.get("name") if isinstance(each, Mapping) else each) for each in lost or ()]
        if names:
            notes.append(f"the session slept; these variables could not be kept: {', '.join(names[:50])}")
    return notes


def _streams(stdout: str, stderr: str) -> list[str]:
    parts = []
    if stdout:
        parts.append(shortened(stdout.removesuffix("\n")))
    if stderr:
        parts.append("[stderr]\n" + shortened(stderr.removesuffix("\n"), MAX_TEXT // 4))
    return parts


def _traceback(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = "\n".join(str(line) for line in value)
    return _ANSI.sub("", value).lstrip("-\n ").rstrip() if isinstance(value, str) else ""


def _end_of(text: str) -> str:
    return text if len(text) <= MAX_TRACEBACK else f"[...]\n{text[-MAX_TRACEBACK:]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

"""Renders results of calls as the text that a model reads. Pure.

A failure begins with `Error (KIND): message`, so that the model sees at once that its call failed, and why.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

MAX_TEXT_CHARS = 60_000  # of one answer: about 15,000 tokens at 4 characters each
_SLACK_CHARS = 400  # for the lines that say how much is left out
_MAX_STDERR_CHARS = MAX_TEXT_CHARS // 4
_MAX_RESULTS_CHARS = MAX_TEXT_CHARS // 2  # of all values and notes
MAX_TRACEBACK_CHARS = 4_000
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
# IPython's Markdown, HTML, JSON and Latex have it: their content is in the other types.
_DEFAULT_REPR = re.compile(r"<[\w.]+( object)?( at 0x[0-9a-fA-F]+)?>")
_MAX_DEFAULT_REPR = 300  # characters
_TEXT_TYPES = ("text/markdown", "text/latex", "application/json", "text/html", "image/svg+xml")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: base64 `data` of MIME type `mime`."""

    mime: str
    data: str
    path: str = ""  # of its file in the workspace, where it has one already


@dataclass(frozen=True, slots=True)
class Original:
    """The file that a picture was made from. `path` is relative to the workspace, `size` in bytes.

    `is_known`: the caller named the file and gets its bytes unchanged, so the text need not mention it.
    """

    path: str
    mime: str
    size: int
    is_known: bool = False


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The answer to one call: text and pictures. `failed`: the call did not do what the model asked."""

    text: str
    images: tuple[Image, ...] = ()
    failed: bool = False
    originals: tuple[Original, ...] = ()
    whole: str | None = None  # all of a text that `text` shows in part, until originals.py has written it

    @property
    def size(self) -> int:
        """An estimate of the memory that it takes, in bytes."""
        return 512 + len(self.text) + sum(len(image.data) for image in self.images)


def failure(kind: str, message: str, detail: str = "") -> ToolResult:
    """The result of a call that failed. `detail` follows below the message, shortened in the middle."""
    text = f"Error ({kind}): {shortened(message, MAX_TRACEBACK_CHARS)}"
    return ToolResult(f"{text}\n{shortened(detail, MAX_TRACEBACK_CHARS)}" if detail else text, failed=True)


def shortened(text: str, limit: int) -> str:
    """Shorten text to about `limit` characters: head, tail, and between them how many characters are left out.

    The tail is twice as long as the head, because results and errors are at the end of long output.
    """
    if len(text) <= limit:
        return text
    head = limit // 3
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit:,} characters left out ...]\n{text[-tail:]}"


class _Text:
    """Builds an answer from parts, once shortened and once whole."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._whole: list[str] = []

    def add(self, text: str, limit: int = MAX_TEXT_CHARS, *, label: str = "", has_file: bool = False) -> None:
        """Add a part under an optional label; an empty text adds nothing.

        `has_file`: picod has written the whole part to a file, which another part names.
        """
        if text:
            shown = shortened(text, limit)
            self._shown += [*([label] if label else []), shown]
            self._whole += [*([label] if label else []), shown if has_file else text]

    def result(self, images: Sequence[Image] = (), *, failed: bool = False, empty: str = "(no output)") -> ToolResult:
        """Join the parts in order, within the bound of an answer."""
        whole = "\n".join(self._whole)
        shown = shortened("\n".join(self._shown), MAX_TEXT_CHARS + _SLACK_CHARS)
        return ToolResult(shown or empty, tuple(images), failed, whole=None if shown == whole else whole)


def from_execute(answer: Mapping[str, Any], tails: Mapping[str, str] | None = None) -> ToolResult:
    """Render picod's answer to /api/execute. Raises ValueError if it is malformed.

    `tails`: by stream, the end of output that picod cut off, read from the file that it names.
    """
    status = answer.get("exit_code")
    if not isinstance(status, int):
        raise ValueError("no exit code")  # a hostile sandbox may answer anything
    stderr = _text(answer.get("stderr"))
    text = _Text()
    if status != 0:
        kind = "timeout" if status == 124 and "timed out" in stderr else "exit_status"
        message = "the command was stopped" if kind == "timeout" else f"the command ended with exit status {status}"
        text.add(f"Error ({kind}): {message}")
    _add_streams(text, answer, MAX_TEXT_CHARS, tails or {})
    for stream in ("stdout", "stderr"):
        if answer.get(f"{stream}_truncated"):
            path = answer.get(f"{stream}_file")
            text.add(f"[{stream} was cut off" + (f"; all of it is in {path}]" if path else "]"))
    return text.result(failed=status != 0)


def from_run_code(answer: Mapping[str, Any]) -> ToolResult:
    """Render picod's answer to /api/run_code."""
    values: list[str] = []
    images: list[Image] = []
    for result in answer.get("results") or ():
        if not isinstance(result, Mapping):
            continue
        found = next((mime for mime in IMAGE_TYPES if isinstance(result.get(mime), str)), None)
        if found is not None:
            images.append(Image(found, "".join(result[found].split())))
        else:
            values.append(_plain(result))
    text = _Text()
    error = answer.get("error")
    if isinstance(error, Mapping):
        name, value = str(error.get("name") or "Error"), str(error.get("value") or "")
        text.add(f"Error ({name}): {value}", MAX_TRACEBACK_CHARS)
        text.add(_traceback(error.get("traceback")), MAX_TRACEBACK_CHARS)
    shown = "\n".join(value for value in values if value)
    left = MAX_TEXT_CHARS - min(len(shown), _MAX_RESULTS_CHARS) - (MAX_TRACEBACK_CHARS if error else 0)
    _add_streams(text, answer, left, {})
    text.add(shown, _MAX_RESULTS_CHARS)
    text.add("\n".join(f"[{note}]" for note in _notes(answer)), MAX_TRACEBACK_CHARS)
    return text.result(images, failed=isinstance(error, Mapping), empty="" if images else "(no output)")


def _add_streams(text: _Text, answer: Mapping[str, Any], limit: int, tails: Mapping[str, str]) -> None:
    """Add both streams within `limit` characters; stdout gets what stderr leaves."""
    stderr_limit = min(limit // 2, _MAX_STDERR_CHARS)
    stdout_limit = limit - min(len(_text(answer.get("stderr"))), stderr_limit)
    for stream, most, label in (("stdout", stdout_limit, ""), ("stderr", stderr_limit, "[stderr]")):
        printed = _text(answer.get(stream)).removesuffix("\n")
        if tail := tails.get(stream, "").removesuffix("\n"):
            printed += f"\n[... the middle is left out; the end follows ...]\n{tail}"
        text.add(printed, most, label=label, has_file=bool(answer.get(f"{stream}_file")))


def _plain(result: Mapping[str, Any]) -> str:
    """The most readable text of a result: text/plain, unless that is a default repr such as `<C object at 0x7f>`."""
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
            notes.append(f"the session was hibernated; these variables are lost: {', '.join(names[:50])}")
    return notes


def _traceback(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = "\n".join(str(line) for line in value)
    return _ANSI.sub("", value).lstrip("-\n ").rstrip() if isinstance(value, str) else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

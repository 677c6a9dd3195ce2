"""Finding and replacing texts of a file, as Open Terminal's `replace_file_content` does. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.errors import ParamError
from gateway.core.errors import BadRequestError

_MAX_EDITS = 64
_MAX_LINE = 1 << 53
_BLOCK = 64 << 10


def edited(text: str, replacements: Any, most: int) -> str:
    """The text after all replacements, one after another. Raises ParamError, BadRequestError; `most` bytes of UTF-8."""
    if not isinstance(replacements, list) or not 0 < len(replacements) <= _MAX_EDITS:
        raise ParamError("replacements", f"expected a list of 1 to {_MAX_EDITS} edits")
    for number, each in enumerate(replacements):
        if not isinstance(each, dict):
            raise ParamError(f"replacements[{number}]", "expected an object with target and replacement")
        text = _replaced(text, each, f"replacements[{number}]")
        if len(text) > most:  # each may make it longer than the one before
            raise BadRequestError(f"the file would be larger than {most} bytes")
    return text


def _replaced(text: str, edit: Mapping[str, Any], where: str) -> str:
    target, replacement = edit.get("target"), edit.get("replacement")
    if not isinstance(target, str) or not target or not isinstance(replacement, str):
        raise ParamError(where, "expected target and replacement as texts")
    begin, end = _range(text, _line(edit, "start_line", where), _line(edit, "end_line", where))
    region = text[begin:end]
    found = region.count(target)
    if not found:
        raise BadRequestError(f"Target string not found: {target[:100]!r}")
    if found > 1 and edit.get("allow_multiple") is not True:
        raise BadRequestError(f"Found {found} occurrences of target string but allow_multiple is false")
    if len(region) + found * (len(replacement) - len(target)) > 64 << 20:  # before it is made: a bomb of replacements
        raise BadRequestError(f"{where}: the file would be too large")
    return text[:begin] + region.replace(target, replacement) + text[max(begin, end) :]


def _line(edit: Mapping[str, Any], name: str, where: str) -> int | None:
    value = edit.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_LINE):
        raise ParamError(f"{where}.{name}", "expected the number of a line, from 1 on")
    return value


def _range(text: str, first: int | None, last: int | None) -> tuple[int, int]:
    """Where the lines from `first` to `last` begin and end."""
    if first is None and last is None:
        return 0, len(text)
    begin = line_offset(text, (first or 1) - 1)
    return begin, len(text) if last is None else max(begin, line_offset(text, last))


def line_offset(text: str, lines: int) -> int:
    """Where a text goes on after that many lines; its length if it has fewer.

    Counted in blocks. Rejected: splitlines, which makes 4 million texts of 8 MiB.
    """
    position = 0
    while lines > 0 and position < len(text):
        found = text.count("\n", position, position + _BLOCK)
        if found < lines:
            lines, position = lines - found, position + _BLOCK
            continue
        for _ in range(lines):
            position = text.index("\n", position) + 1
        return position
    return min(position, len(text))

"""Bounds on the results (text, pictures, JSON) that one run may show. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_RESULTS = 256
MAX_RESULT_BYTES = 16 << 20  # of all results together, as JSON
_MAX_DEPTH = 100  # of JSON: what readers of it take, with room for what it is put into
_HUGE = 10**308  # about the end of a double's range, beyond which many readers of JSON fail
_MANY_DIGITS, _TO_ZEROS = b"0" * 309, bytes.maketrans(b"123456789", b"0" * 9)
_MAX_TEXT_CHARS = 1 << 20  # characters of one text representation
_CUTTABLE = (
    "text/plain",
    "text/markdown",
    "text/latex",
)  # half of these is of use; half of HTML or of a picture is not


class ResultBounds:
    """Cuts or omits results that exceed the bounds, and records what was cut and omitted."""

    def __init__(self) -> None:
        self.truncated: list[dict[str, object]] = []
        self.omitted = 0
        self._count = 0
        self._bytes = 0

    @property
    def size(self) -> int:
        """Bytes of what was admitted."""
        return self._bytes

    def admit(self, data: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The part of a result that fits the bounds, or None if nothing does."""
        if data is None or self._count >= MAX_RESULTS:
            self.omitted += 1
            return None
        kept: dict[str, Any] = {}
        for mime, value in data.items():
            size = _size(value)
            if size is None:
                continue
            cut = min(size, _MAX_TEXT_CHARS) if isinstance(value, str) and mime in _CUTTABLE else size
            # The other forms are still tried: a picture may be too large, and its text/plain still fit.
            if self._bytes + cut > MAX_RESULT_BYTES:
                self._note(mime, size, 0)
                continue
            if cut < size:
                self._note(mime, size, cut)
            kept[mime] = value[:cut] if cut < size else value
            self._bytes += cut
        if not kept and data:
            self.omitted += 1
            return None
        self._count += 1
        return kept

    def release(self, kept: Mapping[str, Any]) -> None:
        """Stop counting an admitted result, which is not part of the answer after all."""
        self._count -= 1
        self._bytes -= sum(_size(value) or 0 for value in kept.values())

    def _note(self, mime: str, size: int, kept: int) -> None:
        if len(self.truncated) < MAX_RESULTS:
            self.truncated.append({"result": self._count, "mime": mime, "size": size, "kept": kept})

    def fields(self) -> dict[str, object]:
        """Fields of the answer that say what is missing; empty when nothing is."""
        fields: dict[str, object] = {}
        if self.truncated:
            fields["results_truncated"] = self.truncated
        if self.omitted:
            fields["results_omitted"] = self.omitted
        return fields


def _size(value: Any) -> int | None:
    """Characters of a text, or of a value as JSON; None for a value that JSON cannot express."""
    if isinstance(value, str):
        return len(value)
    text = shareable_json(value)
    return None if text is None else len(text)


def shareable_json(value: Any) -> str | None:
    """A value as JSON that any reader takes; None for what cannot be written so."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    # The searches are in C, and hardly any text needs the walk.
    digits = text.encode().translate(_TO_ZEROS)  # not by a regular expression, which tries 309 from each digit anew
    suspect = text.count("[") + text.count("{") > _MAX_DEPTH or _MANY_DIGITS in digits
    return None if suspect and not _is_shareable(value) else text


def _is_shareable(value: Any) -> bool:
    """Whether it has at most _MAX_DEPTH levels, and only numbers that a double can hold about."""
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        if any(isinstance(each, int) and abs(each) >= _HUGE for each in level):
            return False
        containers = [each for each in level if isinstance(each, dict | list)]
        level = [item for each in containers for item in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return True
    return False

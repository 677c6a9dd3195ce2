"""Counts the steps that a backtracking engine takes to match a regular expression, by walking the parsed pattern.

Time is noisy and `re` counts nothing, so growth is measured in steps: each element of the pattern that is tried at a
position is one. Knows what patterns of this project use; anything else raises NotImplementedError.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

# By name: typeshed leaves out the parser's modules.
sre: Any = import_module("re._constants")
parser: Any = import_module("re._parser")
_Continue = Callable[[int], bool]
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdigit,
    sre.CATEGORY_NOT_DIGIT: lambda char: not char.isdigit(),
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
    sre.CATEGORY_WORD: lambda char: char.isalnum() or char == "_",
    sre.CATEGORY_NOT_WORD: lambda char: not (char.isalnum() or char == "_"),
}
_SINGLE = frozenset((sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN))  # what matches one character
_ANCHORS_AT_START = (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)


class TooManyStepsError(Exception):
    """Matching has taken more steps than the budget."""


class StepCounter:
    """A pattern, and the steps that matching it takes."""

    def __init__(self, pattern: re.Pattern[Any], budget: int = 200_000) -> None:
        text = pattern.pattern
        self.source = text.decode("latin-1") if isinstance(text, bytes) else text
        self._tree = list(parser.parse(self.source, pattern.flags & ~re.UNICODE))
        self._fold = bool(pattern.flags & re.IGNORECASE)
        self._budget = budget
        self._steps = 0
        self._text = ""
        self._known: dict[tuple[int, str], bool] = {}  # by class and character

    def steps(self, text: str, method: str) -> int:
        """Steps to match all of `text` (`fullmatch`), its start (`match`), or anything in it (`search` and the like).

        Raises TooManyStepsError.
        """
        self._text, self._steps = text.lower() if self._fold else text, 0
        start = 0
        while start <= len(text):
            ends: list[int] = []

            def finish(end: int, ends: list[int] = ends) -> bool:
                if method == "fullmatch" and end != len(text):
                    return False
                ends.append(end)
                return True

            found = self._match(self._tree, 0, start, finish)
            if method in ("fullmatch", "match"):
                break
            start = max(ends[0], start + 1) if found else start + 1
        return self._steps

    def alphabet(self) -> list[str]:
        """A character for each literal and each class in the pattern, the first of a range and its last."""
        return sorted(set(self._characters(self._tree)))[:10]

    def _characters(self, items: Any) -> Iterator[str]:
        for op, value in items:
            if op in (sre.LITERAL, sre.NOT_LITERAL):
                yield chr(value)
            elif op is sre.IN:
                yield next(
                    char for char in map(chr, (*range(33, 127), *range(33), *range(127, 256))) if self._in(value, char)
                )
            elif op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
                yield from self._characters(value[2])
            elif op is sre.SUBPATTERN:
                yield from self._characters(value[3])
            elif op in (sre.ASSERT, sre.ASSERT_NOT):
                yield from self._characters(value[1])
            elif op is sre.BRANCH:
                for branch in value[1]:
                    yield from self._characters(branch)

    def _match(self, items: Any, index: int, at: int, then: _Continue) -> bool:
        # Single characters in a loop and not by a call each: they are most of the steps.
        while True:
            self._steps += 1
            if self._steps > self._budget:
                raise TooManyStepsError(self.source)
            if index == len(items):
                return then(at)
            op, value = items[index]
            if op not in _SINGLE:
                break
            if at == len(self._text) or not self._one(op, value, self._text[at]):
                return False
            index, at = index + 1, at + 1
        rest: _Continue = lambda end: self._match(items, index + 1, end, then)  # noqa: E731 - the continuation
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeat(value, 0, at, rest)
        if op is sre.SUBPATTERN:
            return self._match(value[3], 0, at, rest)
        if op is sre.BRANCH:
            return any(self._may_begin(branch, at) and self._match(branch, 0, at, rest) for branch in value[1])
        if op in (sre.ASSERT, sre.ASSERT_NOT):
            direction, body = value
            begin = at if direction > 0 else at - body.getwidth()[1]  # look-behind has one width
            seen = begin >= 0 and self._match(body, 0, begin, lambda end: direction > 0 or end == at)
            return seen is (op is sre.ASSERT) and rest(at)
        if op is sre.AT:
            return self._at(value, at) and rest(at)
        raise NotImplementedError(f"{op} in {self.source!r}")

    def _may_begin(self, branch: Any, at: int) -> bool:
        """Whether the first element of an alternative matches; one that does not is a step, and needs no call."""
        if not len(branch) or branch[0][0] not in _SINGLE:
            return True
        op, value = branch[0]
        if at < len(self._text) and self._one(op, value, self._text[at]):
            return True
        self._steps += 1
        return False

    def _at(self, value: Any, at: int) -> bool:
        if value in (sre.AT_BOUNDARY, sre.AT_NON_BOUNDARY):
            sides = [
                0 <= index < len(self._text) and _CATEGORIES[sre.CATEGORY_WORD](self._text[index])
                for index in (at - 1, at)
            ]
            return (sides[0] != sides[1]) is (value is sre.AT_BOUNDARY)
        return at == 0 if value in _ANCHORS_AT_START else at == len(self._text)

    def _repeat(self, value: Any, count: int, at: int, then: _Continue) -> bool:
        least, most, body = value
        if count < most:

            def again(end: int) -> bool:
                return end != at and self._repeat(value, count + 1, end, then)

            if self._match(body, 0, at, again):
                return True
        return count >= least and then(at)

    def _one(self, op: Any, value: Any, char: str) -> bool:
        if op is sre.LITERAL:
            return char == (chr(value).lower() if self._fold else chr(value))
        if op is sre.NOT_LITERAL:
            return char != chr(value)
        if op is sre.ANY:
            return True
        # Asked a million times for a dozen characters. The parsed pattern, which the counter holds, is never another
        # one of the same id.
        key = id(value), char
        if (known := self._known.get(key)) is None:
            known = self._known[key] = self._in(value, char)
        return known

    def _in(self, members: Any, char: str) -> bool:
        negated = bool(members) and members[0][0] is sre.NEGATE
        for op, value in members:
            found = (
                (op is sre.LITERAL and char == chr(value))
                or (op is sre.RANGE and value[0] <= ord(char) <= value[1])
                or (op is sre.CATEGORY and _CATEGORIES[value](char))
            )
            if found:
                return not negated
        return negated


def worst_growth(pattern: re.Pattern[Any], method: str) -> tuple[float, str]:
    """The largest factor by which steps grow each time a repeated piece is repeated twice as often, and that piece.

    Of two doublings the lesser counts: a repeat that is bounded, such as {0,61}, grows in one of them at most.
    """
    sys.setrecursionlimit(max(20_000, sys.getrecursionlimit()))  # each character of a repeat is some ten calls
    counter = StepCounter(pattern)
    letters = counter.alphabet()
    pieces = [*letters, *map("".join, itertools.permutations(letters, 2))]
    worst = (0.0, "")
    for start, piece, end in itertools.product(("", *letters), pieces, ("", "\x00")):
        try:
            some, more = (counter.steps(start + piece * size + end, method) for size in (20, 40))
            # The second doubling is most of the work, and cannot matter where the first is no worse than another.
            if more / some > worst[0]:
                most = counter.steps(start + piece * 80 + end, method)
                worst = max(worst, (min(more / some, most / more), piece))
        except TooManyStepsError:
            return float("inf"), piece
    return worst

"""Splits a command into words as a POSIX shell does, in time that grows with its length alone. Pure.

shlex.split adds to a word one character at a time and copies it each time: a word of a million takes it a minute, in
which a gateway would serve nobody. Its rules are kept; a property test holds the two against each other.
"""

from __future__ import annotations

import re

# One piece of a word, or the space between two. What a quote is not closed of fits none of them.
_PIECE = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<plain>[^ \t\r\n'\"\\]+)"
    r"|'(?P<single>[^']*)'"
    r'|"(?P<double>[^"\\]*(?:\\.[^"\\]*)*)"'
    r"|\\(?P<one>.)",
    re.DOTALL,
)
_ESCAPED = re.compile(r'\\(["\\])')  # between double quotes a backslash is one, except before these


def split_words(command: str) -> list[str]:
    """The words of a command. Raises ValueError for a quote that is not closed, or a backslash at the end."""
    words: list[str] = []
    pieces: list[str] = []
    is_word = False  # an empty pair of quotes is a word too
    position = 0
    while position < len(command):
        found = _PIECE.match(command, position)
        if found is None:
            raise ValueError("No escaped character" if command[position] == "\\" else "No closing quotation")
        position = found.end()
        if found.lastgroup == "space":
            if is_word:
                words.append("".join(pieces))
            pieces, is_word = [], False
            continue
        text = found[found.lastgroup or 0]
        pieces.append(_ESCAPED.sub(r"\1", text) if found.lastgroup == "double" else text)
        is_word = True
    return [*words, "".join(pieces)] if is_word else words

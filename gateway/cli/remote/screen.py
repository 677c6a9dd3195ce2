"""What commands show: tables, JSON, YAML, names. Whatever a gateway or a sandbox says is made harmless first.

Names of files and processes, metadata and error texts are written by code in sandboxes. A terminal obeys escape
sequences in what it is shown (it retitles windows, answers as if typed, hides text), so every character that is not
printable is shown as its escape: `\\x1b`. JSON and YAML escape the same characters by their own rules. Only what a
person asked to run (run, exec, shell) prints raw.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

_MAX_CELL = 200
_SHORT, _LEAST, _GAP = 40, 12, 2  # of a cell that is shown whole; of another at least; between two: characters


class Format(StrEnum):
    """How results are printed: columns for people, the rest for programs."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


Output = Annotated[Format, typer.Option("--output", "-o", help="table, json, yaml, or name: ids alone, one a line.")]


def plain(value: object) -> str:
    """The value as one line that no terminal obeys, of at most a few hundred characters."""
    text = "" if value is None else str(value)
    text = text if len(text) <= 8 * _MAX_CELL else text[: 8 * _MAX_CELL] + "..."
    # Nearly all are, and this looks at a text at once: a table of 1,000 sessions has 7,000 cells.
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def plain_lines(text: str) -> str:
    """A text of several lines, of which no terminal obeys more than line ends and tabs."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        # A carriage return would let a line write over what stands before it; of a line end of Windows it is no loss.
        each if each.isprintable() or each in "\n\t" else "" if each == "\r" else each.encode("unicode_escape").decode()
        for each in text
    )


def show(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, Callable[[Mapping[str, Any]], object]],
    form: Format,
    *,
    name: str | Callable[[Mapping[str, Any]], object] = "id",
    one: bool = False,
    empty: str = "",
) -> None:
    """Print documents. `columns`: title -> cell, of a table; `name`: what `-o name` prints, a field or a function.

    `one`: the only row is the answer, not a list of one. `empty`: said in place of a table without rows.
    """
    if form is Format.TABLE:
        # On standard error, as kubectl does: a script that counts lines counts none.
        if empty and not rows:
            note(empty)
        else:
            print_table(rows, columns)
    elif form is Format.NAME:
        for row in rows:
            print(plain(row[name] if isinstance(name, str) else name(row)))
    else:
        print_document(rows[0] if one else list(rows), form)


def print_document(document: Any, form: Format) -> None:
    """As JSON or YAML, in ASCII: what is not printable is escaped by both."""
    if form is Format.YAML:
        import yaml

        print(yaml.safe_dump(document, sort_keys=False, allow_unicode=False), end="")
    else:
        print(json.dumps(document, indent=2))


def print_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], object]]
) -> None:
    """A table on standard output; in full where that is no terminal."""
    from rich.console import Console

    # No markup: [red] in a session's metadata is text.
    console = Console(soft_wrap=False, highlight=False, markup=False)
    # Narrower than its titles a table has columns without anything in them: the terminal wraps the lines instead.
    least = sum(min(len(title), _LEAST) for title in columns) + _GAP * (len(columns) - 1)
    if not console.is_terminal or console.width < least:
        print_plain_table(rows, columns)
    else:
        console.print(table_of(rows, columns))


def print_plain_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], object]]
) -> None:
    """Columns of spaces, for programs and files: nothing is cut."""
    cells = [list(columns), *([plain(cell(row)) for cell in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def table_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], object]]) -> Any:
    """The table as rich renders it. What is short is shown whole; long cells share what is left of the line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [[plain(cell(row))[:_MAX_CELL] for cell in columns.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    # rich would take from every column alike where a line is too long, and show "1" as an ellipsis beside a sentence.
    long = sum(width > _SHORT for width in widths)
    taken = sum(width for width in widths if width <= _SHORT) + _GAP * (len(widths) - 1)
    left = max(_LEAST, (Console().width - taken) // max(long, 1))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in columns:
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(
            *(
                Text(
                    _cut(text, left if width > _SHORT else width),
                    style=_STYLES.get(text, "") if title == "STATE" else "",
                )
                for title, text, width in zip(columns, row, widths, strict=True)
            )
        )
    return table


_STYLES = {"active": "green", "hibernated": "blue", "lost": "red", "terminated": "dim", "waking": "yellow"}


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def age(moment: str | None) -> str:
    """How long ago an RFC 3339 time was, as `span` writes it."""
    if not moment:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    return span(seconds)


def span(seconds: float) -> str:
    """A duration in its largest unit, and in the next one where that is no trifle: 45s, 1m29s, 12m, 3h5m, 2d."""
    whole = int(seconds)
    # Cut and not rounded, as kubectl and docker do it: after 23 h 40 min a session is 23h old, and not a day.
    for unit, size, less, smaller in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            count, rest = divmod(whole, size)
            return f"{count}{unit}{rest // smaller}{less}" if count < 10 and rest >= smaller else f"{count}{unit}"
    return f"{whole}s"


def write_answer(chunks: Iterable[bytes]) -> None:
    """Print what an agent answers: byte for byte into a pipe or a file, on a terminal as text that it does not obey."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in chunks:
        if sys.stdout.isatty():
            sys.stdout.write(plain_lines(decoder.decode(chunk)))
            sys.stdout.flush()
        else:
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def note(text: str) -> None:
    """A remark for the person, on standard error."""
    print(plain(text), file=sys.stderr)

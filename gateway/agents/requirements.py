"""The requirements of an agent: checked line by line before anything is installed, and named when that fails. Pure.

Only packages of the gateway's index are installed, so a line is a name with versions, extras, a marker and hashes. An
option (`--index-url`, `-r`), a path or a URL is refused: the sandbox that installs reaches the index alone, and a path
would be one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.core.errors import BadRequestError, UnavailableError, WakegateError

MAX_CHARS = 64 << 10
MAX_LINES = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH = re.compile(r"--hash=[a-z0-9]{1,16}:[0-9a-f]{1,256}")
# What pip says of a package that the index has not, or not in that version.
_MISSING = re.compile(r"No matching distribution found for ([A-Za-z0-9][A-Za-z0-9._-]{0,127})")
# And of an index that it cannot reach, which it then takes for one that has nothing.
_NOTHING_SEEN = "(from versions: none)"
_BROKEN, _BROKEN_END, _BROKEN_CHARS = "after connection broken by '", "': /", 1000
_OBJECT = re.compile(r"<[^<>]{1,200}>(?:: |, )?")  # <pip._vendor... object at 0x7f...>
_SHOWN_CHARS = 800


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of a requirements.txt.

    `line` counts from 1 in the file as it was sent; `text` is what pip reads, on one line.
    """

    line: int
    name: str
    text: str


def read_requirements(text: str) -> tuple[Requirement, ...]:
    """The requirements of a file. Raises BadRequestError, which names the line."""
    if len(text) > MAX_CHARS or text.count("\n") > MAX_LINES:
        raise BadRequestError(f"requirements: larger than {MAX_CHARS} characters or {MAX_LINES} lines")
    found = []
    for number, line in _joined(text):
        # A space before the # as in pip's own format: a # inside a word belongs to a URL's fragment.
        words = line.split(" #", 1)[0].split()
        if not words or words[0].startswith("#"):
            continue
        hashes = [word for word in words if word.startswith("--hash=")]
        package = " ".join(word for word in words if not word.startswith("--hash="))
        name = _NAME.match(package)
        if package.startswith("-") or " --" in package:
            raise _wrong(number, line, "options are not taken; packages come from the gateway's index")
        # `@` would be a direct URL (PEP 508), a backslash a path of another system; unprintable text could hide either
        # in a log.
        if name is None or "/" in package or "@" in package or "\\" in package or not package.isprintable():
            raise _wrong(number, line, "expected a package of the index, such as fastapi==0.115.0; not a path or a URL")
        if not all(_HASH.fullmatch(each) for each in hashes):
            raise _wrong(number, line, "expected --hash=sha256:HEX")
        found.append(Requirement(number, name[0], " ".join((package, *hashes))))
    return tuple(found)


def explain(requirements: Sequence[Requirement], output: str) -> WakegateError:
    """Why pip failed, with the line that names the package where that can be told."""
    # Found without an expression: over output that is made to be hostile one takes a tenth of a second.
    broken = output.rpartition(_BROKEN)[2][:_BROKEN_CHARS] if _BROKEN in output else ""
    if _BROKEN_END in broken and _NOTHING_SEEN in output:
        why = _OBJECT.sub("", broken.partition(_BROKEN_END)[0])[:_SHOWN_CHARS]
        return UnavailableError(f"requirements: the gateway's package index (--package-index) is not reached: {why}")
    last = [line.strip() for line in output.splitlines() if line.strip()]
    # pip prints many lines of progress and of advice; the person needs the one that says what failed.
    # `ERROR: Exception:` alone is a traceback of its own, of which the last line says something.
    errors = [line for line in last if line.startswith("ERROR:") and line != "ERROR: Exception:"] or last[-3:]
    printed = " ".join(errors)[:_SHOWN_CHARS] or "pip printed no error"
    missing = _MISSING.search(output)
    if missing is not None:
        for each in requirements:
            if _normal(each.name) == _normal(missing[1]):
                return BadRequestError(f"requirements, line {each.line}, {each.text[:200]!r}: {printed}")
    return BadRequestError(f"requirements: {printed}")


def _joined(text: str) -> list[tuple[int, str]]:
    """(number of the first, line) of lines that a backslash at the end continues."""
    found: list[tuple[int, str]] = []
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        begun = begun or number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            found.append((begun, " ".join(parts)))
            begun, parts = 0, []
    return [*found, (begun, " ".join(parts))] if parts else found


def _normal(name: str) -> str:
    """Names that an index takes for one (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-")


def _wrong(number: int, line: str, why: str) -> BadRequestError:
    return BadRequestError(f"requirements, line {number}, {line.strip()[:200]!r}: {why}")

"""Checking files of a trail: line by line, in constant memory, up to the first thing that is wrong with each chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.chain import MAX_LINE_BYTES, Position, decode, is_signed


@dataclass
class Report:
    """What was found in one chain. `problem`: the first thing that is wrong; empty: nothing is."""

    chain: str = ""
    files: list[Path] = field(default_factory=list)
    first_seq: int = 0
    lines: int = 0
    events: int = 0
    heads: int = 0
    recovered: int = 0
    lost: int = 0  # events that gap lines report
    unsigned: int = 0  # lines that follow the latest head
    signed_until: str = ""  # the time of the latest head
    key: str = ""  # in hexadecimal; of `open` lines, or the one that was given
    problem: str = ""


@dataclass(frozen=True, slots=True)
class _Line:
    file: Path
    number: int  # from 1
    text: bytes  # without its newline
    is_whole: bool  # it has one

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}"


class _Torn:
    """Lines that do not go on with the chain, until one explains them. State: their hash and size so far."""

    def __init__(self, line: _Line, problem: str) -> None:
        self.line = line
        self.problem = problem
        self._hash = sha256(line.text)
        self._bytes = len(line.text)

    def add(self, line: _Line) -> None:
        self._hash.update(b"\n" + line.text)
        self._bytes += 1 + len(line.text)

    def is_explained_by(self, fields: dict[str, Any] | None, due: Position) -> bool:
        """Whether a line is a `recovered` one that describes exactly these bytes."""
        return (
            fields is not None
            and fields["type"] == "recovered"
            and (fields["seq"], fields["prev"]) == (due.seq, due.prev)
            and fields.get("torn_bytes") == self._bytes
            and fields.get("torn_sha256") == self._hash.hexdigest()
        )


class TamperedError(Exception):
    """The trail is not as it was written; the text says what is wrong, and in which line."""


def verify(files: Sequence[Path], public_key: Ed25519PublicKey | None, heads: Iterable[bytes] = ()) -> list[Report]:
    """A report for each chain of which there are files, given in any order.

    `public_key`: the one that must have signed; None takes the one that the files name, which proves only that nobody
    without that key changed them. `heads`: lines of signed heads that are known from elsewhere, and have to be there.
    Raises OSError for a file that cannot be read.
    """
    groups: dict[str, list[tuple[int, Path]]] = {}
    for file in dict.fromkeys(files):
        opening = _opening(file)
        chain, seq = (str(opening.get("chain")), opening["seq"]) if opening else ("", 0)
        groups.setdefault(chain, []).append((seq, file))
    anchors = {str(fields.get("chain")): (fields["seq"], line) for line in heads if (fields := decode(line))}
    reports = []
    for chain, members in groups.items():
        # By the number of their first lines: names and times of files can be changed without a trace.
        ordered = [file for _, file in sorted(members)]
        report = Report(chain=chain, files=ordered)
        reports.append(report)
        try:
            _Checker(report, public_key, anchors.get(chain)).check(_lines_of(ordered))
        except TamperedError as error:
            report.problem = str(error)
    return reports


class _Checker:
    """One pass over a chain. State: where it stands, and the torn line that the next one may explain."""

    def __init__(self, report: Report, public_key: Ed25519PublicKey | None, anchor: tuple[int, bytes] | None) -> None:
        self._report = report
        self._key = public_key
        self._anchor = anchor
        self._position: Position | None = None
        self._latest: _Line | None = None
        self._torn: _Torn | None = None

    def check(self, lines: Iterator[_Line]) -> None:
        """Raises TamperedError at the first line that is not as it was written."""
        for line in lines:
            if self._latest is None or line.file != self._latest.file:
                self._check_opening(line)
            self._check_line(line)
        if self._torn is not None:
            raise TamperedError(f"{self._torn.line}: {self._torn.problem}")
        if self._anchor is not None and self._position is not None and self._anchor[0] >= self._position.seq:
            raise TamperedError(
                f"{self._latest}: the end is missing: line {self._anchor[0]} of the chain was signed, and the last one"
                f" here is {self._position.seq - 1}"
            )

    def _check_opening(self, line: _Line) -> None:
        fields = decode(line.text)
        if fields is None or fields["type"] != "open":
            raise TamperedError(f"{line}: is not the first line of a file: it was changed, or lines before it were cut")
        self._report.key = str(fields.get("key", ""))
        if self._position is None:
            self._report.first_seq = fields["seq"]
            self._position = Position(fields["seq"], fields["prev"])
            if not fields["seq"] and fields["prev"] != Position().prev:
                raise TamperedError(f"{line}: was changed")
        if self._key is None:
            try:
                self._key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self._report.key))
            except ValueError:
                raise TamperedError(f"{line}: was changed: it names no key") from None

    def _check_line(self, line: _Line) -> None:
        assert self._position is not None
        fields = decode(line.text)
        if self._torn is not None and self._torn.is_explained_by(fields, self._position):
            self._torn = None
        problem = "" if self._torn is not None else self._mismatch(line, fields)
        if self._torn is not None:
            self._torn.add(line)
        elif problem:
            # A gateway that was killed may have left it so, which a line after it then says.
            self._torn = _Torn(line, problem)
        else:
            assert fields is not None
            self._count(line, fields)
            self._position = self._position.after(line.text)
        self._latest = line

    def _mismatch(self, line: _Line, fields: dict[str, Any] | None) -> str:
        """What keeps a line from being the next one of the chain; empty if it is."""
        assert self._position is not None
        if not line.is_whole:
            return "the end is missing: the last line is torn off"
        if fields is None:
            return "was changed: it is not a line of an audit trail"
        due = self._position
        # In this order, so that the message names the cause: a gap also breaks `prev`.
        if fields["seq"] > due.seq:
            return f"lines {due.seq} to {fields['seq'] - 1} of the chain were removed before it"
        if fields["seq"] < due.seq:
            return f"is line {fields['seq']} of the chain, at the place of line {due.seq}: lines were moved or repeated"
        if fields["prev"] != due.prev:
            return f"does not follow from what is before it: {self._latest or 'it'} was changed, or this line"
        return ""

    def _count(self, line: _Line, fields: dict[str, Any]) -> None:
        report = self._report
        report.lines += 1
        report.unsigned += 1
        match fields["type"]:
            case "event":
                report.events += 1
            case "gap":
                report.lost += int(fields.get("lost", 0))
            case "head":
                assert self._key is not None
                if not is_signed(line.text, self._key):
                    raise TamperedError(f"{line}: the signature is not that of the key: it was changed or forged")
                report.heads += 1
                report.unsigned = 0
                report.signed_until = str(fields.get("time", ""))
            case "recovered":
                report.recovered += 1
                if "cut_after" in fields:
                    raise TamperedError(
                        f"{line}: when the gateway started again, lines up to {fields['cut_after']} that had been"
                        " signed were missing"
                    )
        if self._anchor is not None and self._anchor[0] == fields["seq"] and self._anchor[1] != line.text:
            raise TamperedError(f"{line}: is not the signed head that is known of this place: lines were replaced")


def _opening(file: Path) -> dict[str, Any] | None:
    with open(file, "rb") as opened:
        fields = decode(opened.readline(MAX_LINE_BYTES + 1).rstrip(b"\n"))
    return fields if fields is not None and fields["type"] == "open" else None


def _lines_of(files: Sequence[Path]) -> Iterator[_Line]:
    for file in files:
        with open(file, "rb") as opened:
            number = 0
            while text := opened.readline(MAX_LINE_BYTES + 2):
                number += 1
                yield _Line(file, number, text.removesuffix(b"\n"), text.endswith(b"\n"))
            if not number:
                raise TamperedError(f"{file}: is empty: its lines were cut")

"""`wakegate audit key` and `wakegate audit verify`: what somebody needs who is to believe an audit trail."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.keys import key_folder, public_hex, public_pem, read_key, read_public_key
from gateway.audit.verify import Report, verify
from gateway.core.errors import SettingsError

OK, TAMPERED, UNSIGNED = 0, 1, 3
EXIT_STATUSES = (
    "The exit status is 0 when everything is there and signed, 1 when something was changed, removed or moved, 2 when a"
    " file cannot be read, 3 when all is well but the last lines are not signed yet: the gateway runs, was killed a"
    " moment after, or the end was cut off behind a signed line."
)


def show_key(state_dir: Path) -> str:
    """The public key of the gateway's trail. Raises SettingsError, also where no gateway has made one."""
    return public_pem(read_key(state_dir).public_key()).rstrip("\n")


def verify_files(arguments: argparse.Namespace, state_dir: Path) -> tuple[Sequence[str], int]:
    """Lines of the report, and the exit status. Raises SettingsError for what cannot be read."""
    folder = key_folder(state_dir)
    key: Ed25519PublicKey | None = None
    if arguments.public_key is not None:
        key = read_public_key(Path(arguments.public_key))
    elif (folder / "key.pem").exists():
        key = read_key(state_dir).public_key()
    named = [Path(name) for name in arguments.head]
    try:
        heads = [path.read_bytes().rstrip(b"\n") for path in named or sorted(folder.glob("*.head"))]
        reports = verify([Path(name) for name in arguments.files], key, heads)
    except OSError as error:
        raise SettingsError([f"{error.filename}: cannot be read: {error.strerror}"]) from error
    lines = [line for report in reports for line in _describe(report, key)]
    # The worst of several chains: a script that looks at the status alone must not miss it.
    if any(report.problem for report in reports):
        return lines, TAMPERED
    return lines, UNSIGNED if any(report.unsigned for report in reports) else OK


def _describe(report: Report, key: Ed25519PublicKey | None) -> Iterator[str]:
    what = f"chain {report.chain or '(none)'}, {len(report.files)} file{'s' if len(report.files) > 1 else ''}"
    if report.problem:
        yield f"TAMPERED  {what}: {report.problem}"
        yield f"  {report.lines} lines before it are as they were written"
        return
    word = "UNSIGNED" if report.unsigned else "OK"
    yield f"{word}  {what}: {report.lines} lines, {report.events} events, {report.heads} signed heads"
    if report.first_seq:
        yield f"  begins at line {report.first_seq} of the chain; older files are not here"
    if report.unsigned:
        until = f"the signed head of {report.signed_until}" if report.signed_until else "the beginning"
        yield f"  the last {report.unsigned} lines, since {until}, are not signed yet"
    if report.recovered:
        yield f"  the gateway was killed, or could not write, {report.recovered} times, and went on"
    if report.lost:
        yield f"  {report.lost} events could not be written at the time"
    if key is None:
        yield f"  signed with the key {report.key}, which the files name themselves: compare it with --public-key"
    elif report.key != public_hex(key):
        yield f"  the files name another key, {report.key}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two verbs below `wakegate audit`."""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="key|verify", parser_class=type(parser))
    key = verbs.add_parser(
        "key", help="print the public key", description="Print the public key that this gateway's trail is signed with."
    )
    check = verbs.add_parser(
        "verify", help="check files",
        description="Check that audit files are as they were written. Name all files of a chain, in any order. "
        + EXIT_STATUSES,
    )  # fmt: skip
    check.add_argument("files", nargs="+", metavar="FILE", help="the current file and the full ones")
    check.add_argument(
        "--public-key",
        metavar="FILE",
        help="what `wakegate audit key` printed (default: this machine's, if it has one)",
    )
    check.add_argument(
        "--head", action="append", default=[], metavar="FILE",
        help="a signed line that has to be there; may be repeated (default: those in the state folder)",
    )  # fmt: skip
    for verb in (key, check):
        verb.add_argument("--state-dir", metavar="PATH", help="the gateway's state folder")
        verb.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)

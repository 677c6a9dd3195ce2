"""The argument parser: commands, and for each setting a flag, which cannot be abbreviated."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import NoReturn

from gateway import __version__
from gateway.cli.flags import add_flags
from gateway.cli.registry import COMMANDS, LOCAL, grouped_help

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, so that a new flag never changes what a script means."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print one line and exit. argparse would print the usage of all flags before it, several screens."""
        stop = "" if message.endswith("?") else ";"
        print(f"{self.prog}: {message}{stop} see {self.prog} --help", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)

    def verbs(self) -> dict[str, Parser]:
        """Parsers of its verbs, by name."""
        # Of a list of verbs alone argparse keeps the choices as a mapping.
        return next((each.choices for each in self._actions if isinstance(each.choices, dict)), {})

    def options(self) -> list[argparse.Action]:
        """Its flags, without those that are for the gateway itself."""
        return [each for each in self._actions if each.option_strings and each.help != argparse.SUPPRESS]

    def suggestion(self, flag: str) -> str:
        """`, did you mean --x?` for the closest known flag, or an empty text."""
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        close = difflib.get_close_matches(flag.partition("=")[0], known, 1)
        return f", did you mean {close[0]}?" if close else ""


class _TopParser(Parser):
    """The parser of `wakegate` itself, whose help also names the commands that typer runs (registry.py)."""

    def format_help(self) -> str:
        """All commands, in their groups."""
        return grouped_help()


UNITS = "A DURATION is written as 30s, 1m30s or 8h, a SIZE as 512Mi or 4Gi. docs/settings.md lists all settings."


def make_parser(words: Sequence[str]) -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of its commands by name. `words`: `replay` is imported only if they contain it."""
    parser = _TopParser(prog="wakegate")
    parser.add_argument("--version", action="version", version=f"wakegate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", usage="wakegate serve [FLAGS]", epilog=UNITS, help=LOCAL["serve"],
        description="Run a gateway. Flags win over WAKEGATE_* variables, those over --config.",
    )  # fmt: skip
    serve.add_argument("--as-worker", type=int, default=0, help=argparse.SUPPRESS)  # what supervisor.py starts
    doctor = commands.add_parser(
        "doctor", usage="wakegate doctor [FLAGS]", epilog=UNITS, help=LOCAL["doctor"],
        description="Check everything that a gateway with these settings needs, and say what to fix. "
        "The exit status is 0 when it would work.",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="one JSON object per finding and line")
    prune = commands.add_parser(
        "prune", usage="wakegate prune [FLAGS]", epilog=UNITS, help=LOCAL["prune"],
        description="End what a killed gateway left behind, and delete what no session needs any more: orphaned "
        "workspaces and snapshots, records of ended sessions, the trash. No gateway may be running on the state "
        "directory.",
    )  # fmt: skip
    uninstall = commands.add_parser(
        "uninstall", usage="wakegate uninstall [FLAGS]", epilog=UNITS, help=LOCAL["uninstall"],
        description="Delete the state directory with all sessions, records and keys. Snapshots in another place, "
        "Redis and the checkout stay. No gateway may be running on it.",
    )  # fmt: skip
    uninstall.add_argument("--yes", action="store_true", help="do it; without, only say what would be deleted")
    for command in (serve, doctor, prune, uninstall):
        add_flags(command)
    audit = commands.add_parser("audit", help=LOCAL["audit"])
    if "audit" in words:
        from gateway.cli.audit import add_arguments

        add_arguments(audit)
    replay = commands.add_parser("replay", help=LOCAL["replay"])
    if "replay" in words:
        from gateway.autoscaler.replay import cli as laboratory  # numpy and more, which a gateway does without

        laboratory.add_arguments(replay)
    return parser, {
        "serve": serve, "doctor": doctor, "prune": prune, "uninstall": uninstall, "audit": audit,
        "replay": replay,
    }  # fmt: skip


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. For an unknown flag or command, exit with status 2 and a suggestion."""
    parser, commands = make_parser(words)
    if not words:  # as docker and kubectl do
        print(parser.format_help(), end="", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)
    # argparse would list the commands as an "invalid choice", without a suggestion.
    named = next((word for word in words if not word.startswith("-")), None)
    if named is not None and named not in commands:
        if named not in COMMANDS and words[0] != named:  # `wakegate --url ADDRESS ls`: the address looks like it
            named = next((word for word in words if word in COMMANDS or word in commands), named)
        if named in COMMANDS or named in commands:
            parser.error(f"{named} comes first, its flags behind it")
        close = difflib.get_close_matches(named, [*commands, *COMMANDS], 1)
        hint = f", did you mean {close[0]}?" if close else ""
        parser.error(f"unknown command {named}{hint}")
    # parse_known_args, as parse_args reports unknown flags for the top parser, which does not know the command's.
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        command = commands[arguments.command]
        flags = [word for word in unknown if word.startswith("-")] or unknown
        command.error("; ".join(f"unknown argument {flag}{command.suggestion(flag)}" for flag in flags))
    return arguments

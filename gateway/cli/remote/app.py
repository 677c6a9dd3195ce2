"""Runs one command of the registry with typer, and turns what goes wrong into a line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from gateway.cli.registry import COMMANDS, LOCAL
from gateway.cli.remote.advice import advice, advice_unreachable
from gateway.cli.remote.screen import plain
from gateway.core.errors import SettingsError
from wakegate_client import APIError, UnreachableError

# docs/cli.md has them for users.
REFUSED, USAGE, UNREACHABLE, NOT_FOUND, NOT_PERMITTED = 1, 2, 3, 4, 5
NOT_RUN = 125  # of run and exec, whose own status is the command's: as docker's
INTERRUPTED, OUTPUT_CLOSED = 130, 141
_PASSING_ON = ("run", "exec")


def run(words: Sequence[str]) -> int:
    """Run the command that the first word names; returns the exit status."""
    name = words[0] if words else ""
    try:
        app_of([name])(args=list(words), prog_name="wakegate")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else USAGE
    except APIError as error:
        _say(str(error), advice(error))
        return NOT_RUN if name in _PASSING_ON else _status_of(error)
    except UnreachableError as error:
        _say(str(error), advice_unreachable(str(error)))
        return NOT_RUN if name in _PASSING_ON else UNREACHABLE
    except SettingsError as error:
        for problem in error.problems:
            print(f"wakegate: {plain(problem)}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except OSError as error:  # of a file of this machine that was named
        where = f"{error.filename}: " if error.filename else ""
        print(f"wakegate: {where}{error.strerror or error}", file=sys.stderr)
        return NOT_RUN if name in _PASSING_ON else REFUSED
    return 0


def _say(what: str, to_do: str) -> None:
    print(f"wakegate: {plain(what)}{'; ' if to_do else ''}{to_do}", file=sys.stderr)


def complete() -> int:
    """Answer a shell that completes a command line (`_WAKEGATE_COMPLETE` is set). Returns the exit status."""
    app = app_of(COMMANDS, completing=True)
    try:
        app(prog_name="wakegate", complete_var="_WAKEGATE_COMPLETE")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def app_of(names: Sequence[str] | Any, *, completing: bool = False) -> typer.Typer:
    """A typer app of these commands; imports no others. `completing`: with those of this machine, by name only."""
    # Plain help and plain errors: rich's boxes cost 40 ms and are torn when they are piped.
    app = typer.Typer(
        add_completion=completing, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback()(lambda: None)
    for name in names:
        module, _, attribute = COMMANDS[name].target.partition(":")
        target = getattr(import_module(module), attribute)
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=COMMANDS[name].help)
        else:
            # Behind the first word that is no flag, all words are the command's own.
            settings = {"allow_interspersed_args": False} if name in _PASSING_ON else {}
            app.command(name, context_settings=settings, short_help=COMMANDS[name].help)(target)
    if completing:
        for name, text in LOCAL.items():
            app.command(name, short_help=text)(lambda: None)
    return app


def _status_of(error: APIError) -> int:
    return {401: NOT_PERMITTED, 403: NOT_PERMITTED, 404: NOT_FOUND, 410: NOT_FOUND}.get(error.status, REFUSED)

"""Runs one command of the registry with typer, and turns what goes wrong into a line and an exit status."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from gateway.cli.registry import COMMANDS
from gateway.cli.remote.advice import advice, advice_unreachable
from gateway.cli.remote.screen import plain
from gateway.core.errors import NotFoundError, SettingsError, WakegateError
from wakegate_client import APIError, UnreachableError

# docs/cli.md has them for users.
REFUSED, USAGE, UNREACHABLE, NOT_FOUND, NOT_PERMITTED = 1, 2, 3, 4, 5
NOT_RUN = 125  # of run and exec, whose own status is the command's: as docker's
INTERRUPTED, OUTPUT_CLOSED = 130, 141
_PASSING_ON = ("run", "exec")
# The class of what is wrong with a command line. typer exports its subclass only, from click or from a copy of it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# As AgentCube's API words what is not there; the rest of its sentence is for programs.
_NOT_FOUND = re.compile(r'(sessions|codeinterpreters|agentruntimes)\.[a-z.]{1,60} "([^"]{0,200})" not found')
_NOUNS = {"sessions": "session", "codeinterpreters": "runtime", "agentruntimes": "agent runtime"}


def run(words: Sequence[str]) -> int:
    """Run the command that the first word names; returns the exit status."""
    name = words[0] if words else ""
    try:
        status = app_of([name])(args=list(words), prog_name="wakegate", standalone_mode=False)
        sys.stdout.flush()  # here, or at the interpreter's end, where a reader that has left is a traceback
        return status if isinstance(status, int) else 0
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # which typer makes status 1 of
            return _output_closed()
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else USAGE
    except _UsageError as error:
        return _say_usage(error)
    except typer.Abort:  # a question was answered with no
        print("wakegate: nothing was done", file=sys.stderr)
        return REFUSED
    except APIError as error:
        # What the API advises about its headers is for programs; `advice` has a person's words for the same.
        said = str(error).partition("; send an API key as")[0]
        _say(_NOT_FOUND.sub(lambda found: f"there is no {_NOUNS[found[1]]} {found[2]}", said), advice(error))
        return NOT_RUN if name in _PASSING_ON else _status_of(error)
    except UnreachableError as error:
        _say(str(error), advice_unreachable(str(error)))
        return NOT_RUN if name in _PASSING_ON else UNREACHABLE
    except SettingsError as error:
        for problem in error.problems:
            print(f"wakegate: {plain(problem)}", file=sys.stderr)
        return USAGE
    except WakegateError as error:  # of the session store, which `keys` may use without a gateway
        _say(str(error), "")
        return NOT_FOUND if error.status == NotFoundError.status else USAGE
    except UnicodeError:  # of a word of the command line: Python keeps bytes that are no text as lone surrogates
        coding = sys.getfilesystemencoding().upper()
        _say(f"the command line has bytes that are no text in {coding}, which the API cannot be sent", "")
        return NOT_RUN if name in _PASSING_ON else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _output_closed()
    except OSError as error:  # of a file of this machine that was named, or of the output
        where = f"{error.filename}: " if error.filename else ""
        print(f"wakegate: {where}{error.strerror or error}", file=sys.stderr)
        _drop_unwritable_output()
        return NOT_RUN if name in _PASSING_ON else REFUSED


def _output_closed() -> int:
    _drop_output()
    return OUTPUT_CLOSED


def _drop_unwritable_output() -> None:
    """The interpreter flushes stdout at exit, and makes the status 120 where that fails."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_usage(error: Any) -> int:
    """One line, as for every other error; typer would print the usage before it."""
    command = error.ctx.command_path if error.ctx else "wakegate"
    if type(error).__name__ == "NoArgsIsHelpError":  # whose message is the help
        print(error.ctx.get_help(), file=sys.stderr)
        return USAGE
    text = " ".join(error.format_message().replace("Value error, ", "").split()).removesuffix(".")
    print(f"{command}: {plain(text[:1].lower() + text[1:])}; see {command} --help", file=sys.stderr)
    return USAGE


def _say(what: str, to_do: str) -> None:
    print(f"wakegate: {plain(what)}{'; ' if to_do else ''}{to_do}", file=sys.stderr)


def complete() -> int:
    """Answer a shell that completes a command line (`_WAKEGATE_COMPLETE` is set). Returns the exit status."""
    from gateway.cli.remote.completion import app_to_complete

    app = app_to_complete(os.environ, app_of)
    try:
        app(prog_name="wakegate", complete_var="_WAKEGATE_COMPLETE")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def app_of(names: Sequence[str] | Any, *, completing: bool = False) -> typer.Typer:
    """A typer app of these commands; imports no others. `completing`: it answers shells."""
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
    return app


def _status_of(error: APIError) -> int:
    return {401: NOT_PERMITTED, 403: NOT_PERMITTED, 404: NOT_FOUND, 410: NOT_FOUND}.get(error.status, REFUSED)

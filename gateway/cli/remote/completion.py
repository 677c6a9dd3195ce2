"""completion: what a shell loads to complete commands, flags and names; and what it is answered."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer import completion as scripts

from gateway.cli.parser import Parser, make_parser
from gateway.cli.registry import COMMANDS, LOCAL

_PROGRAM, _VARIABLE = "wakegate", "_WAKEGATE_COMPLETE"
# In a file of $fpath the script is the body of the function that the first Tab runs: that Tab has to be answered too.
_ZSH_START = """if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _wakegate_completion "$@"
else
  compdef _wakegate_completion wakegate
fi"""


class Shell(StrEnum):
    """The shells for which there is completion."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", show_default=False)]) -> None:
    """Print the completion script of a shell.

    \b
    source <(wakegate completion bash)
    wakegate completion zsh > ~/.zfunc/_wakegate
    wakegate completion fish > ~/.config/fish/completions/wakegate.fish
    """
    script: str = scripts.get_completion_script(  # type: ignore[attr-defined]
        prog_name=_PROGRAM, complete_var=_VARIABLE, shell=shell
    )
    print(script.replace("compdef _wakegate_completion wakegate", _ZSH_START) if shell is Shell.ZSH else script)


def app_to_complete(environ: Mapping[str, str], app_of: Callable[..., typer.Typer]) -> typer.Typer:
    """The app that knows what may follow on the command line that a shell has told in its variables.

    It has the one command that is named there, since to import all of them takes as long as a person waits for a Tab.
    """
    named = _command_in(environ)
    app = app_of([named] if named in COMMANDS else [], completing=True)
    if named in LOCAL:
        _add(app, named, make_parser([named])[1][named])
    elif named not in COMMANDS:
        for name, text in {**{name: each.help for name, each in COMMANDS.items()}, **LOCAL}.items():
            app.command(name, short_help=text)(lambda: None)
    return app


def _command_in(environ: Mapping[str, str]) -> str:
    """The command on the line, or "" while it is being typed."""
    if "COMP_WORDS" in environ:  # bash
        words = environ["COMP_WORDS"].split()
        return words[1] if len(words) > 1 and environ.get("COMP_CWORD") not in ("0", "1") else ""
    line = environ.get("_TYPER_COMPLETE_ARGS", "")  # zsh and fish: up to the cursor
    words = line.split()
    return words[1] if len(words) > 2 or (len(words) == 2 and line[-1].isspace()) else ""


def _add(app: typer.Typer, name: str, parser: Parser) -> None:
    """A command of argparse with its verbs and flags, so that typer completes them; it does nothing."""
    if verbs := parser.verbs():
        group = typer.Typer()
        for verb, its in verbs.items():
            _add(group, verb, its)
        app.add_typer(group, name=name)
        return

    def nothing(**_: Any) -> None:
        """Does nothing."""

    signature = inspect.Signature([_parameter(each) for each in parser.options() if each.dest != "help"])
    nothing.__signature__ = signature  # type: ignore[attr-defined]
    app.command(name)(nothing)


def _parameter(action: argparse.Action) -> inspect.Parameter:
    choices: Sequence[str] = list(action.choices or ())
    text = (action.help or "").replace("%%", "%")
    made = typer.Option(
        *action.option_strings,
        help=text,
        autocompletion=lambda incomplete: [each for each in choices if each.startswith(incomplete)],
    )
    kind, default = (bool, False) if action.nargs == 0 else (str, "")
    return inspect.Parameter(
        action.dest, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
    )

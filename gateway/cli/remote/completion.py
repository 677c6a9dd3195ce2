"""completion: what a shell loads to complete commands, flags and ids of sessions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer import completion as scripts


class Shell(StrEnum):
    """Shells whose completion is known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(show_default=False)]) -> None:
    """Print the completion script of a shell.

    \b
    source <(wakegate completion bash)
    wakegate completion fish > ~/.config/fish/completions/wakegate.fish
    """
    print(scripts.get_completion_script(prog_name="wakegate", complete_var="_WAKEGATE_COMPLETE", shell=shell))  # type: ignore[attr-defined]

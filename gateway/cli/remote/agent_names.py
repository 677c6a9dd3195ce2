"""Names of agents on a command line: NAME, or NAMESPACE/NAME for those of another namespace than the caller's."""

from __future__ import annotations

from typing import Annotated

import typer

AgentName = Annotated[str, typer.Argument(metavar="AGENT", show_default=False, help="Its name, or NAMESPACE/NAME.")]


def split_name(text: str) -> tuple[str, str]:
    """(name, namespace), the namespace empty where none is named."""
    namespace, _, name = text.rpartition("/")
    return name, namespace

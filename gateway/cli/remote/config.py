"""config: every setting that `wakegate serve` would use here, and where it comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.remote.screen import Format, Output, show
from gateway.core.settings import Settings
from gateway.core.settings_load import load, origins

_COLUMNS = {
    "SETTING": lambda each: each["name"],
    "FROM": lambda each: each["from"],
    "VALUE": lambda each: each["value"],  # last: one of them has 350 characters, which the others would be padded to
}


def config(
    file: Annotated[str, typer.Option("--config", metavar="FILE", help="A TOML file with settings.")] = "",
    changed: Annotated[bool, typer.Option("--changed", help="Only those that are not defaults.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Every setting of `wakegate serve`, its value and where it comes from: a variable, the file, the default.

    Passwords in addresses are not shown.
    """
    # No gateway is asked: this is what `serve` would do with these variables and this file, as read by its own code.
    arguments: Mapping[str, Any] = {"config": file or None}
    settings = load(arguments, os.environ)
    found = origins(arguments, os.environ)
    rows = [
        {
            "name": each.name,
            "value": _shown(getattr(settings, each.name), output),
            "from": found.get(each.name, "default"),
        }
        for each in fields(Settings)
    ]
    show(
        [row for row in rows if not changed or row["from"] != "default"],
        _COLUMNS,
        output,
        name="name",
        empty="every setting has its default",
    )


def _shown(value: Any, output: Format) -> Any:
    if isinstance(value, tuple):
        return [_shown(each, output) for each in value] if output is not Format.TABLE else ", ".join(map(str, value))
    # Path() stands for a file that is not set, and would be shown as a dot, which is a folder.
    if isinstance(value, Path):
        return "" if value == Path() else str(value)
    return re.sub(r"(://)[^/@\s]*@", r"\1***@", value) if isinstance(value, str) else value

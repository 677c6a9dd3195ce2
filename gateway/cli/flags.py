"""Command line flags: one for each setting, in groups, with its unit and default."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from gateway.core.settings import THEMES
from gateway.core.units import readable_size


def add_flags(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Add a flag per setting (or for those of `only`), --config and --agentscope-env.

    Values stay text: `load` parses all sources and reports all errors.
    """
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (also WAKEGATE_CONFIG)")
    parser.add_argument(
        "--agentscope-env", metavar="FILE",
        help="env file of AgentScope Runtime's sandbox server, as settings (also WAKEGATE_AGENTSCOPE_ENV)",
    )  # fmt: skip
    for title, theme in THEMES.items():
        wanted = [setting for setting in fields(theme) if only is None or setting.name in only]
        if wanted:
            group = parser.add_argument_group(title)
            for setting in wanted:
                _add(group, setting)


def _add(group: argparse._ArgumentGroup, setting: Field[Any]) -> None:
    meta = setting.metadata
    flag = "--" + setting.name.replace("_", "-")
    text = (meta["help"] + _default_text(setting)).replace("%", "%%")  # argparse formats help with %
    if meta["kind"] == "flag":
        # Not store_true: an absent flag must stay None, so that the variable or the file can set it.
        group.add_argument(flag, action="store_const", const="true", help=text)
    elif meta["kind"] == "paths":
        group.add_argument(flag, action="append", metavar=meta["metavar"], help=text)
    else:
        metavar = {"INT": "N", "TEXT": "NAME"}.get(meta["metavar"], meta["metavar"])
        group.add_argument(flag, metavar="|".join(meta["choices"]) or metavar, help=text)


def _default_text(setting: Field[Any]) -> str:
    if setting.default in ((), "", Path(), False) or setting.default is MISSING:
        return ""
    return f" (default: {readable_default(setting)})"


def readable_default(setting: Field[Any]) -> str:
    """The default as a person would write it: 8h, 4Gi, 512."""
    value: Any = setting.default
    match setting.metadata["kind"]:
        case "duration":
            return _readable_duration(value)
        case "size":
            return readable_size(value)
    return str(value)


def _readable_duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"

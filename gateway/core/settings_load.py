"""Loading the settings: flags win over WAKEGATE_* variables, those over the TOML file, and that over an env file of
AgentScope's. All problems at once.

A gateway that stops at the first wrong setting makes its operator restart it once for each; so a value that cannot be
parsed is noted with where it came from, and the next one is read.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from gateway.core.agentscope_env import agentscope_values
from gateway.core.errors import SettingsError
from gateway.core.read_file import read_file
from gateway.core.settings import ENV_PREFIX, Settings, default_state_dir
from gateway.core.units import parse_duration, parse_quantity, readable_size

_MAX_NUMBER = 1e9  # also of seconds: 31 years
_MAX_SIZE_BYTES = 2.0**50
# Variables of the scripts, and of the commands that use a gateway: whoever has them set may also serve one.
_NO_SETTINGS = frozenset(("CONFIG", "AGENTSCOPE_ENV", "PYTHON", "URL", "API_KEY", "CONTEXT", "CA"))


def load(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Merge flags, environment and file into Settings.

    Raises SettingsError with every problem, each naming the flag, variable or file key that the value came from.
    """
    problems: list[str] = []
    known = {setting.name: setting for setting in fields(Settings)}
    sources = _sources(arguments, environ, known, problems)
    values: dict[str, Any] = {}
    for name, (where, raw) in sources.items():
        try:
            values[name] = _parse(known[name], raw)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise SettingsError(problems)
    values.setdefault("state_dir", default_state_dir(environ))
    return Settings(**values)


def origins(arguments: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Where each setting that is no default comes from: a flag, a variable, a key of the file."""
    found = _sources(arguments, environ, {setting.name: setting for setting in fields(Settings)}, [])
    return {name: where for name, (where, _) in found.items()}


def _sources(
    arguments: Mapping[str, Any], environ: Mapping[str, str], known: Mapping[str, Field[Any]], problems: list[str]
) -> dict[str, tuple[str, Any]]:
    env_file = arguments.get("agentscope_env") or environ.get(ENV_PREFIX + "AGENTSCOPE_ENV")
    sources: dict[str, tuple[str, Any]] = {}
    if env_file:
        sources |= agentscope_values(env_file, problems)
    sources |= _file_values(arguments.get("config") or environ.get(ENV_PREFIX + "CONFIG"), known, problems)
    sources |= _environment_values(environ, known, problems)
    for name in known:
        if arguments.get(name) is not None:
            sources[name] = ("--" + name.replace("_", "-"), arguments[name])
    return sources


def _file_values(path: str | None, known: Mapping[str, Field[Any]], problems: list[str]) -> dict[str, tuple[str, Any]]:
    if not path:
        return {}
    try:
        document = tomllib.loads(read_file(path).decode())
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: is not TOML: {error}")
        return {}
    for name in sorted(document.keys() - known.keys()):
        problems.append(f"{path}: unknown setting {name!r}{_suggestion(name, known)}")
    return {name: (f"{path}: {name}", value) for name, value in document.items() if name in known}


def _environment_values(
    environ: Mapping[str, str], known: Mapping[str, Field[Any]], problems: list[str]
) -> dict[str, tuple[str, Any]]:
    values: dict[str, tuple[str, Any]] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable.removeprefix(ENV_PREFIX) in _NO_SETTINGS:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name in known:
            values[name] = (variable, environ[variable])
        else:
            problems.append(f"{variable}: unknown setting{_suggestion(name, known)}")
    return values


def _suggestion(name: str, known: Mapping[str, Field[Any]]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parse(setting: Field[Any], raw: Any) -> Any:
    """Convert a value from text (flag, variable) or from TOML. Raises ValueError that says what is expected."""
    meta = setting.metadata
    kind: str = meta["kind"]
    if kind == "paths":
        items: Sequence[Any] = (
            raw.split(os.pathsep) if isinstance(raw, str) else raw if isinstance(raw, list) else [raw]
        )
        if not all(isinstance(item, str) and item for item in items):
            raise ValueError(f"expected a path or a list of paths, got {raw!r}")
        return tuple(_parse_path(item) for item in items)
    if kind == "flag":
        if isinstance(raw, bool):
            return raw
        if str(raw).lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            return str(raw).lower() in ("1", "true", "yes", "on")
        raise ValueError(f"expected true or false, got {raw!r}")
    if kind in ("text", "path"):
        if not isinstance(raw, str) or not raw:
            raise ValueError(f"expected text, got {raw!r}")
        if meta["choices"] and raw not in meta["choices"]:
            raise ValueError(f"expected one of {', '.join(meta['choices'])}; got {raw!r}")
        return _parse_path(raw) if kind == "path" else raw
    if kind == "size":
        return _parse_size(raw)
    return _parse_number(meta, kind, raw)


def _parse_path(raw: str) -> Path:
    try:
        return Path(raw).expanduser()
    except RuntimeError:  # what pathlib raises for `~name` if the user does not exist or has no home directory
        raise ValueError(f"expected a path, got {raw!r}: {raw.split('/')[0]} has no home directory") from None


def _parse_size(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise ValueError(f"expected a size such as 512Mi or 4Gi, got {raw!r}")
    try:
        size = float(raw) if isinstance(raw, int) else parse_quantity(raw)
    except (ValueError, OverflowError):
        raise ValueError(f"expected a size such as 512Mi or 4Gi, got {raw!r}") from None
    if not 0 <= size < _MAX_SIZE_BYTES or size != int(size):
        raise ValueError(f"must be a whole number of bytes below {readable_size(int(_MAX_SIZE_BYTES))}, got {raw!r}")
    return int(size)


def _parse_number(meta: Mapping[str, Any], kind: str, raw: Any) -> int | float:
    value: int | float
    if isinstance(raw, bool):
        raise ValueError(f"expected a {'number' if kind == 'int' else 'duration'}, got {raw!r}")
    if kind == "int":
        try:
            value = int(raw)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"expected a whole number, got {raw!r}") from None
        if isinstance(raw, float):
            raise ValueError(f"expected a whole number, got {raw!r}")
    elif isinstance(raw, int | float):
        value = float(raw)
    else:
        value = float(raw) if isinstance(raw, str) and raw.replace(".", "", 1).isdigit() else parse_duration(str(raw))
    if not value < _MAX_NUMBER:  # written so that NaN fails as well
        raise ValueError(f"must be below {_MAX_NUMBER:g}, got {raw!r}")
    if meta["low"] is not None and value < meta["low"]:
        raise ValueError(f"must be at least {meta['low']:g}, got {raw!r}")
    if meta["high"] is not None and value > meta["high"]:
        raise ValueError(f"must be at most {meta['high']:g}, got {raw!r}")
    return value

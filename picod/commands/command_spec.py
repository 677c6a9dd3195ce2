"""What a request asks to be run: parsed and validated, with its program and its working directory looked up.

The same for /api/execute, background processes and terminals.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from picod.compat.go_format import DurationError, parse_duration
from picod.filesystem.paths import PathError, Workspace
from picod.http.json_fields import missing, parse_object, text_field, text_map_field, texts_field
from picod.http.request import RequestError, os_failure

DEFAULT_TIMEOUT_S = 60.0
STRUCT = "ExecuteRequest"  # what Go's decoder calls the document in its errors


@dataclass(frozen=True)
class CommandSpec:
    """A command to run: argv, timeout, directory, whole environment."""

    command: list[bytes]
    timeout: float  # seconds
    working_dir: str
    env: dict[bytes, bytes]


def parse_command(body: bytes, base_env: Mapping[str, str]) -> CommandSpec:
    """Read and check the request. Raises RequestError 400."""
    fields = parse_object(body, STRUCT)
    command = texts_field(fields, STRUCT, "command")
    timeout = text_field(fields, STRUCT, "timeout")
    working_dir = text_field(fields, STRUCT, "working_dir")
    env = read_env(fields, STRUCT)
    if command is None:
        raise missing(STRUCT, "command")
    if not command:
        raise RequestError(400, "command cannot be empty")
    try:
        seconds = parse_duration(timeout) if timeout else DEFAULT_TIMEOUT_S
    except DurationError as error:
        raise RequestError(400, f"Invalid timeout format: {error}") from error
    return CommandSpec(
        command=[_argument(item, f"command[{index}]") for index, item in enumerate(command)],
        timeout=seconds,
        working_dir=working_dir or ".",
        env={_argument(name, "env"): _argument(value, f"env.{name}") for name, value in {**base_env, **env}.items()},
    )


def read_env(fields: dict[str, Any], struct: str) -> dict[str, str]:
    """`env`: variables by name. Raises RequestError 400 for what no environment can hold."""
    env = text_map_field(fields, struct, "env")
    for name, value in env.items():
        if not name or "=" in name:  # execve would accept it and the command see another variable
            raise RequestError(400, f"env: {name!r} cannot be the name of a variable")
        _argument(name, "env")
        _argument(value, f"env.{name}")
    return env


def _argument(text: str, field: str) -> bytes:
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(400, f"{field} is not valid UTF-8") from error
    if b"\0" in encoded:
        raise RequestError(400, f"{field} contains a NUL byte")
    return encoded


def encode_env(env: Mapping[str, str]) -> dict[bytes, bytes]:
    """An environment from picod's settings as the bytes that a command is started with."""
    return {name.encode(): value.encode() for name, value in env.items()}


def find_executable(name: bytes, path: bytes, cwd_fd: int) -> bytes | None:
    """The file of a command's program: names with a slash stay as they are, others are looked up in `path`.

    None if there is none. Relative entries of `path` are skipped: through them a file in the session's working
    directory could shadow a command.
    """
    if b"/" in name:
        return name  # as execvp(3): a path, which the command's working directory resolves
    for folder in path.split(b":"):
        candidate = os.path.join(folder, name)
        if folder.startswith(b"/") and name and _may_execute(candidate, cwd_fd):
            return candidate
    return None


def _may_execute(path: bytes, cwd_fd: int) -> bool:
    try:
        if not stat.S_ISREG(os.stat(path, dir_fd=cwd_fd).st_mode):
            return False
        # Not by the real user, which may be picod's: for files picod is user code (filesystem/code_user.py).
        return os.access(path, os.X_OK, dir_fd=cwd_fd, effective_ids=True)
    except OSError:
        return False


def open_working_directory(workspace: Workspace, path: str) -> int:
    """A descriptor of the directory in which a command starts, created if it is missing. Raises RequestError."""
    try:
        return workspace.open_directory(path, make=True)
    except PathError as error:
        raise RequestError(400, f"Invalid working directory: {error}") from error
    except OSError as error:
        raise os_failure(error, f"Failed to create working directory: mkdir {path}") from error


def timed_out(seconds: float) -> str:
    """The message for a command that exceeded its timeout, in AgentCube's words."""
    return f"Command timed out after {seconds:.0f} seconds"

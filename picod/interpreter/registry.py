"""The contexts of one sandbox by name: create, find and delete them, and expect their state after a wake."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from picod.commands.command_spec import encode_env, find_executable
from picod.http.request import RequestError
from picod.interpreter.bash_context import BashContext
from picod.interpreter.contexts import MAX_QUEUED, Context, Surroundings
from picod.interpreter.kernel import Ahead, KernelError
from picod.interpreter.python_context import PythonContext
from picod.interpreter.state_files import StateFiles

if TYPE_CHECKING:
    from picod.commands.services import CommandServices

DEFAULTS = {"python": "default", "bash": "bash"}  # language -> context id where a request names none
_MAX_CONTEXTS = 16
_ROOM_BYTES = 64 << 10  # for a connection file and sockets, and what the kernel and a suspend write on top
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class CodeSpec:
    """Code to run in a context. `timeout` is in seconds; an empty `context_id` means the language's default one."""

    code: str
    language: str
    context_id: str
    timeout: float
    env: Mapping[str, str] = field(default_factory=dict)  # variables of this run alone
    silent: bool = False  # it leaves no trace in the history, and no number
    comms: bool = False  # whether the client of a stream wants the messages of comms


class Interpreter:
    """All contexts of this sandbox."""

    def __init__(self, commands: CommandServices) -> None:
        self._config = commands.config
        self._workspace = commands.workspace
        self._folders: list[str] = []
        self._contexts: dict[str, Context] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._names = 0
        env = encode_env(commands.config.command_env)
        self._around = Surroundings(commands.children, commands.workspace, env, self._find, self._make_folder)

    def all(self) -> list[Context]:
        """All contexts, oldest first."""
        return list(self._contexts.values())

    def require(self, context_id: str) -> Context:
        """The context of that name. Raises RequestError 404."""
        context = self._contexts.get(context_id)
        if context is None:
            raise RequestError(404, f"there is no context {context_id!r}; POST /api/contexts makes one")
        return context

    def create(self, language: str, context_id: str = "") -> Context:
        """Create a context, with a generated name if none is given. Raises RequestError 400 or 409."""
        if len(self._contexts) >= _MAX_CONTEXTS:
            raise RequestError(409, f"a session has at most {_MAX_CONTEXTS} contexts; delete one first")
        if not context_id:
            while not context_id or context_id in self._contexts:  # a client may have taken `python-1` itself
                self._names += 1
                context_id = f"{language}-{self._names}"
        if not _NAME.fullmatch(context_id):
            raise RequestError(400, "context_id: letters, digits, - and _ only, at most 64")
        if context_id in self._contexts:
            raise RequestError(409, f"there is a context {context_id!r} already")
        context: Context = (BashContext if language == "bash" else PythonContext)(context_id, self._around)
        self._contexts[context_id] = context
        return context

    def context_for(self, spec: CodeSpec) -> Context:
        """The context that a spec names; default ones are created on first use. Raises RequestError 4xx."""
        if self._config.code_context == "off":
            raise RequestError(403, "this runtime has no code contexts (codeContext: off); use /api/execute")
        name = spec.context_id or DEFAULTS[spec.language or "python"]
        # Only the two default names make a context by being used: a misspelt name must not begin without variables.
        if name in DEFAULTS.values() and name not in self._contexts:
            return self.create(next(language for language, default in DEFAULTS.items() if default == name), name)
        context = self.require(name)
        if spec.language and context.language != spec.language:
            raise RequestError(400, f"context {name!r} runs {context.language}, not {spec.language}")
        if context.waiting >= MAX_QUEUED:
            raise RequestError(429, f"{MAX_QUEUED} runs wait for context {name!r} already")
        return context

    async def delete(self, context: Context) -> None:
        """Remove a context from the registry and end its processes."""
        self._contexts.pop(context.id, None)
        await context.delete()

    def expect(self, files: StateFiles, language: str) -> bool:
        """Have a context load these files, which came with the workspace, before its next run. False when it cannot."""
        context = self._contexts.get(files.context_id)
        if context is None:
            try:
                context = self.create(language, files.context_id)
            except RequestError:
                return False  # the name is invalid, or there are too many contexts
        return context.language == language and context.expect(files)

    def scratch(self, name: str) -> str:
        """Path of a file outside the workspace into which a context's process writes its report."""
        return os.path.join(self._make_folder(), f"{name}.report")

    def warm(self, ahead: Ahead) -> None:
        """Start the default Python context ahead of its first run."""
        context = self._contexts.get(DEFAULTS["python"])
        if context is None:
            context = self.create("python", DEFAULTS["python"])
        if isinstance(context, PythonContext):
            context.begin(ahead)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine that may outlive its request."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Remove the folders of sockets and states outside the workspace. Children.kill_all ends the processes."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _find(self, name: str) -> bytes | None:
        path = self._config.command_env.get("PATH", "").encode()
        return find_executable(name.encode(), path, self._workspace.fd)

    def _make_folder(self) -> str:
        """A folder outside the workspace in which a context's files and sockets have room. Raises KernelError."""
        if self._folders and _has_room(self._folders[-1]):  # the session's own code may have removed it
            return self._folders[-1]
        # Short, because a unix socket's path has at most 107 bytes, and the context's name (64) is part of it. The
        # second for when code has filled the first: the session could then run nothing any more.
        tmp = self._config.command_env.get("TMPDIR") or "/tmp"  # noqa: S108 - the sandbox's own
        for parent in (tmp, "/dev/shm"):  # noqa: S108
            folder = os.path.join(parent, f".wakegate-{os.urandom(4).hex()}")
            try:
                os.mkdir(folder, 0o700)
            except OSError:
                continue
            self._folders.append(folder)
            if _has_room(folder):
                return folder
        raise KernelError(f"the context's process needs some room in {tmp}: delete files there, with /api/execute")


def _has_room(folder: str) -> bool:
    """Whether files can be written into a folder. By a few blocks, since an empty file fits into a full tmpfs."""
    # A new name, which code cannot have made a pipe that blocks, or a link.
    path = os.path.join(folder, f"room-{os.urandom(4).hex()}")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        return os.write(fd, bytes(_ROOM_BYTES)) == _ROOM_BYTES
    except OSError:
        return False
    finally:
        os.close(fd)
        os.unlink(path)

"""What the handlers of commands, processes and terminals share in one picod."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any

from picod.commands.command_spec import CommandSpec, encode_env
from picod.commands.preload import Preload
from picod.commands.processes import Child, Children
from picod.config import PicodConfig
from picod.filesystem.paths import Workspace

if TYPE_CHECKING:
    from picod.commands.background import Background
    from picod.commands.runs import Runs
    from picod.commands.terminal import Terminals


class CommandServices:
    """The processes of one sandbox. Background processes, terminals and runs are imported and created on first use.

    Most sessions use none of the three, and their imports would slow down every start.
    """

    def __init__(self, config: PicodConfig, workspace: Workspace) -> None:
        self.config = config
        self.workspace = workspace
        self.children = Children()
        self.preload = Preload(
            self.children, config.preload, encode_env(config.command_env), workspace.fd, delay=config.preload_delay
        )
        self._tasks: set[asyncio.Task[None]] = set()

    @cached_property
    def background(self) -> Background:
        """The background processes, which outlive the requests that start them."""
        from picod.commands.background import Background

        return Background(self.children)

    @cached_property
    def terminals(self) -> Terminals:
        """The pseudo-terminals, with and without a client."""
        from picod.commands.terminal import Terminals

        return Terminals(self.children)

    @cached_property
    def runs(self) -> Runs:
        """The runs whose events can be followed."""
        from picod.commands.runs import Runs

        return Runs()

    async def start(self, spec: CommandSpec, executable: bytes, cwd_fd: int, stdout: int, stderr: int) -> Child:
        """Start a command: a script on the preloaded interpreter, if there is one. Raises OSError."""
        child = await self.preload.run(
            executable, spec.command, cwd_fd=cwd_fd, env=spec.env, stdout=stdout, stderr=stderr
        )
        if child is None:
            child = self.children.spawn(
                executable, spec.command, cwd_fd=cwd_fd, env=spec.env, stdout=stdout, stderr=stderr
            )
        return child

    def spawn_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that may outlive its request."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def busy(self) -> dict[str, list[str]]:
        """Ids of what runs although no request waits for it: `processes`, `terminals`, `runs`.

        Looks only at what was created: to ask must not import a module.
        """
        made = vars(self)  # where cached_property keeps its values
        processes = made["background"].all() if "background" in made else ()
        terminals = made["terminals"].all() if "terminals" in made else ()
        runs = made["runs"].all() if "runs" in made else ()
        return {
            "processes": [process.id for process in processes if process.running and process.keeps_awake],
            "terminals": [terminal.id for terminal in terminals if terminal.busy],
            "runs": [run.id for run in runs if run.background and run.ended_at is None],
        }

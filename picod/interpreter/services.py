"""Objects that the handlers of code contexts share in one picod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picod.commands.services import CommandServices

if TYPE_CHECKING:
    from picod.interpreter.registry import Interpreter


class InterpreterServices:
    """The contexts of one sandbox, loaded and made when first used; `commands` has the processes they run in."""

    def __init__(self, commands: CommandServices) -> None:
        self.config = commands.config
        self.commands = commands
        self._interpreter: Interpreter | None = None

    @property
    def interpreter(self) -> Interpreter:
        """The registry of contexts, created on first access."""
        if self._interpreter is None:  # late: its imports would slow down the start of sandboxes that never run code
            from picod.interpreter.registry import Interpreter

            self._interpreter = Interpreter(self.commands)
        return self._interpreter

    @property
    def has_interpreter(self) -> bool:
        """Whether the registry exists; without it there are no contexts, and asking this creates none."""
        return self._interpreter is not None

    def close(self) -> None:
        """Remove files of contexts outside of the workspace. Their processes are ended by Children.kill_all."""
        if self._interpreter is not None:
            self._interpreter.close()

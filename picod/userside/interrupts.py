"""SIGINT ends the run that picod means, at whatever moment it comes. Loaded by kernel.py, as user code.

ipykernel ignores SIGINT between two requests, and while it handles one lets KeyboardInterrupt be raised anywhere. One
that came before the run's first statement was lost, or ended the request without a reply; either way picod waited for
the end of the run, and then killed the process with all variables. Here KeyboardInterrupt is raised in the cell's code
only. A signal that comes earlier, while the request is on its way or is compiled, ends the code as it begins.

A signal may also come just after the run that it was for. Requests say when they were sent (`asked_at`, seconds of
CLOCK_MONOTONIC), and a signal from before that is for an earlier run. picod has the kernel answer an empty request
after each interrupt, so that no signal is still on its way then.
"""

from __future__ import annotations

import signal
import time
from typing import Any

_INTERRUPTED = compile("raise KeyboardInterrupt", "<interrupt>", "exec")


class Interrupts:
    """The handler of SIGINT, and what it has to know of the kernel's requests."""

    def __init__(self) -> None:
        self._in_code = False  # whether code of the user's runs, so that it may be raised there
        self._came_at = 0.0  # when a signal came that has ended no code yet; 0: none

    def install(self, kernel: Any) -> None:
        """Take SIGINT over from a kernel, and watch its requests and the code that it runs."""
        # They would set the handler for the time of a request, and ignore the signal between two.
        kernel.pre_handler_hook = kernel.post_handler_hook = lambda: None
        signal.signal(signal.SIGINT, self._on_signal)
        self._watch_requests(kernel)
        self._watch_code(kernel.shell)
        # After matplotlib has drawn the cell's figures, which may take long: that is on post_execute.
        kernel.shell.events.register("post_run_cell", self._end_code)

    def _watch_requests(self, kernel: Any) -> None:
        execute_request = kernel.execute_request

        async def watched(stream: Any, ident: Any, parent: Any) -> None:
            signal.signal(signal.SIGINT, self._on_signal)  # the code of an earlier run may have changed it
            if self._came_at < parent["metadata"].get("asked_at", 0.0):
                self._came_at = 0.0
            try:
                await execute_request(stream, ident, parent)
            finally:
                self._in_code, self._came_at = False, 0.0

        # The kernel has made its table of handlers already.
        kernel.execute_request = kernel.shell_handlers["execute_request"] = watched

    def _watch_code(self, shell: Any) -> None:
        run_code, user_expressions = shell.run_code, shell.user_expressions

        async def watched(code: Any, *arguments: Any, **options: Any) -> Any:
            # First this, then the question: a signal between the two is raised, and IPython catches it here as well.
            self._in_code = True
            if self._came_at:
                self._came_at = 0.0
                return await run_code(_INTERRUPTED, *arguments, **{**options, "async_": False})
            return await run_code(code, *arguments, **options)

        def watched_expressions(expressions: Any) -> Any:
            self._in_code = bool(expressions)  # picod's own calls, which have a time limit too
            try:
                return user_expressions(expressions)
            finally:
                self._in_code = False

        shell.run_code, shell.user_expressions = watched, watched_expressions

    def _end_code(self, *_: object) -> None:
        self._in_code = False

    def _on_signal(self, *_: object) -> None:
        if self._in_code:
            raise KeyboardInterrupt
        self._came_at = time.monotonic()

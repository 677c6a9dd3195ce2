"""Claims a sandbox, runs one program in it, and ends it, whatever happens in between: the verb behind one-shot runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from gateway.api.sandbox_json import MAX_ANSWER_BYTES, BadAnswerError, parse_object, text_of
from gateway.api.sessions import while_connected
from gateway.api.tools.sandbox import ToolSandbox
from gateway.core.background import Tasks
from gateway.core.errors import BadRequestError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import RuntimeKey, SandboxReply, SessionId, StartKind
from gateway.sessions.lifecycle import Lifecycle
from gateway.sessions.new_session import require_creation

MAX_TIMEOUT_S = 600.0
DEFAULT_TIMEOUT_S = 60.0
MAX_OUTPUT_FILES_BYTES = 16 << 20
# On top of the program's own time: the files, a cold start, and the outputs. Should this gateway die meanwhile, the
# session ends by itself after it.
_MARGIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `target` and `body`: picod's request for it. `files` by their target; `outputs`: paths, targets."""

    target: str
    body: Mapping[str, Any]
    timeout: float
    files: Sequence[tuple[str, bytes]] = ()
    outputs: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run answered: picod's document, the files that were asked for (None: not there), and how it started."""

    answer: Mapping[str, Any]
    start: StartKind
    session_id: SessionId
    files: Mapping[str, bytes | None] = field(default_factory=dict)


class RunRefusedError(BadRequestError):
    """The sandbox refused what was asked for: a malformed path, a folder that is not there."""


class OneShotRuns:
    """Runs programs, each in a sandbox of its own."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller) -> None:
        self._lifecycle = lifecycle
        self._caller = caller
        self._ending = Tasks()

    async def aclose(self) -> None:
        """Wait until the sessions of runs that were cancelled have ended."""
        await self._ending.wait()

    async def run(self, request: Request, runtime: RuntimeKey, program: Program) -> Outcome:
        """Run for the client of this request, whose body has been read; it is stopped if the client leaves.

        Raises ClientLeftError, RunRefusedError, TooLargeError, and what Lifecycle.create and SandboxCaller raise.
        """
        require_creation(runtime)

        def created(session: Any) -> None:
            request.state.created = session

        outcome = await while_connected(request, self._run(runtime, program, created), "a run")
        request.state.quota_fields = await self._lifecycle.quota_fields()
        return outcome

    async def _run(self, runtime: RuntimeKey, program: Program, created: Callable[[Any], None]) -> Outcome:
        opened = await self._lifecycle.create(
            runtime, ttl=program.timeout + _MARGIN_S, metadata={"name": "one-shot run"}
        )
        created(opened.session)
        session_id = opened.session.id
        try:
            sandbox = ToolSandbox(self._caller, session_id)
            for target, data in program.files:
                await _require(await sandbox.put(target, data, once=False))
            answer = await sandbox.start(program.target, program.body, program.timeout)
            if isinstance(answer, SandboxReply):
                await _require(answer)
                raise BadAnswerError(f"the sandbox answered {answer.status} to a run")
            files = await self._outputs(sandbox, program.outputs)
            return Outcome(answer, opened.start, session_id, files)
        finally:
            # Shielded: a cancelled run must end its sandbox as well. Awaited: the next run of a tenant that may have
            # one sandbox would be refused otherwise.
            await asyncio.shield(self._ending.spawn(self._lifecycle.end_unclaimed(session_id), name="end a run"))

    async def _outputs(self, sandbox: ToolSandbox, outputs: Sequence[tuple[str, str]]) -> dict[str, bytes | None]:
        files: dict[str, bytes | None] = {}
        left = MAX_OUTPUT_FILES_BYTES
        for path, target in outputs:
            # One byte more than may come: a file that is too large is told by it, and leaves the sandbox no further.
            reply = await self._caller.call(
                sandbox.session_id, "GET", target, headers={"range": f"bytes=0-{left}"}, limit=left + (64 << 10)
            )
            if reply.status == 416:  # of an empty file no byte can be asked for
                files[path] = b""
                continue
            if reply.status not in (200, 206):
                files[path] = None
                continue
            left -= len(reply.body)
            if left < 0:
                raise BadRequestError(
                    f"outputs: larger than {MAX_OUTPUT_FILES_BYTES} bytes together; use a session for such files"
                )
            files[path] = reply.body
        return files


async def _require(reply: SandboxReply) -> None:
    """Raise RunRefusedError for an error of picod's."""
    if reply.status < 400:
        return
    try:
        text = text_of(await parse_object(reply.body[:MAX_ANSWER_BYTES]), "error", "")
    except BadAnswerError:
        text = ""
    raise RunRefusedError(text[:500] or f"the sandbox answered {reply.status}")


def command_program(command: Sequence[str], timeout: float, **more: Any) -> Program:
    """A program that runs a command. `more`: files and outputs of Program."""
    return Program("/api/execute", {"command": list(command), "timeout": f"{timeout:g}s"}, timeout, **more)


def read_timeout(seconds: float | None) -> float:
    """Raises BadRequestError above the most that a run may take; None: the default."""
    if seconds is None:
        return DEFAULT_TIMEOUT_S
    if seconds > MAX_TIMEOUT_S:
        raise BadRequestError(f"timeout: expected at most {MAX_TIMEOUT_S:g} s; use a session for more")
    return seconds

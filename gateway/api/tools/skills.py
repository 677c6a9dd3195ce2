"""Runs the scripts of skills (spec.wakegate.skills), each in a sandbox of its own: whatever one does stays inside.

The sandbox is for one call, or kept for all calls of a session. A kept one is a session too, whose id is derived from
that of the session and as hard to guess; any gateway finds it, and it sleeps and wakes like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from gateway.api.tools.actions import execute
from gateway.api.tools.arguments import ArgumentError, file_target
from gateway.api.tools.results import ToolResult, failure
from gateway.api.tools.run_events import Progress
from gateway.api.tools.sandbox import ToolSandbox
from gateway.core.background import Tasks
from gateway.core.errors import SessionNotFoundError, WakegateError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import DeclaredTool, SessionId, SessionState, Skill
from gateway.runtimes.skills import INSIDE, SCRIPTS
from gateway.runtimes.tools import MAX_ARGUMENT
from gateway.sessions.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

_INTERPRETERS = {".py": ("python3",), ".sh": ("bash",), ".js": ("node",)}  # of other scripts the first line says it
_INPUT = "input"
# On top of the script's own time, for a cold start; should this gateway die meanwhile, the session ends after it.
_MARGIN_S = 120.0
_MAX_GENERATIONS = 100  # kept sandboxes of one session and skill, one after the other, each to its maximum duration
_MAX_PARENTS = 10_000  # of which this gateway ends the kept sandboxes; those of others end by their idle timeouts


class SkillRuns:
    """Runs skills for the sessions of this gateway."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller) -> None:
        self._lifecycle, self._caller = lifecycle, caller
        self._ending = Tasks()
        self._kept: OrderedDict[SessionId, set[SessionId]] = OrderedDict()
        lifecycle.on_end(self._parent_ended)

    async def aclose(self) -> None:
        """Wait until the sessions that are being ended have ended."""
        await self._ending.wait()

    async def run(
        self, tool: DeclaredTool, parent: SessionId, arguments: Mapping[str, Any], progress: Progress | None
    ) -> ToolResult:
        """Answer a call whose arguments match the tool's schema. Raises what Lifecycle.create raises."""
        skill, script = tool.skill, arguments.get("script")
        assert skill is not None
        if script is None:
            return ToolResult(skill.instructions or "(this skill has no instructions)")
        command = argv(script, arguments.get("args", ()))
        data = arguments.get("input", "").encode("utf-8", "replace")
        if skill.kept:
            return await self._execute(await self._kept_session(parent, skill), command, data, tool, progress)
        opened = await self._lifecycle.create(
            skill.runtime, ttl=tool.timeout + _MARGIN_S, metadata={"name": f"skill {tool.name}"}
        )
        session_id = opened.session.id
        try:
            return await self._execute(session_id, command, data, tool, progress)
        finally:
            # Shielded: a cancelled call must end its sandbox as well.
            await asyncio.shield(self._ending.spawn(self._lifecycle.end_unclaimed(session_id), name="end a skill"))

    async def _execute(
        self, session_id: SessionId, command: list[str], data: bytes, tool: DeclaredTool, progress: Progress | None
    ) -> ToolResult:
        sandbox = ToolSandbox(self._caller, session_id, progress)
        if data:
            reply = await sandbox.put(file_target(_INPUT), data, once=False)
            if reply.status not in (200, 201):
                return failure("disk_full" if reply.status == 507 else "failed", "the input could not be written")
        return await execute(sandbox, command, tool.timeout)

    async def _kept_session(self, parent: SessionId, skill: Skill) -> SessionId:
        """The session that is kept for a session's calls; a new one where the last has ended."""
        for generation in range(_MAX_GENERATIONS):
            name = kept_id(parent, skill, generation)
            session = await self._lifecycle.register(
                skill.runtime, session_id=name, metadata={"name": "skill", "for": str(parent)}
            )
            if session.state is not SessionState.TERMINATED:
                self._kept.setdefault(parent, set()).add(name)
                if len(self._kept) > _MAX_PARENTS:
                    self._kept.popitem(last=False)
                return name
        raise SessionNotFoundError(f"{skill.runtime} has ended too often for this session; make another session")

    def _parent_ended(self, session_id: SessionId) -> None:
        for kept in self._kept.pop(session_id, ()):
            self._ending.spawn(self._end(kept), name="end a kept skill")

    async def _end(self, session_id: SessionId) -> None:
        try:
            await self._lifecycle.terminate(session_id, "the session that it was kept for has ended")
        except SessionNotFoundError:
            pass
        except WakegateError as error:
            logger.warning("session %s of a skill could not be ended; its timeout ends it: %s", session_id, error)


def kept_id(parent: SessionId, skill: Skill, generation: int) -> SessionId:
    """The id of a kept session: of the form of others, and known to whoever knows the session's own."""
    text = f"{parent}\n{skill.runtime}\n{generation}"
    return SessionId(str(uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=4)))


def argv(script: str, arguments: Any) -> list[str]:
    """The command of a script. Raises ArgumentError for arguments that execve refuses: NUL, or too long."""
    interpreter = next((words for end, words in _INTERPRETERS.items() if script.endswith(end)), ())
    words = [*interpreter, f"{INSIDE}/{SCRIPTS}/{script}", *arguments]
    for word in words:
        if "\0" in word or len(word.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT:
            raise ArgumentError(f"an argument holds a NUL character, or is larger than {MAX_ARGUMENT} bytes")
    return words

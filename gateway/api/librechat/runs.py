"""POST /librechat/exec: a program that is run among the files of earlier runs and of uploads.

Nothing but files stays between two runs. The files that a request names are brought together in one session: that of
the run before, if there is one, else that of a file of the user's own, else a new one.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler, ParamError
from gateway.api.http import JSON, read_json, session_headers
from gateway.api.librechat.storage import Storage, Stored, file_id, is_shared
from gateway.api.sandbox_json import text_of
from gateway.api.sessions import is_session_id, while_connected
from gateway.api.tools.sandbox import ToolSandbox
from gateway.api.workspace_files import WORKSPACE, checked, inner_path, target_of
from gateway.core.errors import BadRequestError, NotFoundError, SessionNotFoundError
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SandboxReply, Session

_MAX_BODY_BYTES = 8 << 20
_MAX_FILES = 256
_MAX_SHOWN = 100  # files of an answer
_MAX_ARGUMENTS = 256
_TIMEOUT_S = 600.0
# Each language, with the names that LibreChat gives it: interpreter, ending of a script.
_LANGUAGES = {"py": ("python3", "py"), "bash": ("bash", "sh"), "js": ("node", "js")}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that a program is to find: `name` relative to its folder; where it is stored."""

    name: str
    session: str
    id: str


@dataclass(frozen=True, slots=True)
class Job:
    """What a request asks for. `session`: of the run before; empty: none."""

    language: str
    code: bytes
    arguments: Sequence[str]
    files: Sequence[Wanted]
    session: str


class RunsAPI:
    """/exec: a program with its files, in the session of its conversation."""

    def __init__(self, storage: Storage, caller: SandboxCaller) -> None:
        self._storage = storage
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"librechat_exec": self._exec, "librechat_exec_programmatic": self._programmatic}

    async def _programmatic(self, request: Request) -> Response:
        del request
        raise BadRequestError("programs that call tools are not offered here; turn programmatic tool calling off")

    async def _exec(self, request: Request) -> Response:
        body = await read_json(request, _MAX_BODY_BYTES)
        if not isinstance(body, dict):
            raise BadRequestError("the body must be a JSON object")
        job = read_job(body)
        session = await self._session(request, job)
        if session is not None:
            answer = await while_connected(request, self._run(request, session, job), "a program")
        else:
            async with self._storage.made(request) as session:
                answer = await while_connected(request, self._run(request, session, job), "a program")
        return JSON(answer, headers=session_headers(session.id))

    async def _session(self, request: Request, job: Job) -> Session | None:
        """The session that the request or one of its files names; None: a new one is needed."""
        for name in dict.fromkeys((job.session, *(each.session for each in job.files))):
            if (session := await self._found(request, name)) is not None and not is_shared(session):
                request.state.session_id = session.id
                return session
        return None

    async def _found(self, request: Request, name: str) -> Session | None:
        try:
            return await self._storage.require(request, name) if is_session_id(name) else None
        except SessionNotFoundError:
            return None

    async def _run(self, request: Request, session: Session, job: Job) -> dict[str, Any]:
        await self._gather(request, session, job.files)
        request.state.session_id = session.id  # `require` has noted those of the files
        before = {each.path: each.entry for each in await self._storage.list(session)}
        absent = [each.name for each in job.files if each.name not in before]
        interpreter, ending = _LANGUAGES[job.language]
        script = f".wakegate/run/{secrets.token_hex(8)}.{ending}"
        files = self._storage.files(session)
        await files.write(script, job.code)
        try:
            ran = await ToolSandbox(self._caller, session.id).start(
                "/api/execute",
                {
                    "command": [interpreter, script, *job.arguments],
                    "timeout": f"{_TIMEOUT_S:g}s",
                    # A script's own folder is where Python looks for modules, and this one's is none of the user's.
                    "env": {"PYTHONPATH": WORKSPACE},
                },
                _TIMEOUT_S,
            )
        finally:
            await files.delete(script)
        if isinstance(ran, SandboxReply):
            await checked(ran)
            raise BadRequestError(f"the sandbox answered {ran.status}")
        errors = "".join(f"{name} is not stored any more; upload it again\n" for name in absent)
        errors += text_of(ran, "stderr", "")
        if ran.get("exit_code") and not errors:
            errors = f"exit status {ran['exit_code']}\n"
        after = await self._storage.list(session)
        made = [each for each in after if before.get(each.path) != each.entry]
        kept = {each.name for each in job.files}
        shown = [_describe(each) for each in made]
        shown += [{**_describe(each), "inherited": True} for each in after if each.path in kept and each not in made]
        return {
            "session_id": session.id,
            "stdout": text_of(ran, "stdout", ""),
            "stderr": errors,
            "files": shown[:_MAX_SHOWN],
        }

    async def _gather(self, request: Request, session: Session, wanted: Sequence[Wanted]) -> None:
        """Copy into a session what is stored in others, as far as it is still there."""
        for each in wanted:
            if each.session == session.id and each.id == file_id(each.name):
                continue
            source = await self._found(request, each.session)
            if source is None:
                continue
            try:
                await self._copy(await self._storage.find(source, each.id), session, each.name)
            except NotFoundError:
                continue

    async def _copy(self, stored: Stored, session: Session, name: str) -> None:
        """Raises NotFoundError, NoSpaceError."""
        async with self._caller.stream(stored.session_id, "GET", target_of(stored.path)) as (reply, chunks):
            if reply.status != 200:
                raise NotFoundError(name)
            await self._storage.files(session).write(name, chunks)


def read_job(body: Mapping[str, Any]) -> Job:
    """What to run. Raises ParamError, BadRequestError, OutsideWorkspaceError. Pure."""
    language, code, arguments = body.get("lang"), body.get("code"), body.get("args") or []
    if not isinstance(language, str) or language not in _LANGUAGES:
        raise ParamError("lang", f"there are {', '.join(_LANGUAGES)}; got {str(language)[:32]!r}")
    if not isinstance(code, str) or not code:
        raise ParamError("code", "expected text")
    try:
        script = code.encode()
    except UnicodeEncodeError:
        raise ParamError("code", "contains an unpaired surrogate, which is not a character") from None
    if isinstance(arguments, str):
        arguments = [arguments]
    if (
        not isinstance(arguments, list)
        or len(arguments) > _MAX_ARGUMENTS
        or not all(isinstance(each, str) for each in arguments)
    ):
        raise ParamError("args", f"expected a list of at most {_MAX_ARGUMENTS} texts")
    files, session = body.get("files") or [], body.get("session_id") or ""
    if not isinstance(files, list) or len(files) > _MAX_FILES:
        raise ParamError("files", f"expected a list of at most {_MAX_FILES} files")
    if not isinstance(session, str):
        raise ParamError("session_id", "expected text")
    return Job(
        language, script, arguments, [_file(each, f"files[{index}]") for index, each in enumerate(files)], session
    )


def _file(value: Any, where: str) -> Wanted:
    fields = value if isinstance(value, dict) else {}
    # Before 0.8.5 the session of a file was called as that of a run.
    session = fields.get("storage_session_id") or fields.get("session_id")
    found = (fields.get("name"), session, fields.get("id"))
    if not all(isinstance(each, str) and each for each in found):
        raise ParamError(where, "expected an object with name, id and storage_session_id")
    name, stored, wanted = map(str, found)
    name = inner_path(name.removeprefix("/mnt/data/").lstrip("/"))
    if not name:
        raise ParamError(f"{where}.name", "names no file")
    return Wanted(name, stored, wanted)


def _describe(stored: Stored) -> dict[str, Any]:
    return {
        "id": stored.id,
        "name": stored.path,
        "path": f"/mnt/data/{stored.path}",
        "session_id": stored.session_id,
        "storage_session_id": stored.session_id,
    }

"""Kernels, kernelspecs and sessions of Jupyter Server's REST API. A kernel's id is its session's.

Source: jupyter-server.readthedocs.io/en/latest/developers/rest-api.html.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON, MAX_BODY_BYTES, read_bytes, unreadable
from gateway.api.jupyter.named import MARK, find_kernel, list_kernels
from gateway.api.sandbox_json import BadAnswerError
from gateway.api.sessions import DELETED_BY_USER, choose_runtime, create_session
from gateway.core import json_depth
from gateway.core.errors import BadRequestError
from gateway.core.interfaces import RuntimeCatalog, SandboxCaller, SessionStore
from gateway.core.model import Session
from gateway.core.units import rfc3339
from gateway.sessions.lifecycle import Lifecycle

_KERNEL = "python3"
_MAX_PATH_CHARS = 1024
_SPEC = {
    "name": _KERNEL,
    "spec": {
        "argv": [],
        "display_name": "Python 3 (Wakegate)",
        "language": "python",
        "interrupt_mode": "message",
        "env": {},
        "metadata": {},
    },
    "resources": {},
}


class KernelsAPI:
    """The handlers of the REST part."""

    def __init__(
        self, lifecycle: Lifecycle, store: SessionStore, catalog: RuntimeCatalog, caller: SandboxCaller
    ) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._catalog = catalog
        self._caller = caller

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "jupyter_version": self._version,
            "jupyter_list_kernelspecs": self._specs,
            "jupyter_list_kernels": self._list,
            "jupyter_create_kernel": self._create,
            "jupyter_get_kernel": self._get,
            "jupyter_delete_kernel": self._delete,
            "jupyter_restart_kernel": self._restart,
            "jupyter_interrupt_kernel": self._interrupt,
            "jupyter_list_sessions": self._list_notebooks,
            "jupyter_create_session": self._create_notebook,
            "jupyter_get_session": self._get_notebook,
            "jupyter_delete_session": self._delete,
        }

    async def _version(self, _: Request) -> Response:
        return JSON({"version": "2.17.0"})  # clients decide by it what they may ask for

    async def _specs(self, _: Request) -> Response:
        return JSON({"default": _KERNEL, "kernelspecs": {_KERNEL: _SPEC}})

    async def _list(self, _: Request) -> Response:
        return JSON([_model(each) for each in await list_kernels(self._store)])

    async def _create(self, request: Request) -> Response:
        body = await _read(request)
        session = await self._make(request, body.get("name"), body.get("path"))
        return JSON(_model(session), 201, {"location": f"/jupyter/api/kernels/{session.id}"})

    async def _make(self, request: Request, name: Any, path: Any) -> Session:
        if name not in (None, "", _KERNEL):
            raise BadRequestError(f"name: no such kernel {str(name)[:64]!r}; there is {_KERNEL}")
        if path is not None and (not isinstance(path, str) or len(path) > _MAX_PATH_CHARS):
            raise BadRequestError(f"path: expected text of at most {_MAX_PATH_CHARS} characters")
        runtime = choose_runtime(self._catalog, request, request.query_params.get("runtime"))
        opened = await create_session(request, self._lifecycle, runtime.key, metadata={MARK: path or "kernel"})
        return opened.session

    async def _get(self, request: Request) -> Response:
        return JSON(_model(await find_kernel(self._lifecycle, request)))

    async def _delete(self, request: Request) -> Response:
        session = await find_kernel(self._lifecycle, request)
        await self._lifecycle.terminate(session.id, DELETED_BY_USER)
        return Response(status_code=204)

    async def _restart(self, request: Request) -> Response:
        session = await find_kernel(self._lifecycle, request)
        await self._context(session, "restart")
        return JSON(_model(session))

    async def _interrupt(self, request: Request) -> Response:
        await self._context(await find_kernel(self._lifecycle, request), "interrupt")
        return Response(status_code=204)

    async def _context(self, session: Session, verb: str) -> None:
        reply = await self._caller.call(session.id, "POST", f"/api/contexts/default/{verb}")
        # 404: no code has run yet, so there is nothing to restart or to interrupt.
        if reply.status >= 400 and reply.status not in (404, 409):
            raise BadAnswerError(f"the sandbox answered {reply.status} to {verb}")

    async def _list_notebooks(self, _: Request) -> Response:
        return JSON([_notebook(each) for each in await list_kernels(self._store)])

    async def _create_notebook(self, request: Request) -> Response:
        body = await _read(request)
        kernel = body.get("kernel") or {}
        if not isinstance(kernel, dict):
            raise BadRequestError("kernel: expected an object")
        path = body.get("path") or body.get("name")
        # A notebook in a kernel's own folder (`contents`) runs in that kernel, whose files it is among.
        session = await self._kernel_of(path) if isinstance(path, str) and "/" in path else None
        if session is None:
            session = await self._make(request, kernel.get("name"), path)
        return JSON(_notebook(session), 201, {"location": f"/jupyter/api/sessions/{session.id}"})

    async def _kernel_of(self, path: str) -> Session | None:
        folder = path.partition("/")[0]
        return next((each for each in await list_kernels(self._store) if each.id == folder), None)

    async def _get_notebook(self, request: Request) -> Response:
        return JSON(_notebook(await find_kernel(self._lifecycle, request)))


async def _read(request: Request) -> dict[str, Any]:
    """The body as an object; clients send none at all as well. Raises BadRequestError."""
    data = await read_bytes(request, MAX_BODY_BYTES)
    if not data.strip():
        return {}
    try:
        body = json_depth.loads(data)
    except ValueError as error:
        raise unreadable("the body", error) from None
    if body is not None and not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    return body or {}


def _model(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "name": _KERNEL,
        "last_activity": rfc3339(session.last_active_at),
        "execution_state": "idle",  # of a kernel that is asked about without being woken nothing else is known
        "connections": 0,
    }


def _notebook(session: Session) -> dict[str, Any]:
    path = session.metadata.get(MARK, "")
    return {"id": session.id, "path": path, "name": path, "type": "notebook", "kernel": _model(session)}

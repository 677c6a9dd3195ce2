"""The channels of a kernel: a WebSocket on which a client runs code in a session and sees what it shows.

What a request becomes is said in `messages`; code runs through picod's streams, one request after another. Rejected:
passing on the kernel's own messages. They are user code's, and picod bounds and checks them already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import orjson
from starlette.types import Receive, Scope, Send

from gateway.api.http import JSON
from gateway.api.jupyter.comms import COMMS, LIST_COMMS, comms_of, delivering, of_comm
from gateway.api.jupyter.frames import V1, FrameError, parse, render
from gateway.api.jupyter.messages import PLAIN_REPLIES, make, of_error, of_event
from gateway.api.sandbox_json import BadAnswerError, count_of, parse_object, text_of
from gateway.api.sessions import is_session_id
from gateway.api.tools.run_events import read_events
from gateway.core.background import cancel
from gateway.core.clock import Clock
from gateway.core.errors import SessionNotFoundError, WakegateError, public_message
from gateway.core.identity import current
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import SessionId, SessionState
from gateway.core.units import rfc3339
from gateway.identity.scope import require_use
from gateway.sessions.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

_PREFIX, _SUFFIX = "/jupyter/api/kernels/", "/channels"
_MAX_WAITING = 64  # requests of one connection that wait for the code before them; picod's own bound
_MAX_RUN = "24h"  # a client interrupts what takes it too long
_MAX_ERROR_BYTES = 64 << 10
_COMM_INFO_S = 30.0


class Channels:
    """ASGI app for WebSockets below /jupyter, whose handshake is not answered yet."""

    def __init__(self, lifecycle: Lifecycle, caller: SandboxCaller, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._caller = caller
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection of the current caller's to its end, or refuse it."""
        try:
            session_id = await self._session_of(scope)
        except WakegateError as error:
            body = JSON({"message": public_message(error), "reason": None}).body
            fields = [(b"content-type", b"application/json")]
            await send({"type": "websocket.http.response.start", "status": error.status, "headers": fields})
            await send({"type": "websocket.http.response.body", "body": body})
            return
        # Without it, messages are JSON in text frames, as Jupyter has them from before it had a name for its protocols.
        v1 = V1 in scope.get("subprotocols", ())
        await send({"type": "websocket.accept", "subprotocol": V1 if v1 else None})
        await _Connection(session_id, self._caller, self._clock, send, v1=v1).serve(receive)

    async def _session_of(self, scope: Scope) -> SessionId:
        path: str = scope["path"]
        name = path.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        if not (path.startswith(_PREFIX) and path.endswith(_SUFFIX) and is_session_id(name)):
            raise SessionNotFoundError(f"there is no WebSocket at {path[:200]}")
        require_use(current(), scope.get("raw_path") or path.encode())
        session = await self._lifecycle.get(SessionId(name))
        if session.state is SessionState.TERMINATED:
            raise SessionNotFoundError(f"Kernel does not exist: {name}")
        return session.id


class _Connection:
    """One client's connection to one kernel."""

    def __init__(self, session_id: SessionId, caller: SandboxCaller, clock: Clock, send: Send, *, v1: bool) -> None:
        self._session_id = session_id
        self._caller = caller
        self._clock = clock
        self._send_frame = send
        self._v1 = v1
        self._own_session = uuid4().hex
        self._waiting: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(_MAX_WAITING)
        self._count = 0  # of this connection, until picod tells the context's own
        self._controls: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(_MAX_WAITING)

    async def serve(self, receive: Receive) -> None:
        """Until the client leaves, or breaks the rules; what it runs is interrupted then."""
        workers = [
            asyncio.create_task(self._work(answer_all), name=f"kernel {self._session_id}")
            for answer_all in (self._answer_requests, self._answer_controls)
        ]
        try:
            while (event := await receive())["type"] == "websocket.receive":
                text: str | None = event.get("text")
                frame: str | bytes = text if text is not None else event.get("bytes") or b""
                try:
                    self._take(parse(frame, v1=self._v1))
                except FrameError as error:
                    await self._send_frame({"type": "websocket.close", "code": 1003, "reason": str(error)[:120]})
                    return
                except asyncio.QueueFull:
                    await self._send_frame(
                        {"type": "websocket.close", "code": 1013, "reason": "too many requests wait"}
                    )
                    return
        finally:
            # Ends the request to picod, upon which it interrupts the run: nobody is there to see what comes of it.
            for worker in workers:
                await cancel(worker)

    def _take(self, message: Mapping[str, Any]) -> None:
        """Queue a request, but for those that must overtake the running one. Raises asyncio.QueueFull."""
        # Behind the running code an interrupt would wait for what it is to end: of `while True` for ever.
        if message["header"]["msg_type"] in ("interrupt_request", "shutdown_request"):
            self._controls.put_nowait(message)
        else:
            self._waiting.put_nowait(message)

    async def _work(self, answer_all: Callable[[], Awaitable[None]]) -> None:
        """Answer what waits, one after another. A failure of ours closes the connection: else it would hang."""
        try:
            await answer_all()
        except WakegateError as error:
            logger.warning("a connection of kernel %s ends: %s", self._session_id, error)
        except OSError:
            return  # the client has left, which is told to whom receives from it; nobody reads a close frame
        except Exception:
            logger.exception("a connection of kernel %s ends", self._session_id)
        await self._send_frame({"type": "websocket.close", "code": 1011, "reason": "internal error"})

    async def _answer_controls(self) -> None:
        while True:
            await self._control(await self._controls.get())

    async def _answer_requests(self) -> None:
        while True:
            message = await self._waiting.get()
            kind = message["header"]["msg_type"]
            if kind == "execute_request":
                await self._execute(message)
            elif kind in COMMS:
                await self._deliver(message)
            elif kind == "comm_info_request":
                await self._list_comms(message)
            # Others get no answer at all, as from a kernel that does not know them.
            elif (reply := PLAIN_REPLIES.get(kind)) is not None:
                await self._status(message, "busy")
                await self._tell(message, kind.removesuffix("request") + "reply", reply, "shell")
                await self._status(message, "idle")

    async def _execute(self, message: Mapping[str, Any]) -> None:
        code = message["content"].get("code")
        self._count += 1
        await self._status(message, "busy")
        await self._tell(
            message, "execute_input", {"code": code if isinstance(code, str) else "", "execution_count": self._count}
        )
        try:
            if not isinstance(code, str):
                raise FrameError("content.code: expected text")
            error = await self._run(message, code) if code.strip() else None  # nothing wakes no sandbox
        except (WakegateError, FrameError) as failed:
            name = failed.code if isinstance(failed, WakegateError) else "BadRequest"
            text = public_message(failed) if isinstance(failed, WakegateError) else str(failed)
            error = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
            await self._tell(message, "error", error)
        reply: dict[str, Any] = {"status": "ok", "user_expressions": {}, "payload": []}
        if error is not None:
            reply = {"status": "error", **error}
        await self._tell(message, "execute_reply", {**reply, "execution_count": self._count}, "shell")
        await self._status(message, "idle")  # the last: by it clients know that the run is over

    async def _deliver(self, message: Mapping[str, Any]) -> None:
        """Give the kernel a message of a comm's, and tell what its handlers show and answer. It has no reply."""
        await self._status(message, "busy")
        try:
            error = await self._run(message, delivering(message), silent=True)
        except (WakegateError, FrameError) as failed:
            text = str(failed) if isinstance(failed, FrameError) else public_message(failed)
            error = {"ename": "CommError", "evalue": text, "traceback": [text]}
            await self._tell(message, "error", error)
        await self._status(message, "idle")

    async def _list_comms(self, message: Mapping[str, Any]) -> None:
        """Tell which comms are open in the kernel: by it a front end that comes back finds its widgets."""
        await self._status(message, "busy")
        target = message["content"].get("target_name")
        found: list[Mapping[str, Any]] = []
        try:
            async with asyncio.timeout(_COMM_INFO_S):
                await self._run(message, LIST_COMMS, silent=True, results=found.append)
            reply: dict[str, Any] = {"status": "ok", "comms": comms_of(found, target)}
        except (WakegateError, TimeoutError) as failed:
            text = public_message(failed) if isinstance(failed, WakegateError) else "the kernel does not answer"
            reply = {"status": "error", "ename": "CommError", "evalue": text, "traceback": [], "comms": {}}
        await self._tell(message, "comm_info_reply", reply, "shell")
        await self._status(message, "idle")

    async def _run(
        self,
        message: Mapping[str, Any],
        code: str,
        *,
        silent: bool = False,
        results: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any] | None:
        """Run code, and tell what it shows as it comes; `results` gets that instead. Returns its error.

        Raises WakegateError.
        """
        error: dict[str, Any] | None = None
        ended = False
        fields = {"code": code, "language": "python", "stream": True, "timeout": _MAX_RUN, "comms": True}
        body = orjson.dumps({**fields, "silent": silent})
        async with self._caller.stream(
            self._session_id, "POST", "/api/run_code", headers={"content-type": "application/json"}, body=body
        ) as (reply, chunks):
            if reply.status != 200:
                raise BadAnswerError(await _read_error(chunks, reply.status))
            async for name, data, _ in read_events(chunks):
                if ended:
                    continue  # to the answer's end, which comes with the exit: only then can the connection be kept
                if name == "exit":
                    ended = True
                    if not silent and isinstance(data.get("execution_count"), int):
                        self._count = count_of(data, "execution_count")
                    continue
                if name == "error":
                    error = of_error(data)
                if results is not None:
                    results(data)
                elif (comm := of_comm(data) if name == "comm" else None) is not None:
                    kind, content, buffers = comm
                    await self._tell(message, kind, content, buffers=buffers)
                elif (shown := of_event(name, data, self._count)) is not None:
                    await self._tell(message, *shown)
        if not ended:
            raise BadAnswerError("the sandbox's stream ended before the run did")
        return error

    async def _control(self, message: Mapping[str, Any]) -> None:
        """Interrupt the code that runs. A shutdown is the REST part's: here it interrupts as well."""
        kind = message["header"]["msg_type"]
        try:
            await self._caller.call(self._session_id, "POST", "/api/contexts/default/interrupt")
            content: dict[str, Any] = {"status": "ok"}
        except WakegateError as error:
            content = {"status": "error", "ename": error.code, "evalue": public_message(error), "traceback": []}
        if kind == "shutdown_request":
            content["restart"] = bool(message["content"].get("restart"))
        await self._tell(message, kind.removesuffix("request") + "reply", content, "control")

    async def _status(self, message: Mapping[str, Any], state: str) -> None:
        await self._tell(message, "status", {"execution_state": state})

    async def _tell(
        self,
        message: Mapping[str, Any],
        kind: str,
        content: Mapping[str, Any],
        channel: str = "iopub",
        buffers: Sequence[bytes] = (),
    ) -> None:
        date = rfc3339(self._clock.now())
        made = make(kind, content, channel, message["header"], self._own_session, date, buffers)
        frame = render(made, v1=self._v1)
        key = "text" if isinstance(frame, str) else "bytes"
        await self._send_frame({"type": "websocket.send", key: frame})


async def _read_error(chunks: Any, status: int) -> str:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > _MAX_ERROR_BYTES:
            break
    try:
        return text_of(await parse_object(bytes(body)), "error", "")[:500] or f"the sandbox answered {status}"
    except BadAnswerError:
        return f"the sandbox answered {status}"

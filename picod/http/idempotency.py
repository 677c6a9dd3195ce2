"""Requests with an Idempotency-Key: a second request with the same key is not run, but gets the first one's answer.

A handler runs here in its own task, so that it outlives a client that leaves, and its answer is kept (kept_answers.py)
before its end is sent. A session that is restored from an older snapshot has lost both the work and the answer, so the
two never contradict each other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from picod.filesystem.paths import Workspace
from picod.http.kept_answers import MAX_ANSWER_BYTES, Answer, KeptAnswers
from picod.http.request import ClientGoneError, Request, RequestError

_MAX_KEY_CHARS = 256
_REPLAYED = (b"idempotency-replayed", b"true")


Handler = Callable[[Request], Awaitable[None]]


class _Flight:
    """One request that is running: its answer so far, and the client that asked first, until it leaves."""

    def __init__(self, digest: str, client: Request) -> None:
        self.answer = Answer(digest)
        self.client: Request | None = client
        self.task: asyncio.Task[None]

    async def pass_on(self, message: MutableMapping[str, Any]) -> None:
        """Send a message to the first client, at its pace; one that has left can ask for the whole answer again."""
        client = self.client
        if client is None:
            return
        try:
            if message["type"] == "http.response.start":
                await client.start(message["status"], message["headers"])
            else:
                await client.write(message["body"], more=message.get("more_body", False))
        except ClientGoneError:
            self.client = None


class IdempotentRequests:
    """All requests with a key that one picod gets. On the loop's thread only."""

    def __init__(self, workspace: Workspace, max_body: int) -> None:
        self._max_body = max_body
        self._running: dict[str, _Flight] = {}
        self._kept = KeptAnswers(workspace, self._running)

    @property
    def unattended(self) -> int:
        """How many requests are running although their client has left."""
        return sum(each.client is None for each in self._running.values())

    async def run(self, request: Request, handler: Handler, key: str) -> None:
        """Answer a request that has a key. Raises RequestError, ClientGoneError."""
        if len(key) > _MAX_KEY_CHARS:
            raise RequestError(400, f"Idempotency-Key may have {_MAX_KEY_CHARS} characters at most")
        body = await request.body(self._max_body)
        name, digest = hashlib.blake2b(key.encode("latin-1"), digest_size=16).hexdigest(), _digest(request, body)
        # No await between this look-up and `_begin`: of two equal requests at once, one finds the other's flight.
        flight = self._running.get(name)
        if flight is None:
            kept = self._kept.read(name)
            if kept is not None:
                await _replay(request, kept, digest)
                return
            flight = self._begin(request, handler, name, digest, body)
        await _finished(request, flight)
        if flight.client is request:
            if not flight.answer.complete:
                raise ClientGoneError  # the handler failed after its answer had begun: cut it off, so that this shows
            return
        _check(flight.answer.digest, digest)
        if not flight.answer.complete:
            raise _interrupted()
        if flight.answer.size > MAX_ANSWER_BYTES:
            raise _too_large(flight.answer.size)
        await request.start(flight.answer.status, (*flight.answer.headers, _REPLAYED))
        await request.write(bytes(flight.answer.body), more=False)

    def _begin(
        self,
        request: Request,
        handler: Handler,
        name: str,
        digest: str,
        body: bytes,
    ) -> _Flight:
        self._kept.begin(name, digest)
        flight = self._running[name] = _Flight(digest, request)
        flight.task = asyncio.get_running_loop().create_task(self._answer(request, handler, name, flight, body))
        return flight

    async def _answer(
        self,
        request: Request,
        handler: Handler,
        name: str,
        flight: _Flight,
        body: bytes,
    ) -> None:
        # The handler gets a client that never leaves: the work goes on for the one that will ask again.
        inner = Request(request.scope, _body_only(body), self._sender(name, flight), request.tail)
        try:
            await handler(inner)
        except RequestError as error:
            if not inner.started:
                await inner.answer_json(error.status, error.body)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not inner.started:
                await inner.answer_json(
                    500, {"code": 500, "error": "internal error; the sandbox's log has the details"}
                )
        finally:
            del self._running[name]

    def _sender(self, name: str, flight: _Flight) -> Callable[[MutableMapping[str, Any]], Awaitable[None]]:
        async def send(message: MutableMapping[str, Any]) -> None:
            flight.answer.record(message)
            if flight.answer.complete:
                # Before its end is sent: a client that has the whole answer gets the same one again.
                self._kept.finish(name, flight.answer)
            await flight.pass_on(message)

        return send


def _digest(request: Request, body: bytes) -> str:
    """A hash of what was asked, without `stream`: a retry may ask for the same answer in the other form."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        fields.pop("stream", None)
        body = json.dumps(fields, sort_keys=True).encode()  # a client may write the same object in another order
    asked = (request.method.encode(), request.scope["raw_path"], request.scope["query_string"], body)
    return hashlib.blake2b(b"\0".join(asked), digest_size=16).hexdigest()


async def _replay(request: Request, kept: tuple[dict[str, Any], bytes], digest: str) -> None:
    document, body = kept
    _check(document["digest"], digest)
    if "status" not in document:
        raise _interrupted()
    if document["size"] != len(body):
        raise _too_large(document["size"])
    headers = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in document["headers"]
    ]
    await request.start(document["status"], (*headers, _REPLAYED))
    await request.write(body, more=False)


async def _finished(request: Request, flight: _Flight) -> None:
    """Wait until the answer is complete. Raises ClientGoneError."""
    gone = asyncio.create_task(request.gone())
    try:
        await asyncio.wait({flight.task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not flight.task.done() and flight.client is request:
            flight.client = None  # what is answered from now on is kept only
    if not flight.task.done():
        raise ClientGoneError


def _check(first: str, digest: str) -> None:
    if first != digest:
        raise RequestError(422, "this Idempotency-Key was used for another request; use a new one for each")


def _interrupted() -> RequestError:
    return RequestError(
        409,
        "a request with this Idempotency-Key began before and did not come to its end: "
        "it may or may not have done its work; look, and ask with a new key",
        code="INTERRUPTED",
    )


def _too_large(size: int) -> RequestError:
    return RequestError(
        409,
        f"the request was run before; its answer had {size} bytes and was not kept ({MAX_ANSWER_BYTES} at most)",
        code="ANSWER_NOT_KEPT",
    )


def _body_only(body: bytes) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    """ASGI's receive of a client that has sent its body and never leaves."""
    first: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if first:
            return first.pop()
        await asyncio.Event().wait()
        raise AssertionError

    return receive

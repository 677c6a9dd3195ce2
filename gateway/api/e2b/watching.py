"""Watching a directory of a sandbox: as a stream, and as watchers that a client polls.

A polled watcher belongs to the gateway that made it and ends with the directory, with its session's sandbox, or when
nobody has polled it for a while; its client then gets `not_found` and makes another.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from gateway.api.e2b.connect import Batch, ConnectError, text_of
from gateway.api.e2b.filesystem import path_of
from gateway.api.e2b.sandbox import SandboxClient, read_error
from gateway.api.sandbox_json import text_of as answer_text
from gateway.api.sandbox_paths import FilePath
from gateway.api.tools.run_events import read_batches
from gateway.core.background import Tasks
from gateway.core.errors import WakegateError
from gateway.core.identity import current

Message = Mapping[str, Any]
logger = logging.getLogger(__name__)

_KINDS = {
    "created": "EVENT_TYPE_CREATE",
    "modified": "EVENT_TYPE_WRITE",
    "deleted": "EVENT_TYPE_REMOVE",
    "moved": "EVENT_TYPE_RENAME",
}
_MAX_WATCHERS = 1024  # of one gateway; picod allows eight to each sandbox
_MAX_OF_TENANT = 256  # so that no tenant takes them all
_MAX_EVENTS = 1000  # that wait for a poll; older ones are dropped
_IDLE_S = 600.0  # without a poll, after which a watcher ends


async def watch(sandbox: SandboxClient, message: Message) -> AsyncGenerator[Batch, None]:
    """WatchDir: changes of a directory until it is gone. Raises ConnectError."""
    async for changes in _changes(sandbox, path_of(message), bool(message.get("recursive"))):
        yield Batch([{"filesystem": change} if change else {"start": {}} for change in changes])


class Watchers:
    """The polled watchers of one gateway."""

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._by_id: dict[tuple[str, str], _Watcher] = {}

    async def create(self, sandbox: SandboxClient, message: Message) -> Message:
        """CreateWatcher. Raises ConnectError, also when there are too many."""
        tenant = current().tenant
        own = sum(each.tenant == tenant for each in self._by_id.values())
        if own >= _MAX_OF_TENANT or len(self._by_id) >= _MAX_WATCHERS:
            raise ConnectError("resource_exhausted", f"{own} watchers exist already; remove one")
        changes = _changes(sandbox, path_of(message), bool(message.get("recursive")))
        watcher = _Watcher(tenant)
        # With the session in the key, another sandbox's client cannot poll it, even if it learns the id.
        key = (str(sandbox.session_id), f"w{secrets.token_hex(8)}")
        self._by_id[key] = watcher
        self._tasks.spawn(self._collect(key, watcher, changes), name="watch a directory")
        try:
            await watcher.started
        except BaseException:
            self._by_id.pop(key, None)
            raise
        return {"watcherId": key[1]}

    async def events(self, sandbox: SandboxClient, message: Message) -> Message:
        """GetWatcherEvents: what happened since the last call."""
        return {"events": self._require(sandbox, message).take()}

    async def remove(self, sandbox: SandboxClient, message: Message) -> Message:
        """Filesystem/RemoveWatcher."""
        self._require(sandbox, message).removed.set()  # its task ends the request to picod, then forgets it
        return {}

    async def aclose(self) -> None:
        """End all watchers, and wait until their requests to picod have ended."""
        for watcher in self._by_id.values():
            watcher.removed.set()
        await self._tasks.wait()

    def _require(self, sandbox: SandboxClient, message: Message) -> _Watcher:
        watcher = self._by_id.get((str(sandbox.session_id), text_of(message, "watcherId")))
        if watcher is None or watcher.removed.is_set():
            raise ConnectError("not_found", "no such watcher; it may have ended because it was not polled")
        return watcher

    async def _collect(
        self, key: tuple[str, str], watcher: _Watcher, changes: AsyncIterator[Sequence[Message]]
    ) -> None:
        removed = asyncio.ensure_future(watcher.removed.wait())
        following = asyncio.ensure_future(anext(changes))
        try:
            while True:
                # It is a request that is under way, so the session stays awake while a client polls, and no longer.
                left = watcher.polled_at + _IDLE_S - asyncio.get_running_loop().time()
                await asyncio.wait((removed, following), return_when=asyncio.FIRST_COMPLETED, timeout=max(0.0, left))
                if removed.done() or left <= 0:
                    return
                # Not by `async for`: a wait that ends with the timeout must not cancel the read of the next change.
                if following.done():
                    for change in following.result():
                        watcher.add(change)
                    following = asyncio.ensure_future(anext(changes))
        except StopAsyncIteration:
            pass
        except (ConnectError, WakegateError) as error:
            if not watcher.started.done():
                watcher.started.set_exception(error)
            else:
                logger.info("a watcher of session %s ended: %s", key[0], error)
        finally:
            for task in (removed, following):
                task.cancel()
            await asyncio.gather(removed, following, return_exceptions=True)
            self._by_id.pop(key, None)
            if not watcher.started.done():  # else `create` would wait for ever
                watcher.started.set_exception(ConnectError("unavailable", "the directory cannot be watched"))


class _Watcher:
    def __init__(self, tenant: str | None) -> None:
        self.tenant = tenant
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.removed = asyncio.Event()
        self.polled_at = asyncio.get_running_loop().time()
        self._events: deque[Message] = deque(maxlen=_MAX_EVENTS)

    def add(self, event: Message) -> None:
        if event:
            self._events.append(event)
        elif not self.started.done():
            self.started.set_result(None)

    def take(self) -> list[Message]:
        self.polled_at = asyncio.get_running_loop().time()
        events = list(self._events)
        self._events.clear()
        return events


async def _changes(sandbox: SandboxClient, path: FilePath, recursive: bool) -> AsyncIterator[Sequence[Message]]:
    """An empty message once watching has begun, then the changes, those together that came together."""
    target = f"/api/fs/watch?{path.query}&recursive={'true' if recursive else 'false'}"
    async with sandbox.stream("GET", target) as (reply, chunks):
        if reply.status != 200:
            raise await read_error(reply, chunks)
        async for events in read_batches(chunks):
            yield [each for name, data, _ in events if (each := _change(name, data)) is not None]
            if any(name == "gone" for name, _, _ in events):
                return


def _change(name: str, data: Mapping[str, Any]) -> Message | None:
    """An event of picod's in E2B's form; None: it has none."""
    if name == "ready":
        return {}
    kind = _KINDS.get(answer_text(data, "type")) if name == "change" else None
    # picod may learn of kinds that E2B has no name for.
    return None if kind is None else {"name": answer_text(data, "path"), "type": kind}

"""List and watch: a local copy of one collection, as controllers keep it.

Source of the protocol: Kubernetes API concepts, "Efficient detection of changes". List in pages, watch from the list's
version, list again when the server says 410; bookmarks move the version on. A stream that ends is opened again where it
stood; failures are tried again with growing pauses, and what we know stays meanwhile.

Resource versions of one kind are compared as the numbers that they are in every server since etcd 3 (and by contract
since Kubernetes 1.35), so that our own writes' answers and the watch may come in either order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

from gateway.core.backoff import backoff, jittered
from gateway.provider.kubernetes.client import OPENED, KubeApi, KubeError, WatchExpiredError

logger = logging.getLogger(__name__)

# As client-go's pager asks for.
PAGE = 500
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.2, 30.0
# Before a stream that ended is opened again: a server that ends all of them at once gets 20 requests a second, no more.
_REOPEN_DELAY_S = 0.05
_RESYNC_INTERVAL_S = 1800.0  # seconds after which all is listed anew, so that no slip of a watch lasts longer
# UIDs of deleted objects. An event that was overtaken by a newer one comes within moments; 4,096 deletions take half an
# hour even at two a second.
_DEAD_KEPT = 4096


class Record(Protocol):
    """An object as a reflector's copy keeps it: parsed, and comparable by version."""

    @property
    def uid(self) -> str:
        """The object's UID, under which the copy keeps it."""
        ...

    @property
    def version(self) -> str:
        """Its resourceVersion, which changes with each write."""
        ...


R = TypeVar("R", bound=Record)


class Reflector(Generic[R]):
    """The collection at `path`. `on_change(old, new)` is called for each change of a record; None is absence."""

    def __init__(
        self,
        api: KubeApi,
        path: str,
        read: Callable[[dict[str, Any]], R | None],
        on_change: Callable[[R | None, R | None], None],
        **query: Any,
    ) -> None:
        self._api, self.path, self._read, self._on_change, self._query = api, path, read, on_change, query
        self.items: dict[str, R] = {}
        self.synced = asyncio.Event()
        self.problem = ""  # why it is not up to date, for people
        self._dead: OrderedDict[str, None] = OrderedDict()  # UIDs never come back; late news of them are stale

    async def run(self) -> None:
        """Follow the collection until cancelled."""
        loop = asyncio.get_running_loop()
        version, failures, listed = "", 0, 0.0
        while True:
            try:
                if not version or loop.time() - listed > _RESYNC_INTERVAL_S:
                    version, listed = await self.refresh(), loop.time()
                version = await self._follow(version)
                failures = 0
                await asyncio.sleep(_REOPEN_DELAY_S)
            except WatchExpiredError:
                logger.info("%s: the watch's version is too old (410); listing again", self.path)
                version = ""
            except KubeError as error:
                if str(error) != self.problem:
                    logger.warning("%s: %s", self.path, error)
                self.problem = str(error)
                failures += 1
                await asyncio.sleep(jittered(backoff(failures, first=_FIRST_BACKOFF_S, longest=_MAX_BACKOFF_S)))
            # A bug, or an object of an unexpected shape. Without this clause the copy would stay as it is for ever.
            except Exception:
                logger.exception("the watch on %s failed; listing again", self.path)
                version = ""
                await asyncio.sleep(_MAX_BACKOFF_S)

    async def refresh(self) -> str:
        """List all, and take what is gone out of the copy. Returns the list's version. Raises KubeError.

        A list that takes so long that its next page is too old to be had (410) begins anew.
        """
        while True:
            try:
                return await self._list()
            except WatchExpiredError:
                logger.info("%s: the list took too long (410); listing again", self.path)

    async def _list(self) -> str:
        before = set(self.items)
        seen: set[str] = set()
        query = {**self._query, "limit": PAGE}
        while True:
            page = await self._api.get(self.path, **query)
            for obj in page["items"]:
                seen.add(obj["metadata"]["uid"])
                self.learn(obj)
            token = (page["metadata"].get("continue")) or ""
            if not token:
                break
            query["continue"] = token
        # Only of what was known before the list began: what the watch or a write of ours has brought meanwhile is newer
        # than the list and may be missing in it.
        for uid in before - seen:
            self._forget(uid)
        self.problem = ""
        self.synced.set()
        return str(page["metadata"]["resourceVersion"])

    def learn(self, obj: dict[str, Any]) -> R | None:
        """Take in an object that the server gave us; older than what is known is passed over. What is known now."""
        new = self._read(obj)
        if new is None:
            self._forget(obj["metadata"]["uid"])
            return None
        return self.put(new)

    def put(self, new: R) -> R | None:
        """Take in a record. Returns what is known now: None if the object is dead."""
        if new.uid in self._dead:
            return None
        old = self.items.get(new.uid)
        if old is not None and _older(new.version, old.version):
            return old
        # A list brings everything again; what is equal is no news.
        if new != old:
            self.items[new.uid] = new
            self._on_change(old, new)
        return new

    async def _follow(self, version: str) -> str:
        """Apply events until the stream ends; returns the version to go on from."""
        async with aclosing(self._api.watch(self.path, version, **self._query)) as events:
            async for kind, obj in events:
                if self.problem:
                    logger.info("%s: followed again", self.path)
                    self.problem = ""
                if kind == OPENED:
                    continue
                version = obj["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self._forget(obj["metadata"]["uid"])
                # A bookmark has a version and no object: it moves the point to go on from, so that a quiet watch does
                # not expire.
                elif kind != "BOOKMARK":
                    self.learn(obj)
        return version

    def _forget(self, uid: str) -> None:
        self._dead[uid] = None
        if len(self._dead) > _DEAD_KEPT:
            self._dead.popitem(last=False)
        old = self.items.pop(uid, None)
        if old is not None:
            self._on_change(old, None)

    def is_dead(self, uid: str) -> bool:
        """Whether it is known to have been deleted."""
        return uid in self._dead


def _older(version: str, than: str) -> bool:
    return version.isdigit() and than.isdigit() and int(version) < int(than)

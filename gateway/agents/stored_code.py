"""The files and packages of agents in a cluster: archives in the snapshot store, named by the digest of their bytes.

A document of the session store says for each digest where it is and whose, so that every gateway finds what another one
was sent. Pods get the bytes as they were sent (provider/kubernetes/delivery.py) and compare them with the digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from gateway.agents.bundles import MAX_BUNDLES, MAX_BYTES, MAX_FILES, check_archive
from gateway.core.clock import Clock
from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import NotFoundError, QuotaExceededError, StaleWriteError
from gateway.core.interfaces import SnapshotStore
from gateway.core.model import SessionId, SnapshotRef

KIND = "agent-code"
ENVIRONMENTS = "agent-environment"  # documents: the name of an environment -> its digest
_Change = Callable[[Mapping[str, Any] | None], Mapping[str, Any] | None]
_KEY = "key"  # a document beside them
_PIECE = 1 << 20
_WRITE_ATTEMPTS = 5


class StoredCode:
    """A CodeStore over a snapshot store of its own. `scratch`: the folder for archives on their way in."""

    def __init__(self, store: SnapshotStore, documents: DocumentStore, scratch: Path, clock: Clock) -> None:
        self._store, self._documents, self._scratch, self._clock = store, documents, scratch, clock

    async def add(self, archive: BinaryIO, tenant: str) -> str:
        """See CodeStore."""
        return await self._keep(archive, tenant, max_bytes=MAX_BYTES, max_files=MAX_FILES)

    async def has(self, digest: str, tenant: str) -> bool:
        """See CodeStore."""
        found = await self._documents.get(KIND, digest)
        return found is not None and tenant in found.value["tenants"]

    async def find_environment(self, name: str, tenant: str) -> str:
        """See CodeStore."""
        found = await self._documents.get(ENVIRONMENTS, name)
        digest = "" if found is None else str(found.value["digest"])
        return digest if digest and await self._touch(digest, tenant) else ""

    async def keep_environment(self, name: str, tenant: str, file: IO[bytes], *, max_bytes: int, max_files: int) -> str:
        """See CodeStore."""
        digest = await self._keep(file, tenant, max_bytes=max_bytes, max_files=max_files)
        await self._write(ENVIRONMENTS, name, lambda _: {"digest": digest})
        return digest

    async def secret(self) -> bytes:
        """See CodeStore. Of two gateways that make one, the first one's is used by both."""
        fresh = Document(ENVIRONMENTS, _KEY, {"digest": "", "key": secrets.token_hex(32)})
        with suppress(StaleWriteError):
            found = await self._documents.get(ENVIRONMENTS, _KEY) or await self._documents.put(fresh)
            return bytes.fromhex(found.value["key"])
        return await self.secret()

    async def scratch_file(self) -> BinaryIO:
        """See CodeStore."""

        def make() -> BinaryIO:
            self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
            return cast("BinaryIO", tempfile.TemporaryFile(dir=self._scratch))

        return await asyncio.to_thread(make)

    async def read(self, digest: str) -> AsyncGenerator[bytes, None]:
        """The archive's bytes. Raises NotFoundError, SnapshotError."""
        found = await self._documents.get(KIND, digest)
        if found is None:
            raise NotFoundError(f"no files of an agent {digest}")
        async for piece in self._store.get(SnapshotRef(found.value["ref"])):
            yield piece

    async def sweep(self, used: Collection[str], before: float) -> None:
        """See CodeStore. Also what a gateway that was killed between the archive and its document has left."""
        kept, digests = set(), set()
        for document in await self._documents.list(KIND):
            if document.name in used or document.value["at"] >= before:
                kept.add(SnapshotRef(document.value["ref"]).key)
                digests.add(document.name)
            else:
                # The document first: without it nobody uses the archive, which the next look would find in any case.
                await self._documents.delete(KIND, document.name)
        for document in await self._documents.list(ENVIRONMENTS):
            if document.name != _KEY and document.value["digest"] not in digests:
                await self._documents.delete(ENVIRONMENTS, document.name)
        orphans = [each.key async for each in self._store.list() if each.key not in kept and each.at < before]
        for key in orphans:
            await self._store.delete(key)

    async def _keep(self, file: IO[bytes], tenant: str, *, max_bytes: int, max_files: int) -> str:
        digest = await asyncio.to_thread(_digest_of, file)
        if await self._touch(digest, tenant):
            return digest
        kept = len(await self._documents.list(KIND))
        if kept >= MAX_BUNDLES:
            raise QuotaExceededError(
                f"bundles: {kept} are kept, the most that are; those without an agent go after an hour",
                limit="bundles", value=MAX_BUNDLES, used=kept, retry_after=60.0,
            )  # fmt: skip
        file.seek(0)
        await asyncio.to_thread(check_archive, file, max_bytes=max_bytes, max_files=max_files)
        file.seek(0)
        reference = await self._store.put(SessionId(digest), _pieces(file))
        now = self._clock.now()

        def named(old: Mapping[str, Any] | None) -> Mapping[str, Any]:
            if old is None:
                return {"ref": reference, "at": now, "tenants": [tenant]}
            return _touched(old, tenant, now)  # another upload of the same was first: this archive is an orphan

        await self._write(KIND, digest, named)
        return digest

    async def _touch(self, digest: str, tenant: str) -> bool:
        """Whether it is here. It is then about to be named by the tenant, so `sweep` must not take it for an old one.

        Whoever sends the same bytes may use them: they have them.
        """
        if await self._documents.get(KIND, digest) is None:
            return False
        now = self._clock.now()
        return await self._write(KIND, digest, lambda old: None if old is None else _touched(old, tenant, now))

    async def _write(self, kind: str, name: str, change: _Change) -> bool:
        """Change a document. `change`: its value from the one before, None for none; None: leave it. Raises
        StaleWriteError where others are always faster."""
        for attempt in range(_WRITE_ATTEMPTS):
            old = await self._documents.get(kind, name)
            value = change(None if old is None else old.value)
            if value is None:
                return False
            try:
                await self._documents.put(Document(kind, name, value, 0 if old is None else old.version))
                return True
            except StaleWriteError:
                if attempt == _WRITE_ATTEMPTS - 1:
                    raise
        return False


def _touched(old: Mapping[str, Any], tenant: str, now: float) -> Mapping[str, Any]:
    return {**old, "at": now, "tenants": sorted({*old["tenants"], tenant})}


def _digest_of(file: IO[bytes]) -> str:
    file.seek(0)
    hashed = hashlib.sha256()
    for piece in iter(partial(file.read, _PIECE), b""):
        hashed.update(piece)
    return "sha256:" + hashed.hexdigest()


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, _PIECE):
        yield piece

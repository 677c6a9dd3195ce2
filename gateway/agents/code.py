"""Where the files and packages of agents are kept: the seam between what makes and uses them and what has them.

On one machine that is a folder (`FolderCode`), which sandboxes see; in a cluster the snapshot store (stored_code.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import IO, BinaryIO, Protocol

from gateway.agents.bundles import BundleStore


class CodeStore(Protocol):
    """Archives by digest, each of a tenant's."""

    async def add(self, archive: BinaryIO, tenant: str) -> str:
        """Keep a tar archive, plain or gzip; its digest. One that is here already is not stored again.

        Raises BadRequestError, TooLargeError, QuotaExceededError.
        """
        ...

    async def has(self, digest: str, tenant: str) -> bool:
        """Whether that tenant can use it."""
        ...

    async def find_environment(self, name: str, tenant: str) -> str:
        """The digest of the packages of that name, about to be used; empty if they were never installed."""
        ...

    async def keep_environment(self, name: str, tenant: str, file: IO[bytes], *, max_bytes: int, max_files: int) -> str:
        """Keep an archive of packages; its digest. Raises as `add`."""
        ...

    async def secret(self) -> bytes:
        """The key for names of environments, which nobody outside can work out."""
        ...

    async def scratch_file(self) -> BinaryIO:
        """A file without a name, for what comes in."""
        ...

    async def sweep(self, used: Collection[str], before: float) -> None:
        """Delete what is not `used` and was last sent before a time."""
        ...


class FolderCode:
    """A CodeStore over the folder that sandboxes of this machine see. Who knows a digest can use it."""

    def __init__(self, bundles: BundleStore) -> None:
        self._bundles = bundles

    async def add(self, archive: BinaryIO, tenant: str) -> str:
        """See CodeStore."""
        return await asyncio.to_thread(self._bundles.add, archive)

    async def has(self, digest: str, tenant: str) -> bool:
        """See CodeStore."""
        return await asyncio.to_thread(self._bundles.has, digest)

    async def find_environment(self, name: str, tenant: str) -> str:
        """See CodeStore. Its name is its digest: the archive is not kept, and its bytes would differ each time."""
        return name if await asyncio.to_thread(self._bundles.touch, name) else ""

    async def keep_environment(self, name: str, tenant: str, file: IO[bytes], *, max_bytes: int, max_files: int) -> str:
        """See CodeStore."""
        await asyncio.to_thread(self._bundles.keep, name, file, max_bytes=max_bytes, max_files=max_files)
        return name

    async def secret(self) -> bytes:
        """See CodeStore."""
        return await asyncio.to_thread(self._bundles.secret)

    async def scratch_file(self) -> BinaryIO:
        """See CodeStore."""
        return await asyncio.to_thread(self._bundles.scratch_file)

    async def sweep(self, used: Collection[str], before: float) -> None:
        """See CodeStore."""
        await asyncio.to_thread(self._bundles.sweep, used, before)

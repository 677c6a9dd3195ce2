"""API keys in the session store of this machine's settings, without a gateway: the first has to come from somewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvloop

from gateway.api.keys import key_document
from gateway.build import store_of
from gateway.core.clock import SystemClock
from gateway.core.identity import Role
from gateway.core.settings import Settings, make_state_dir
from gateway.identity.directory import KeyDirectory, open_directory
from gateway.identity.keys import APIKey, e2b_spelling


class StoredKeys:
    """Makes and ends keys in a store. Answers are as those of /v1/keys; each call raises WakegateError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def create(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A new key of these fields of POST /v1/keys; `expires` in seconds."""

        async def run() -> dict[str, Any]:
            async with self._directory() as directory:
                return _shown_once(
                    *await directory.create(
                        role=Role(fields["role"]),
                        tenant=fields["tenant"],
                        name=fields["name"],
                        user=fields["user"],
                        runtimes=fields["runtimes"],
                        lifetime=fields.get("expires"),
                    )
                )

        return uvloop.run(run())

    def list(self, tenant: str) -> Sequence[dict[str, Any]]:
        """The keys of a tenant, or of all if it is empty."""

        async def run() -> Sequence[dict[str, Any]]:
            async with self._directory() as directory:
                return [key_document(key) for key in await directory.list(tenant or None)]

        return uvloop.run(run())

    def revoke(self, key_id: str) -> None:
        """End a key, at every gateway within two seconds."""

        async def run() -> None:
            async with self._directory() as directory:
                await directory.revoke(key_id)

        uvloop.run(run())

    def rotate(self, key_id: str, overlap: float) -> dict[str, Any]:
        """A key with the same rights; the old one ends in so many seconds."""

        async def run() -> dict[str, Any]:
            async with self._directory() as directory:
                return _shown_once(*await directory.rotate(key_id, overlap=overlap))

        return uvloop.run(run())

    @asynccontextmanager
    async def _directory(self) -> AsyncIterator[KeyDirectory]:
        clock = SystemClock()
        make_state_dir(self._settings.state_dir)
        store = store_of(self._settings, clock)
        await store.start()
        try:
            yield await open_directory(store.documents, clock)
        finally:
            await store.aclose()


def _shown_once(text: str, key: APIKey) -> dict[str, Any]:
    return {"key": text, "e2bKey": e2b_spelling(text), **key_document(key)}

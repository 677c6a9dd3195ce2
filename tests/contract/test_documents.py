"""What every store promises about documents: one suite over memory, sqlite and Redis."""

from __future__ import annotations

import asyncio

import pytest

from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import StaleWriteError, StoreUnavailableError
from gateway.core.interfaces import SessionStore


@pytest.fixture
def documents(store: SessionStore) -> DocumentStore:
    """The documents of that store."""
    return store.documents


async def test_document_reads_back_as_written(documents: DocumentStore) -> None:
    """A value of any JSON reads back equal, with version 1."""
    value = {"a": [1, 2.5, None, True], "ü": {"nested": "\x00 text"}}
    assert await documents.get("key", "one") is None

    written = await documents.put(Document("key", "one", value))

    assert written == Document("key", "one", value, 1)
    assert await documents.get("key", "one") == written
    assert await documents.get("tenant", "one") is None


async def test_write_from_an_old_version_is_refused(documents: DocumentStore) -> None:
    """Of two writers that read the same version, the second is refused and changes nothing."""
    first = await documents.put(Document("key", "one", {"n": 1}))
    second = await documents.put(Document("key", "one", {"n": 2}, first.version))

    for version in (0, first.version, second.version + 1):
        with pytest.raises(StaleWriteError):
            await documents.put(Document("key", "one", {"n": 3}, version))

    assert await documents.get("key", "one") == second


async def test_of_concurrent_writers_one_wins(documents: DocumentStore) -> None:
    """Ten writers of one new document: one is answered, nine are refused."""
    results = await asyncio.gather(
        *(documents.put(Document("key", "one", {"n": n})) for n in range(10)), return_exceptions=True
    )

    assert sum(isinstance(each, Document) for each in results) == 1
    assert sum(isinstance(each, StaleWriteError) for each in results) == 9


async def test_deleted_document_is_absent_and_may_be_made_anew(documents: DocumentStore) -> None:
    """Deletion reports whether the document existed; the name is free afterwards."""
    await documents.put(Document("key", "one", {}))

    assert await documents.delete("key", "one")
    assert not await documents.delete("key", "one")
    assert await documents.get("key", "one") is None
    assert (await documents.put(Document("key", "one", {"new": True}))).version == 1


async def test_list_has_all_of_one_kind_by_name(documents: DocumentStore) -> None:
    """Documents of other kinds are not among them."""
    for name in ("b", "a", "c"):
        await documents.put(Document("key", name, {"name": name}))
    await documents.put(Document("tenant", "z", {}))

    assert [each.name for each in await documents.list("key")] == ["a", "b", "c"]
    assert await documents.list("other") == []


async def test_revision_grows_with_each_change_of_its_kind_only(documents: DocumentStore) -> None:
    """A put, an update and a deletion each raise it; a refused write and another kind do not."""
    seen = [await documents.revision("key")]
    made = await documents.put(Document("key", "one", {}))
    seen.append(await documents.revision("key"))
    await documents.put(Document("key", "one", {"n": 1}, made.version))
    seen.append(await documents.revision("key"))
    await documents.delete("key", "one")
    seen.append(await documents.revision("key"))
    await documents.put(Document("tenant", "one", {}))
    await documents.delete("key", "one")

    assert seen == sorted(set(seen))
    assert seen[0] == 0
    assert await documents.revision("key") == seen[-1]


async def test_closed_store_refuses(store: SessionStore) -> None:
    """Documents are open while their store is."""
    await store.aclose()

    with pytest.raises(StoreUnavailableError):
        await store.documents.get("key", "one")

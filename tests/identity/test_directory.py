"""Keys as several gateways of one store see them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.documents import Document
from gateway.core.errors import BadRequestError, NotFoundError, SettingsError
from gateway.core.identity import Role
from gateway.identity.directory import BOOTSTRAP_ID, KIND, KeyDirectory, open_directory
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock
from tests.support.records import T0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0)


@pytest.fixture
async def store(clock: ManualClock) -> AsyncIterator[MemoryStore]:
    made = MemoryStore(clock)
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture
async def directory(store: MemoryStore, clock: ManualClock) -> KeyDirectory:
    return await open_directory(store.documents, clock)


async def test_created_key_is_found_and_stored_as_a_hash(directory: KeyDirectory, store: MemoryStore) -> None:
    """What is stored has neither the key nor its secret part."""
    text, key = await directory.create(role=Role.MEMBER, tenant="acme", runtimes=["my-interpreter"])
    found = directory.find(text)
    assert found == key
    assert found is not None
    assert found.identity().tenant == "acme"
    assert found.runtimes == {"default/my-interpreter"}
    assert text.rpartition("_")[2] not in str(await store.documents.list(KIND))


async def test_other_gateway_follows_creation_and_revocation(
    directory: KeyDirectory, store: MemoryStore, clock: ManualClock
) -> None:
    """With the next look at the store, and `follow` says that something changed, once."""
    other = await open_directory(store.documents, clock)
    text, key = await directory.create(role=Role.MEMBER)
    assert other.find(text) is None
    assert (await other.follow(), await other.follow()) == (True, False)
    assert other.find(text) == key
    await other.revoke(key.id)
    assert other.find(text) is None
    assert await directory.follow()
    assert directory.find(text) is None
    with pytest.raises(NotFoundError):
        await directory.revoke(key.id)


async def test_expired_key_is_not_found(directory: KeyDirectory, clock: ManualClock) -> None:
    """From the second at which it ends."""
    text, _ = await directory.create(role=Role.VIEWER, lifetime=60.0)
    clock.advance(59.0)
    assert directory.find(text) is not None
    clock.advance(1.0)
    assert directory.find(text) is None


async def test_rotation_keeps_the_rights_and_ends_the_old_key(directory: KeyDirectory, clock: ManualClock) -> None:
    """At once, or after an overlap in which both work."""
    old, key = await directory.create(role=Role.OPERATOR, tenant="acme", name="ci", lifetime=1000.0)
    new, made = await directory.rotate(key.id, overlap=100.0)
    assert (made.role, made.tenant, made.name, made.expires_at) == (Role.OPERATOR, "acme", "ci", T0 + 1000.0)
    assert directory.find(old) is not None
    assert directory.find(new) == made
    clock.advance(100.0)
    assert directory.find(old) is None
    newest, _ = await directory.rotate(made.id, overlap=0.0)
    assert directory.find(new) is None
    assert directory.find(newest) is not None


async def test_last_use_is_noted_once_a_minute_and_wakes_no_other_gateway(
    directory: KeyDirectory, store: MemoryStore, clock: ManualClock
) -> None:
    """It is written beside the keys: else each use would make every gateway read all keys again."""
    text, _ = await directory.create(role=Role.MEMBER)
    await directory.follow()
    revision = await store.documents.revision(KIND)
    directory.find(text)
    await directory.follow()
    first = (await directory.list())[0].last_used_at
    clock.advance(30.0)
    directory.find(text)
    await directory.follow()
    assert (first, (await directory.list())[0].last_used_at) == (T0, T0)
    clock.advance(31.0)
    directory.find(text)
    await directory.follow()
    assert (await directory.list())[0].last_used_at == T0 + 61.0
    assert await store.documents.revision(KIND) == revision


@pytest.mark.parametrize(
    "wrong", [{"tenant": "Not A Label"}, {"tenant": ""}, {"runtimes": ["a/b/c"]}, {"name": "x" * 129}]
)
async def test_wrong_fields_are_refused(directory: KeyDirectory, wrong: dict[str, object]) -> None:
    """And nothing is stored."""
    with pytest.raises(BadRequestError):
        await directory.create(role=Role.MEMBER, **wrong)  # type: ignore[arg-type]
    assert await directory.list() == []


async def test_unreadable_key_in_the_store_is_ignored(directory: KeyDirectory, store: MemoryStore) -> None:
    """The others go on working."""
    text, _ = await directory.create(role=Role.MEMBER)
    await store.documents.put(Document(KIND, "broken", {"role": "emperor"}))
    await directory.follow()
    assert directory.find(text) is not None


async def test_admin_key_file_is_read_again_when_it_changes(
    store: MemoryStore, clock: ManualClock, tmp_path: Path
) -> None:
    """The old key ends; a file that becomes unreadable leaves the key as it was."""
    path = tmp_path / "admin"
    path.write_text("a" * 40 + "\n")
    directory = await open_directory(store.documents, clock, path)
    found = directory.find("a" * 40)
    assert found is not None
    assert (found.id, found.role) == (BOOTSTRAP_ID, Role.ADMIN)
    other = tmp_path / "other"
    other.write_text("b" * 40)
    os.replace(other, path)
    assert await directory.follow()
    assert (directory.find("a" * 40), directory.find("b" * 40) is None) == (None, False)
    path.unlink()
    assert not await directory.follow()
    assert directory.find("b" * 40) is not None


@pytest.mark.parametrize("content", ["", "short", "with a space " * 4, "ü" * 40])
async def test_weak_admin_key_is_refused_at_the_start(
    store: MemoryStore, clock: ManualClock, tmp_path: Path, content: str
) -> None:
    """With the name of the file and what makes a good one."""
    path = tmp_path / "admin"
    path.write_text(content)
    with pytest.raises(SettingsError, match="openssl rand"):
        await open_directory(store.documents, clock, path)

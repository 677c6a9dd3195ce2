"""What an authenticator remembers of credentials, and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import UnauthorizedError
from gateway.core.identity import Role
from gateway.identity.authenticator import Authenticator, open_authenticator
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock
from tests.support.records import T0, session


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0)


@pytest.fixture
async def authenticator(clock: ManualClock) -> AsyncIterator[Authenticator]:
    store = MemoryStore(clock)
    await store.start()
    yield await open_authenticator(store.documents, clock, Path())
    await store.aclose()


async def test_remembered_key_ends_at_its_time_and_not_with_the_next_look_at_the_store(
    authenticator: Authenticator, clock: ManualClock
) -> None:
    """The data path asks memory alone, which is looked through once a second."""
    key = (await authenticator.directory.create(role=Role.MEMBER, lifetime=60.0))[0].encode()
    await authenticator.authenticate(key)
    clock.advance(59.9)
    assert authenticator.lookup(key) is not None
    clock.advance(0.1)
    assert authenticator.lookup(key) is None
    with pytest.raises(UnauthorizedError):
        await authenticator.authenticate(key)


async def test_remembered_token_of_a_session_ends_at_its_time(authenticator: Authenticator, clock: ManualClock) -> None:
    """As a key does."""
    token, _ = authenticator.issue_session_token(session("s"), 60.0, subject="", paths=(), ports=())
    await authenticator.authenticate(token.encode())
    clock.advance(59.9)
    assert authenticator.lookup(token.encode()) is not None
    clock.advance(0.1)
    assert authenticator.lookup(token.encode()) is None
    with pytest.raises(UnauthorizedError):
        await authenticator.authenticate(token.encode())


async def test_key_that_never_expires_is_remembered_whatever_the_clock_says(
    authenticator: Authenticator, clock: ManualClock
) -> None:
    """Also when the clock jumps by a year, forwards and back."""
    key = (await authenticator.directory.create(role=Role.MEMBER))[0].encode()
    await authenticator.authenticate(key)
    for jump in (365 * 86400.0, -2 * 365 * 86400.0):
        clock.advance(jump)
        assert authenticator.lookup(key) is not None


async def test_clock_that_jumps_back_brings_no_expired_key_back(
    authenticator: Authenticator, clock: ManualClock
) -> None:
    """Once it was refused and forgotten, it is verified anew: the clock as it is then decides, and no memory."""
    key = (await authenticator.directory.create(role=Role.MEMBER, lifetime=60.0))[0].encode()
    await authenticator.authenticate(key)
    clock.advance(61.0)
    await authenticator.follow()
    clock.advance(-30.0)
    assert authenticator.lookup(key) is None
    assert (await authenticator.authenticate(key)).key_id


async def test_clock_that_is_set_back_does_not_end_the_memory_of_a_minute(
    authenticator: Authenticator, clock: ManualClock
) -> None:
    """What is remembered is verified anew each minute, whatever the wall clock says: an issuer may have taken its key
    back."""
    key = (await authenticator.directory.create(role=Role.MEMBER))[0].encode()
    await authenticator.follow()
    await authenticator.authenticate(key)
    clock.advance(-365 * 86400.0)
    clock.advance(61.0)
    await authenticator.follow()
    assert authenticator.lookup(key) is None
    assert (await authenticator.authenticate(key)).key_id

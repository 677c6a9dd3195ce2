"""A world to reach, and the real egress service in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from gateway.egress.gate import EgressGate
from tests.support.internet import Internet, internet


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    """Hosts in network namespaces of this run."""
    with internet(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture
async def gate(world: Internet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EgressGate]:
    """What starts the service, in the namespace of the world's edge. It ends TLS where a policy asks for that."""
    async with _gate(world, tmp_path_factory) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept_gate(world: Internet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EgressGate]:
    """One for a module's tests, each with a policy of its own; they run on the module's loop."""
    async with _gate(world, tmp_path_factory) as made:
        yield made


@asynccontextmanager
async def _gate(world: Internet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EgressGate]:
    made = EgressGate(wrapper=world.enter, authority=tmp_path_factory.mktemp("egress"), trusted=world.ca)
    made.bundle(time.time())
    yield made
    await made.aclose()

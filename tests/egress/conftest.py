"""A world to reach, and the real egress service in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

import pytest

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
    made = EgressGate(wrapper=world.enter, authority=tmp_path_factory.mktemp("egress"), trusted=world.ca)
    made.bundle(time.time())
    yield made
    await made.aclose()

"""A world to reach, and the real egress service in it."""

from __future__ import annotations

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
async def gate(world: Internet) -> AsyncIterator[EgressGate]:
    """What starts the service, in the namespace of the world's edge."""
    made = EgressGate(wrapper=world.enter)
    yield made
    await made.aclose()

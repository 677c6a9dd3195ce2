"""A gateway in a simulated cluster, one for all tests of a module that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kube.served import in_cluster
from tests.support.kube.simulator import Cluster
from tests.support.serve import Server


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Cluster]]:
    """One gateway and its cluster for all tests of a module."""
    with in_cluster(tmp_path_factory.mktemp("kube")) as opened:
        yield opened


@pytest.fixture
def server(both: tuple[Server, Cluster]) -> Server:
    """The gateway of `both`."""
    return both[0]


@pytest.fixture
def cluster(both: tuple[Server, Cluster]) -> Cluster:
    """The cluster of `both`."""
    return both[1]

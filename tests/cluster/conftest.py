"""The whole cluster, one for all tests of a run, with the quickstart on it; and what the tests have measured."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.gateway import Gateway
from tests.cluster.report import Outcome, write
from tests.support.kube.whole.cluster import SANDBOXES, WholeCluster
from tests.support.kube.whole.shared import IMAGES, shared_cluster

REPORT = "CLUSTER_REPORT"
_figures: dict[str, object] = {}
_began = time.monotonic()


def _turn(item: pytest.Item) -> int:
    """The quickstart's tests, then what needs nodes alone, then what takes the quickstart's place."""
    ours = Path(__file__).parent in item.path.parents
    return 1 if not ours else 2 * (item.path.name == "test_production.py")


@pytest.hookimpl(trylast=True)  # after tests/conftest.py, which puts folders with long files first
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """None of them runs without programs and images, which scripts/test-cluster makes."""
    lacks = pytest.mark.skipif(IMAGES not in os.environ, reason="needs a cluster of machines: scripts/test-cluster")
    if IMAGES in os.environ:
        items.sort(key=_turn)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(lacks)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report that CLUSTER_REPORT names: of every test of the run, those of other folders too."""
    target = os.environ.get(REPORT)
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if target and reporter is not None and IMAGES in os.environ:
        ended = [each for word in ("passed", "failed", "error", "skipped") for each in reporter.stats.get(word, ())]
        outcomes = [
            Outcome(each.nodeid.rpartition("::")[2], each.outcome, each.duration)
            for each in sorted(ended, key=lambda each: float(each.start))
        ]
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        programs = Path(os.environ["KUBERNETES_BIN"])
        write(Path(target), day, programs, outcomes, _figures, time.monotonic() - _began)


@pytest.fixture(scope="session")
def figures() -> dict[str, object]:
    """What was measured, by name, for the report."""
    return _figures


@pytest.fixture(scope="session")
def cluster(figures: dict[str, object]) -> WholeCluster:
    """Two nodes with the quickstart."""
    began = time.monotonic()
    one = shared_cluster()
    figures["two nodes ready after, s"] = round(time.monotonic() - began, 1)
    began = time.monotonic()
    one.install()
    figures["quickstart applied to gateway ready, s"] = round(time.monotonic() - began, 1)
    return one


@pytest.fixture(scope="session")
def gateway(cluster: WholeCluster) -> Iterator[Gateway]:
    """Its gateway, by the Service, as its administrator."""
    headers = {"authorization": f"Bearer {cluster.admin_key}"}
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=120) as client:
        one = Gateway(client, f"{SANDBOXES}/my-interpreter")
        one.wait_for_pool()
        yield one

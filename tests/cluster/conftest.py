"""The whole cluster, one for all tests of a run, with the quickstart on it; and what the tests have measured."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.gateway import Gateway
from tests.cluster.report import Outcome, write
from tests.support.kube.whole.cluster import SANDBOXES, WholeCluster

IMAGES, REPORT = "CLUSTER_IMAGES", "CLUSTER_REPORT"
_outcomes: list[Outcome] = []
_figures: dict[str, object] = {}
_began = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """None of them runs without programs and images, which scripts/test-cluster makes."""
    lacks = pytest.mark.skipif(IMAGES not in os.environ, reason="needs a cluster of machines: scripts/test-cluster")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(lacks)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how each test ended, and one that never began."""
    if report.nodeid.startswith("tests/cluster/") and (report.when == "call" or report.outcome != "passed"):
        _outcomes.append(Outcome(report.nodeid.rpartition("::")[2], report.outcome, report.duration))


def pytest_sessionfinish() -> None:
    """Write the report that CLUSTER_REPORT names."""
    if (target := os.environ.get(REPORT)) and IMAGES in os.environ:
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        programs = Path(os.environ["KUBERNETES_BIN"])
        write(Path(target), day, programs, _outcomes, _figures, time.monotonic() - _began)


@pytest.fixture(scope="session")
def figures() -> dict[str, object]:
    """What was measured, by name, for the report."""
    return _figures


@pytest.fixture(scope="session")
def cluster(figures: dict[str, object]) -> Iterator[WholeCluster]:
    """Two nodes with the quickstart."""
    folder = Path(tempfile.mkdtemp(prefix="wakegate-cluster-", dir=os.environ.get("CLUSTER_SCRATCH")))
    one = WholeCluster(folder, Path(os.environ["KUBERNETES_BIN"]), Path(os.environ[IMAGES]))
    try:
        began = time.monotonic()
        one.start()
        figures["two nodes ready after, s"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        one.install()
        figures["quickstart applied to gateway ready, s"] = round(time.monotonic() - began, 1)
        yield one
    finally:
        one.stop()
        if "CLUSTER_KEEP" not in os.environ:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def gateway(cluster: WholeCluster) -> Iterator[Gateway]:
    """Its gateway, by the Service, as its administrator."""
    headers = {"authorization": f"Bearer {cluster.admin_key}"}
    with httpx.Client(base_url=cluster.url, headers=headers, timeout=120) as client:
        one = Gateway(client, f"{SANDBOXES}/my-interpreter")
        one.wait_for_pool()
        yield one

"""How the API server is asked: what is tried again and what is not, how much at once, what an error says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.provider.kubernetes import KubeApi, connect, names
from gateway.provider.kubernetes.client import KubeError, OutcomeUnknownError
from tests.support.kube.clusters import make_cluster
from tests.support.kube.simulator import ApiError, Cluster
from tests.support.waiting import eventually

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
BODY: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}}
BUSY = ApiError(429, "TooManyRequests", "the server is busy", retry_after=0)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with make_cluster(hollow=True).running() as made:
        yield made


@pytest.fixture
async def api(cluster: Cluster, tmp_path: Path) -> AsyncIterator[KubeApi]:
    made = await connect(cluster.kubeconfig(tmp_path), concurrency=4)
    yield made
    await made.aclose()


@pytest.mark.parametrize("error", [BUSY, ApiError(503, "ServiceUnavailable", "starting")])
@pytest.mark.parametrize("verb", ["get", "create"])
async def test_request_that_the_server_did_not_begin_is_tried_again(
    cluster: Cluster, api: KubeApi, error: ApiError, verb: str
) -> None:
    """A read, and a write: the server said that it has done nothing of it."""
    cluster.api.failing = error
    work = asyncio.create_task(api.get(names.pods("default")) if verb == "get" else api.create(CONFIGMAPS, BODY))
    await eventually(lambda: api.calls.errors, "it was refused")
    cluster.api.failing = None
    assert (await work)["apiVersion"] == "v1"


async def test_deleting_what_is_not_there_is_no_failure(api: KubeApi) -> None:
    """Nor is it counted as one: runtimes without a NetworkPolicy have theirs deleted at each start."""
    await api.delete(CONFIGMAPS + "/none")
    assert api.calls.errors == {}
    with pytest.raises(KubeError):
        await api.get(CONFIGMAPS + "/none")
    assert sum(api.calls.errors.values()) == 1


async def test_write_that_met_a_changing_quota_is_tried_again(cluster: Cluster, api: KubeApi) -> None:
    """Under many creations at once the server counts some of them into a quota that just changed, and does nothing."""
    said = 'Operation cannot be fulfilled on resourcequotas "few": the object has been modified'
    cluster.api.failing = ApiError(409, "Conflict", said)
    work = asyncio.create_task(api.create(CONFIGMAPS, BODY))
    await eventually(lambda: api.calls.errors, "it was refused")
    cluster.api.failing = None
    assert (await work)["metadata"]["name"] == "one"


async def test_write_that_broke_off_is_not_tried_again(cluster: Cluster, api: KubeApi) -> None:
    """It may have happened: the error says so, and the request was sent once."""
    cluster.api.slow_answers = True
    work = asyncio.create_task(api.create(CONFIGMAPS, BODY))
    await eventually(lambda: cluster.api.counts["create", "configmaps"] == 1, "the server has it")
    await cluster.stop_api()
    with pytest.raises(OutcomeUnknownError, match="did not answer POST"):
        await work
    await cluster.start_api()
    cluster.api.slow_answers = False
    assert (await api.get(f"{CONFIGMAPS}/one"))["metadata"]["name"] == "one"
    assert cluster.api.counts["create", "configmaps"] == 1


async def test_refusal_is_not_retried_and_has_the_reason(cluster: Cluster, api: KubeApi) -> None:
    """403 and 409 would be the same a second time: the server's words come at once."""
    await api.create(CONFIGMAPS, BODY)
    with pytest.raises(KubeError, match='configmaps "one" already exists') as taken:
        await api.create(CONFIGMAPS, BODY)
    assert (taken.value.http_status, taken.value.reason) == (409, "AlreadyExists")
    cluster.api.denied.add(("get", "pods"))
    before = cluster.api.counts["get", "pods"]
    with pytest.raises(KubeError, match="cannot get pods"):
        await api.get(names.pods("default", "one"))
    assert cluster.api.counts["get", "pods"] == before + 1


async def test_requests_at_once_are_bounded_and_watches_do_not_count(
    cluster: Cluster, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty reads over four slots: never more than four at the server, while more watches than that are open."""
    watches = [api.watch(names.pods("default"), "1") for _ in range(6)]
    for watch in watches:
        assert await anext(watch) == ("OPENED", {})
    most, now = 0, 0
    answer = cluster.api._answer

    async def counted(*arguments: Any) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        try:
            return await answer(*arguments)
        finally:
            now -= 1

    monkeypatch.setattr(cluster.api, "_answer", counted)
    await asyncio.gather(*(api.get("/version") for _ in range(40)))
    assert most == 4
    for watch in watches:
        await watch.aclose()

"""The Kubernetes provider's own promises, over the simulator: what it writes, and what it does when things go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.core.errors import RuntimeNotFoundError, SandboxStartError
from gateway.core.model import SandboxId, SessionId, StartKind
from gateway.provider.kubernetes import build
from tests.support.kube.opened import KEY, Opened, opened, runtime
from tests.support.kube.simulator import ApiError
from tests.support.kube.simulator.objects import BY_PLURAL, DEPLOYMENTS, PODS, REPLICASETS, merge
from tests.support.waiting import eventually

WARM = {"wakegate.io/pool": "warm"}
CLAIMED = {"wakegate.io/pool": "claimed"}


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Opened]:
    async with opened(tmp_path) as one:
        yield one


def session(number: int) -> SessionId:
    return SessionId(f"session-{number}")


async def test_claim_of_a_warm_pod_is_one_write_and_no_read(kube: Opened) -> None:
    """A claim that finds a warm pod PATCHes it and asks the server nothing else; the pod is stamped."""
    await kube.provider.apply([runtime(2, max_session_duration=1000.0)])
    await kube.full()
    before = kube.cluster.api.counts.copy()
    sandbox = await kube.provider.claim(KEY, session(1))
    assert kube.cluster.api.counts - before == {("patch", "pods"): 1}
    (pod,) = kube.cluster.pods(**CLAIMED)
    assert pod["metadata"]["uid"] == sandbox.id
    assert pod["metadata"]["labels"]["runtime.agentcube.io/session-id"] == "session-1"
    assert pod["metadata"]["labels"]["runtime.agentcube.io/workload-name"] == KEY.name
    assert 1300 <= pod["spec"]["activeDeadlineSeconds"] <= 1310
    await kube.full()  # the ReplicaSet refilled
    assert not pod["metadata"].get("ownerReferences")


async def test_fifty_claims_at_once_never_collide(kube: Opened) -> None:
    """Claims of one gateway that come together choose different pods: 50 writes, no conflict."""
    await kube.provider.apply([runtime(50)])
    await kube.full()
    kube.cluster.api.latency = 0.005
    before = kube.cluster.api.counts["patch", "pods"]
    found = await asyncio.gather(*(kube.provider.claim(KEY, session(n)) for n in range(50)))
    assert len({sandbox.id for sandbox in found}) == 50
    assert {sandbox.start for sandbox in found} == {StartKind.WARM}
    assert kube.cluster.api.counts["patch", "pods"] - before == 50
    assert kube.cluster.api.conflicts == 0


async def test_gateways_that_claim_at_once_share_a_pool_without_a_pod_twice(kube: Opened, tmp_path: Path) -> None:
    """Two gateways empty one pool together: every session has its own pod, whoever was slower tried another."""
    other = await kube.gateway()
    try:
        for provider in (kube.provider, other):
            await provider.apply([runtime(10)])
        await kube.full()
        await eventually(lambda: len(other._pools[KEY].ready) == 10, "the other gateway sees the pool")
        kube.cluster.controllers.lag = 1.0  # no refill meanwhile
        kube.cluster.api.latency = 0.005
        claims = [provider.claim(KEY, session(n)) for n, provider in enumerate((kube.provider, other) * 5)]
        found = await asyncio.gather(*claims)
        assert len({sandbox.id for sandbox in found}) == 10
        assert all(sandbox.start is StartKind.WARM for sandbox in found)
        status = {pod["metadata"]["annotations"]["wakegate.io/session"] for pod in kube.cluster.pods(**CLAIMED)}
        assert status == {session(n) for n in range(10)}
    finally:
        await other.aclose()


async def test_claim_survives_a_stale_version(kube: Opened) -> None:
    """A pod that the kubelet wrote to since we saw it refuses the PATCH; it is read again and then bound, not lost."""
    await kube.provider.apply([runtime(1)])
    await kube.full()
    (pod,) = kube.cluster.pods(**WARM)
    before = kube.cluster.api.conflicts
    pool = kube.provider._pools[KEY]
    stale = pool.warm[pod["metadata"]["uid"]]
    kube.cluster.api.latency = 0.2  # the watch tells of it only after the claim was sent
    kube.cluster.objects.update(PODS, "default", pod["metadata"]["name"], lambda p: merge(p, {"status": {"x": "y"}}))
    assert pool.warm[pod["metadata"]["uid"]] is stale
    sandbox = await kube.provider.claim(KEY, session(1))
    assert (sandbox.id, sandbox.start) == (pod["metadata"]["uid"], StartKind.WARM)
    assert kube.cluster.api.conflicts == before + 1


async def test_claim_on_an_empty_pool_makes_a_pod_for_the_session(kube: Opened) -> None:
    """A cold pod belongs to its session from the start, is bounded, and is no part of the pool."""
    await kube.provider.apply([runtime(0)])
    sandbox = await kube.provider.claim(KEY, session(1))
    assert sandbox.start is StartKind.COLD
    (pod,) = kube.cluster.pods(**CLAIMED)
    assert pod["spec"]["activeDeadlineSeconds"] > 0
    assert "ownerReferences" not in pod["metadata"]


async def test_claim_whose_caller_left_leaves_no_pod_behind(kube: Opened) -> None:
    """A claim that is cancelled while its PATCH is under way releases what the PATCH bound."""
    await kube.provider.apply([runtime(1)])
    await kube.full()
    kube.cluster.api.latency = 0.05
    task = asyncio.create_task(kube.provider.claim(KEY, session(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: kube.cluster.api.counts["delete", "pods"] == 1, "the bound pod is deleted")
    await eventually(lambda: not kube.cluster.pods(**CLAIMED), "no claimed pod is left")


@pytest.mark.parametrize("early", [True, False], ids=["while it starts", "once it is ready"])
async def test_pod_of_a_caller_who_left_is_the_next_claims(kube: Opened, early: bool) -> None:
    """Who gives up on a slow start and asks again gets the pod that was made: no second one, however often."""
    kube.cluster.kubelet.start_time = 0.3
    await kube.provider.apply([runtime(0)])
    for attempt in (1, 2):
        task = asyncio.create_task(kube.provider.claim(KEY, session(attempt)))
        await eventually(lambda: kube.cluster.pods(**CLAIMED), "its pod is made")
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    if not early:
        await eventually(lambda: [each for each in kube.provider._pools[KEY].claimed.values() if each.ready], "ready")
    sandbox = await kube.provider.claim(KEY, session(3))
    (pod,) = kube.cluster.pods(**CLAIMED)
    assert (sandbox.id, sandbox.session_id, sandbox.start) == (pod["metadata"]["uid"], session(3), StartKind.COLD)
    assert kube.cluster.api.counts["create", "pods"] == 1
    assert kube.cluster.api.counts["delete", "pods"] == 0


async def test_pod_that_nobody_asks_for_again_is_released(kube: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while; and at once when the gateway shuts down."""
    monkeypatch.setattr(kube.provider._claims._abandoned, "_keep", 0.1)
    kube.cluster.kubelet.start_time = 0.1
    await kube.provider.apply([runtime(0)])
    task = asyncio.create_task(kube.provider.claim(KEY, session(1)))
    await eventually(lambda: kube.cluster.pods(**CLAIMED), "its pod is made")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: kube.cluster.api.counts["delete", "pods"] == 1, "it is deleted")


@pytest.mark.parametrize("reaches_server", [True, False])
async def test_claim_that_broke_off_is_settled(kube: Opened, reaches_server: bool) -> None:
    """When the server vanishes during the PATCH the claim fails with 503; once it is back, a pod bound by it goes away,
    and one that was not stays in the pool."""
    await kube.provider.apply([runtime(1)])
    await kube.full()
    (pod,) = kube.cluster.pods(**WARM)
    if reaches_server:
        kube.cluster.api.slow_answers = True
    else:
        kube.cluster.api.hanging = asyncio.Event()
    task = asyncio.create_task(kube.provider.claim(KEY, session(1)))
    if reaches_server:
        await eventually(lambda: kube.cluster.pods(**CLAIMED), "the PATCH is done")
    else:
        await asyncio.sleep(0.05)
    await kube.cluster.stop_api()
    with pytest.raises(SandboxStartError) as failed:
        await task
    assert (failed.value.status, failed.value.code) == (503, "SANDBOX_START_FAILED")
    kube.cluster.api.slow_answers, kube.cluster.api.hanging = False, None
    await kube.cluster.start_api()
    await kube.provider._clean_up_once()
    if reaches_server:
        await eventually(lambda: not kube.cluster.pods(**CLAIMED), "the pod that nobody got is deleted")
    else:
        await eventually(lambda: kube.provider._claims._doubtful == {}, "the claim is settled")
        assert pod["metadata"]["uid"] in {each["metadata"]["uid"] for each in kube.cluster.pods(**WARM)}


async def test_shrink_marks_its_victims_before_it_scales(kube: Opened) -> None:
    """The ReplicaSet removes the marked pods, which cannot be claimed any more; claims continue meanwhile."""
    await kube.provider.apply([runtime(6)])
    await kube.full()
    kube.cluster.controllers.lag = 0.3
    await kube.provider.resize(KEY, 2)
    marked = {
        pod["metadata"]["uid"]
        for pod in kube.cluster.pods(**WARM)
        if "wakegate.io/victim" in (pod["metadata"].get("annotations") or {})
    }
    assert len(marked) == 4
    sandbox = await kube.provider.claim(KEY, session(1))
    assert sandbox.id not in marked
    await kube.full()
    # The claim itself made the pool one smaller, so that one mark was too many; it was taken back.
    assert len({pod["metadata"]["uid"] for pod in kube.cluster.pods()} & marked) == 1
    assert await kube.provider.find(sandbox.id) is not None


async def test_claims_raced_against_shrinks_lose_no_pod(kube: Opened) -> None:
    """Pools that shrink and grow while claims run: no claimed pod is ever deleted."""
    await kube.provider.apply([runtime(8)])
    await kube.full()
    kube.cluster.api.latency = 0.003
    found = []

    async def breathe() -> None:
        for size in (2, 8, 1, 6, 0, 8):
            await kube.provider.resize(KEY, size)
            await asyncio.sleep(0.05)

    async def claim() -> None:
        for n in range(12):
            found.append(await kube.provider.claim(KEY, session(n)))
            await asyncio.sleep(0.02)

    await asyncio.gather(breathe(), claim())
    await kube.full()
    alive = {pod["metadata"]["uid"] for pod in kube.cluster.pods(**CLAIMED)}
    assert {sandbox.id for sandbox in found} == alive
    assert len(alive) == 12


async def test_marks_are_taken_back_when_no_shrink_wants_them(kube: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark left behind, by a gateway that died between mark and scale, does not hold a warm pod back for ever."""
    monkeypatch.setattr("gateway.provider.kubernetes.provider._HOUSEKEEPING_INTERVAL_S", 0.05)
    await kube.provider.apply([runtime(1)])
    await kube.full()
    await kube.provider._marks.mark(kube.provider._pools[KEY].ready[:1])
    assert (await kube.provider.status(KEY)).ready == 0
    async with asyncio.timeout(20):
        while (await kube.provider.status(KEY)).ready == 0:  # the pause before it was the long one
            await kube.provider._clean_up_once()
    assert (await kube.provider.claim(KEY, session(1))).start is StartKind.WARM


async def test_watch_that_expired_lists_again(kube: Opened) -> None:
    """410 Gone: what happened while the history was lost is seen by a new list."""
    await kube.provider.apply([runtime(2)])
    await kube.full()
    lists = kube.cluster.api.counts["list", "pods"]
    victim = kube.cluster.pods(**WARM)[0]["metadata"]["name"]
    await kube.cluster.stop_api()
    kube.cluster.delete("pods", "default", victim)
    pods = kube.cluster.objects.all
    await eventually(lambda: victim not in {pod["metadata"]["name"] for pod in pods(PODS)}, "it is gone")
    kube.cluster.objects.compact()
    await kube.cluster.start_api()
    await eventually(lambda: kube.cluster.api.counts["list", "pods"] > lists, "it lists again")
    await eventually(
        lambda: victim not in {pod.name for pod in kube.provider.pods("default").items.values()}, "it is forgotten"
    )
    await kube.full()


async def test_watch_that_is_cut_resumes_where_it_was(kube: Opened) -> None:
    """A stream that ends is opened again from the last version, without a list."""
    await kube.provider.apply([runtime(1)])
    await kube.full()
    lists = kube.cluster.api.counts["list", "pods"]
    kube.cluster.api.cut_watches()
    await kube.provider.resize(KEY, 3)
    await kube.full()
    assert kube.cluster.api.counts["list", "pods"] == lists


async def test_lookups_and_releases_work_while_the_api_server_is_unavailable(kube: Opened) -> None:
    """While the server is unreachable sandboxes are found from memory and new ones are refused with the reason; a
    release is carried out once it is back."""
    await kube.provider.apply([runtime(1)])
    await kube.full()
    sandbox = await kube.provider.claim(KEY, session(1))
    other = await kube.provider.claim(KEY, session(2))
    await kube.cluster.stop_api()
    assert await kube.provider.find(sandbox.id) == sandbox
    await kube.provider.resize(KEY, 1)  # what is as wanted needs no server
    await kube.provider.release(other.id)
    assert await kube.provider.find(other.id) is None
    with pytest.raises(SandboxStartError, match="cannot be reached"):
        await kube.provider.claim(KEY, session(3))
    await kube.cluster.start_api()
    await kube.provider._clean_up_once()
    await eventually(lambda: len(kube.cluster.pods(**CLAIMED)) == 1, "the released pod is deleted")


async def test_find_asks_the_server_for_an_unknown_pod(kube: Opened, tmp_path: Path) -> None:
    """A sandbox that another gateway just made is found before the watch has reported it."""
    other = await kube.gateway()
    try:
        await kube.provider.apply([runtime(0)])
        sandbox = await kube.provider.claim(KEY, session(1))
        known = other.pods("default").items
        await eventually(lambda: sandbox.id in known and known[sandbox.id].ready, "the watch has told all")
        del known[sandbox.id]  # as before the watch did
        found = await other.find(sandbox.id)
        assert found is not None
        assert (found.endpoint, found.session_id) == (sandbox.endpoint, "session-1")
        assert await other.find(SandboxId("no-such-uid")) is None
    finally:
        await other.aclose()


# Failures: each has a reason that people understand.


async def test_image_that_cannot_be_pulled_refuses_claims_with_the_reason(kube: Opened) -> None:
    """503 with ImagePullBackOff, the same in the pool's status, and after three failures none is tried for a while."""
    kube.cluster.kubelet.bad_images.add("registry.invalid/none:1")
    await kube.provider.apply([runtime(0, image="registry.invalid/none:1")])
    for _ in range(3):
        with pytest.raises(SandboxStartError, match="ImagePullBackOff: failed to pull image"):
            await kube.provider.claim(KEY, session(1))
    creates = kube.cluster.api.counts["create", "pods"]
    with pytest.raises(SandboxStartError, match="ImagePullBackOff") as failed:
        await kube.provider.claim(KEY, session(1))
    assert failed.value.retry_after is not None
    assert kube.cluster.api.counts["create", "pods"] == creates
    status = await kube.provider.status(KEY)
    assert status.failures >= 3
    assert "ImagePullBackOff" in status.last_error
    await eventually(lambda: not kube.cluster.pods(), "failed pods are deleted")


async def test_used_up_quota_refuses_claims_with_the_reason(kube: Opened) -> None:
    """The server's words about the quota reach the client and the status."""
    kube.cluster.create("resourcequotas", "few", namespace="default", spec={"hard": {"pods": "1"}})
    await kube.provider.apply([runtime(2)])
    await eventually(lambda: len(kube.cluster.pods()) == 1, "the quota is used up")
    pool = kube.provider._pools[KEY]
    await eventually(lambda: pool.ready and pool.problems, "the Deployment says so")
    assert "exceeded quota: few" in (await kube.provider.status(KEY)).last_error
    await kube.provider.claim(KEY, session(1))
    with pytest.raises(SandboxStartError, match="exceeded quota: few"):
        await kube.provider.claim(KEY, session(2))


async def test_pod_that_fits_no_node_is_refused_when_its_time_is_over(tmp_path: Path) -> None:
    """It may fit once the cluster has grown, so it is waited for; then the scheduler's words are the reason."""
    async with opened(tmp_path, start_timeout=0.3) as kube:
        pod = {"nodeSelector": {"accelerator": "none"}}
        manifest: Any = {"spec": {"template": {}, "wakegate": {"pod": pod}}}
        await kube.provider.apply([runtime(0, manifest=manifest)])
        with pytest.raises(SandboxStartError, match=r"Unschedulable: 0/2 nodes are available"):
            await kube.provider.claim(KEY, session(1))
        await eventually(lambda: not kube.cluster.pods(), "it is deleted")


@pytest.mark.parametrize("how", ["evicted", "deleted", "failed", "lost"])
async def test_claimed_pod_that_ends_is_reported_with_its_reason(kube: Opened, how: str) -> None:
    """Eviction, deletion and failure of a claimed pod reach who watches; it is not found any more."""
    await kube.provider.apply([runtime(0)])
    events = kube.provider.watch()
    sandbox = await kube.provider.claim(KEY, session(1))
    (pod,) = kube.cluster.pods(**CLAIMED)
    name = pod["metadata"]["name"]
    if how == "deleted":
        kube.cluster.delete("pods", "default", name)
    elif how == "lost":
        await kube.cluster.lose_node(pod)
    else:
        reason = {"evicted": "Evicted", "failed": "NodeShutdown"}[how]
        gone = {"status": {"phase": "Failed", "reason": reason, "message": "the node was low on memory"}}
        kube.cluster.objects.update(PODS, "default", name, lambda p: merge(p, gone))
    async with asyncio.timeout(20):
        event = await anext(events)
    said = {"evicted": "was evicted: the node was low", "deleted": "pod was deleted", "failed": "its node shut down"}
    said["lost"] = "its node was lost"
    assert said[how] in event.reason
    assert (event.sandbox_id, event.session_id) == (sandbox.id, "session-1")
    assert await kube.provider.find(sandbox.id) is None


async def test_remains_are_found_while_their_picod_can_be_reached(tmp_path: Path) -> None:
    """A living pod, ready or not, and one that is being evicted while it is ready; not one on a lost node, and not one
    that was released."""
    async with opened(tmp_path, hollow=False) as kube:
        await kube.provider.apply([runtime(0)])
        sandboxes = [await kube.provider.claim(KEY, session(n)) for n in range(4)]
        known = kube.provider.pods("default")
        changes: list[dict[str, bool]] = [{"ready": False}, {"deleting": True}, {"ready": False, "deleting": True}, {}]
        for sandbox, change in zip(sandboxes, changes, strict=True):
            pod = known.items[sandbox.id]
            known.put(replace(pod, version=str(int(pod.version) + 1_000_000), **change))  # type: ignore[arg-type]
        await kube.provider.release(sandboxes[3].id)
        found = [await kube.provider.find_remains(sandbox.id) for sandbox in sandboxes]
        assert [one is not None for one in found] == [True, True, False, False]


# Versions.


async def test_changed_runtime_rolls_warm_pods_and_leaves_sessions(
    kube: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warm pods get the new image, a claimed one keeps its own; new claims get new pods."""
    quick_rolls(monkeypatch)
    await kube.provider.apply([runtime(3, image="picod:1")])
    await kube.full()
    old = await kube.provider.claim(KEY, session(1))
    await kube.provider.apply([runtime(3, image="picod:2")])
    await eventually(lambda: images(kube) == ["picod:2"] * 3, "the pool has rolled")
    await kube.full()
    assert await kube.provider.find(old.id) == old
    new = await kube.provider.claim(KEY, session(2))
    (pod,) = [pod for pod in kube.cluster.pods() if pod["metadata"]["uid"] == new.id]
    assert pod["spec"]["containers"][0]["image"] == "picod:2"


async def test_claims_raced_against_rolls_lose_no_pod(kube: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version changes, and the rollout is undone, while claims run: the pool never runs out, each pod that a roll
    removed had been marked before, and no claimed pod is ever deleted."""
    quick_rolls(monkeypatch, 1)
    await kube.provider.apply([runtime(2, image="picod:1")])
    await kube.full()
    kube.cluster.api.latency = 0.003
    unmarked: list[str] = []

    def removed(kind: Any, change: Any) -> None:
        pod = change.new
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", []))
        began = "deletionTimestamp" in pod["metadata"] and "deletionTimestamp" not in (change.old or pod)["metadata"]
        if kind is PODS and began and ready and "wakegate.io/victim" not in pod["metadata"].get("annotations", {}):
            unmarked.append(pod["metadata"]["name"])

    kube.cluster.objects.listen(removed)
    found: list[Any] = []
    for image in ("picod:2", "picod:1"):
        if image == "picod:1":
            undo(kube, image)
        else:
            await kube.provider.apply([runtime(2, image=image)])
        async with asyncio.timeout(20):
            for _ in range(4):
                found.append(await kube.provider.claim(KEY, session(len(found))))
                await asyncio.sleep(0.3)
            while images(kube) != [image] * 2:
                await asyncio.sleep(0.05)
    assert unmarked == []
    assert {sandbox.id for sandbox in found} == {pod["metadata"]["uid"] for pod in kube.cluster.pods(**CLAIMED)}
    assert {sandbox.start for sandbox in found} == {StartKind.WARM}


def quick_rolls(monkeypatch: pytest.MonkeyPatch, seconds: int = 0) -> None:
    """Rolls that count a pod after so many seconds."""
    monkeypatch.setitem(build.ROLLING, "minReadySeconds", seconds)


async def test_rollout_that_was_undone_stays_undone(
    kube: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kubectl rollout undo` puts the old template back; neither a restart nor another apply of the same takes it away,
    a changed manifest does."""
    quick_rolls(monkeypatch)
    await kube.provider.apply([runtime(2, image="picod:1")])
    await kube.full()
    await kube.provider.apply([runtime(2, image="picod:2")])
    await eventually(lambda: images(kube) == ["picod:2"] * 2, "the pool has rolled")
    undo(kube, "picod:1")
    await eventually(lambda: images(kube) == ["picod:1"] * 2, "the pool is back")
    restarted = await kube.gateway()
    try:
        await restarted.apply([runtime(2, image="picod:2")])
        assert deployment(kube)["spec"]["template"]["spec"]["containers"][0]["image"] == "picod:1"
        await restarted.apply([runtime(2, image="picod:3")])
        await eventually(lambda: images(kube) == ["picod:3"] * 2, "the new manifest counts")
    finally:
        await restarted.aclose()


async def test_cold_start_does_not_wait_for_the_kubelets_next_probe(tmp_path: Path) -> None:
    """picod is asked itself: the pod is claimed before the cluster says that it is ready."""
    async with opened(tmp_path, hollow=False) as kube:
        kube.cluster.kubelet.probe_time = 1e6
        await kube.provider.apply([runtime(0)])
        sandbox = await kube.provider.claim(KEY, session(1))
        (pod,) = kube.cluster.pods(**CLAIMED)
        assert pod["metadata"]["uid"] == sandbox.id
        assert not any(each["status"] == "True" for each in pod["status"]["conditions"] if each["type"] == "Ready")


async def test_cold_start_is_of_the_version_that_an_undone_rollout_brought_back(
    kube: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the warm ones are; once the manifest changes again, of that."""
    quick_rolls(monkeypatch)
    await kube.provider.apply([runtime(1, image="picod:1")])
    await kube.full()
    await kube.provider.apply([runtime(1, image="picod:2")])
    await eventually(lambda: images(kube) == ["picod:2"], "the pool has rolled")
    undo(kube, "picod:1")
    await eventually(lambda: images(kube) == ["picod:1"], "the pool is back")
    await kube.full()
    await kube.provider.resize(KEY, 0)
    await eventually(lambda: not kube.cluster.pods(**WARM), "the pool is empty")
    for number, image in enumerate(("picod:1", "picod:3")):
        if image == "picod:3":
            await kube.provider.apply([runtime(0, image=image)])
        sandbox = await kube.provider.claim(KEY, session(number))
        (pod,) = [pod for pod in kube.cluster.pods() if pod["metadata"]["uid"] == sandbox.id]
        assert sandbox.start is StartKind.COLD
        assert pod["spec"]["containers"][0]["image"] == image
        assert pod["metadata"]["annotations"]["wakegate.io/session"] == session(number)


async def test_runtime_that_is_dropped_takes_its_pool_with_it(kube: Opened) -> None:
    """Its Deployment and warm pods go; a session's pod stays until it is released."""
    await kube.provider.apply([runtime(2)])
    await kube.full()
    sandbox = await kube.provider.claim(KEY, session(1))
    await kube.provider.apply([])
    await eventually(lambda: not kube.cluster.pods(**WARM), "warm pods are gone")
    assert kube.cluster.objects.all(DEPLOYMENTS) == []
    assert await kube.provider.find(sandbox.id) == sandbox
    with pytest.raises(RuntimeNotFoundError):
        await kube.provider.claim(KEY, session(2))


async def test_runtime_opens_only_the_egress_it_names(kube: Opened) -> None:
    """A NetworkPolicy for its pods follows spec.wakegate.egress, and goes when that or the runtime goes."""
    policies = BY_PLURAL["networkpolicies"]
    https = {"to": [{"podSelector": {}}], "ports": [{"port": 443}]}
    for egress in (["dns", "10.0.0.0/8"], [https]):
        manifest: Any = {"spec": {"template": {}, "wakegate": {"egress": egress}}}
        await kube.provider.apply([runtime(1, manifest=manifest)])
        (policy,) = kube.cluster.objects.all(policies)
        assert len(policy["spec"]["egress"]) == len(egress)
        await kube.full()
        (pod,) = kube.cluster.pods(**WARM)
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert policy["spec"]["egress"] == [{**https, "ports": [{"port": 443, "protocol": "TCP"}]}]
    await kube.provider.apply([runtime(1)])
    assert kube.cluster.objects.all(policies) == []


def images(kube: Opened) -> list[str]:
    """Of the warm pods that are ready."""
    return sorted(
        pod["spec"]["containers"][0]["image"]
        for pod in kube.cluster.pods(**WARM)
        if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
    )


def deployment(kube: Opened) -> Any:
    (found,) = kube.cluster.objects.all(DEPLOYMENTS)
    return found


def undo(kube: Opened, image: str) -> None:
    """What kubectl does: the template and the annotations of the old ReplicaSet, put onto the Deployment."""
    (old,) = [
        rs for rs in kube.cluster.objects.all(REPLICASETS)
        if rs["spec"]["template"]["spec"]["containers"][0]["image"] == image
    ]  # fmt: skip
    labels = {k: v for k, v in old["spec"]["template"]["metadata"]["labels"].items() if k != "pod-template-hash"}
    template = old["spec"]["template"] | {"metadata": old["spec"]["template"]["metadata"] | {"labels": labels}}

    def back(present: Any) -> Any:
        present["spec"]["template"] = template
        kept = {k: v for k, v in present["metadata"]["annotations"].items() if k.startswith("deployment.kubernetes")}
        notes = {k: v for k, v in old["metadata"]["annotations"].items() if k not in kept}
        present["metadata"]["annotations"] = kept | notes
        return present

    kube.cluster.objects.update(DEPLOYMENTS, "default", deployment(kube)["metadata"]["name"], back)


async def test_server_that_refuses_access_fails_the_start(tmp_path: Path) -> None:
    """Without the right to list pods the provider does not start, and says which right is missing."""
    async with opened(tmp_path) as kube:
        kube.cluster.api.denied.add(("list", "pods"))
        with pytest.raises(Exception, match="cannot list pods"):
            await kube.gateway()
    assert issubclass(ApiError, Exception)

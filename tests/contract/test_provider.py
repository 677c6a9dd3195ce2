"""What every SandboxProvider promises, over each implementation. A new one is one more line in PROVIDERS."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import RuntimeNotFoundError
from gateway.core.interfaces import SandboxProvider
from gateway.core.model import Limits, PoolSpec, Runtime, RuntimeKey, Sandbox, SessionId, StartKind
from gateway.provider.kubernetes import PodDefaults
from gateway.provider.local import Isolation, LocalProvider
from gateway.testing import ScriptedProvider
from tests.support.kube.clusters import make_cluster
from tests.support.kube.opened import open_provider
from tests.support.kube.whole.shared import IMAGES, shared_cluster

KEY, UNKNOWN = RuntimeKey("default", "contract"), RuntimeKey("default", "unknown")


@dataclass
class Subject:
    """A provider under test, and how to make one of its sandboxes end on its own."""

    provider: SandboxProvider
    crash: Callable[[Sandbox], None]

    async def full(self) -> None:
        """Wait until the pool is as large as it should be."""
        async with asyncio.timeout(60):
            while (status := await self.provider.status(KEY)).ready != status.target:
                await asyncio.sleep(0.01)


def runtime(warm: int) -> Runtime:
    return Runtime(KEY, auth=False, pool=PoolSpec(size=warm), limits=Limits(processes=64))


def local(isolation: Isolation) -> Callable[[Path], AbstractAsyncContextManager[Subject]]:
    @asynccontextmanager
    async def open_local(folder: Path) -> AsyncIterator[Subject]:
        provider = LocalProvider(folder / "state", folder / "keys", SystemClock(), isolation)

        def crash(sandbox: Sandbox) -> None:
            os.kill(provider.pid(sandbox.id), signal.SIGKILL)

        await provider.start()
        yield Subject(provider, crash)
        await provider.aclose()

    return open_local


@asynccontextmanager
async def scripted(folder: Path) -> AsyncIterator[Subject]:
    provider = ScriptedProvider()
    await provider.start()
    yield Subject(provider, lambda sandbox: provider.end(sandbox.id, "crashed"))
    await provider.aclose()


@asynccontextmanager
async def kubernetes(folder: Path) -> AsyncIterator[Subject]:
    async with make_cluster().running() as cluster:
        provider = await open_provider(cluster, folder)
        yield Subject(provider, lambda sandbox: cluster.kubelet.kill(sandbox.id))
        await provider.aclose()


@asynccontextmanager
async def nodes(folder: Path) -> AsyncIterator[Subject]:
    """Real kubelets, which run the images of manifests/docker."""
    cluster = await asyncio.to_thread(shared_cluster)
    defaults = PodDefaults(picod_image="wakegate/picod:0.1.0")
    provider = await open_provider(cluster, folder, defaults=defaults)  # type: ignore[arg-type]
    try:
        yield Subject(provider, lambda sandbox: cluster.kill_in_pod(sandbox.id, "picod"))
        await provider.aclose()
    finally:
        await asyncio.to_thread(cluster.clear, "default")


PROVIDERS: dict[str, Callable[[Path], AbstractAsyncContextManager[Subject]]] = {
    "local-bubblewrap": local("bubblewrap"),
    "local-process": local("process"),
    "scripted": scripted,
    "kubernetes": kubernetes,
}
if IMAGES in os.environ:  # scripts/test-cluster, which is for what only real nodes can say
    PROVIDERS = {"kubernetes-nodes": nodes}


@pytest.fixture(
    params=[
        # All but the fake start sandboxes.
        name if name == "scripted" else pytest.param(name, marks=pytest.mark.processes)
        for name in PROVIDERS
    ]
)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    async with PROVIDERS[request.param](tmp_path) as opened:
        yield opened


async def test_provider_binds_a_warm_sandbox(subject: Subject) -> None:
    """With the pool full a claim is warm, bound to its session, and found by id and in the list."""
    await subject.provider.apply([runtime(1)])
    await subject.full()
    sandbox = await subject.provider.claim(KEY, SessionId("s1"))
    assert (sandbox.start, sandbox.session_id, sandbox.runtime) == (StartKind.WARM, "s1", KEY)
    assert await subject.provider.find(sandbox.id) == sandbox
    assert sandbox in await subject.provider.list()


async def test_provider_starts_cold_when_nothing_is_warm(subject: Subject) -> None:
    """An empty pool is a cold start, not an error."""
    await subject.provider.apply([runtime(0)])
    sandbox = await subject.provider.claim(KEY, SessionId("s1"))
    assert (sandbox.start, sandbox.session_id) == (StartKind.COLD, "s1")
    assert (await subject.provider.status(KEY)).claimed == 1


async def test_provider_never_binds_a_sandbox_twice(subject: Subject) -> None:
    """Eight claims at once on a pool of two get eight sandboxes."""
    await subject.provider.apply([runtime(2)])
    await subject.full()
    claims = [subject.provider.claim(KEY, SessionId(f"s{n}")) for n in range(8)]
    sandboxes = await asyncio.gather(*claims)
    assert len({sandbox.id for sandbox in sandboxes}) == 8
    assert [sandbox.session_id for sandbox in sandboxes] == [f"s{n}" for n in range(8)]


async def test_provider_forgets_a_released_sandbox(subject: Subject) -> None:
    """It is neither found, listed nor bound again; releasing it twice, or one that never was, is success."""
    await subject.provider.apply([runtime(1)])
    sandbox = await subject.provider.claim(KEY, SessionId("s1"))
    await subject.provider.release(sandbox.id)
    await subject.provider.release(sandbox.id)
    assert await subject.provider.find(sandbox.id) is None
    assert sandbox.id not in {each.id for each in await subject.provider.list()}
    assert (await subject.provider.claim(KEY, SessionId("s2"))).id != sandbox.id


@pytest.mark.parametrize("verb", ["claim", "status", "resize"])
async def test_provider_refuses_an_unknown_runtime(subject: Subject, verb: str) -> None:
    """Each verb that names a runtime says that it is not there."""
    await subject.provider.apply([runtime(0)])
    verbs: dict[str, Callable[[], Awaitable[object]]] = {
        "claim": lambda: subject.provider.claim(UNKNOWN, SessionId("s1")),
        "status": lambda: subject.provider.status(UNKNOWN),
        "resize": lambda: subject.provider.resize(UNKNOWN, 1),
    }
    with pytest.raises(RuntimeNotFoundError):
        await verbs[verb]()


async def test_provider_fills_and_shrinks_to_the_wanted_size(subject: Subject) -> None:
    """The pool follows resize both ways, and a claimed sandbox is not touched by it."""
    await subject.provider.apply([runtime(0)])
    sandbox = await subject.provider.claim(KEY, SessionId("s1"))
    for size in (2, 0):
        await subject.provider.resize(KEY, size)
        await subject.full()
        status = await subject.provider.status(KEY)
        assert (status.target, status.ready, status.claimed) == (size, size, 1)
    assert await subject.provider.find(sandbox.id) == sandbox


async def test_provider_drops_a_runtime_that_is_no_longer_applied(subject: Subject) -> None:
    """Its claims are refused from then on."""
    await subject.provider.apply([runtime(1)])
    await subject.provider.apply([])
    with pytest.raises(RuntimeNotFoundError):
        await subject.provider.claim(KEY, SessionId("s1"))


async def test_provider_reports_a_sandbox_that_ends_on_its_own(subject: Subject) -> None:
    """Who watches hears the sandbox, its session and a reason; it is gone from then on."""
    await subject.provider.apply([runtime(0)])
    events = subject.provider.watch()
    sandbox = await subject.provider.claim(KEY, SessionId("s1"))
    subject.crash(sandbox)
    async with asyncio.timeout(20):
        event = await anext(events)
    assert (event.sandbox_id, event.session_id) == (sandbox.id, "s1")
    assert event.reason
    assert await subject.provider.find(sandbox.id) is None
    await subject.provider.release(sandbox.id)


async def test_provider_has_no_sandboxes_after_closing(subject: Subject) -> None:
    """aclose ends everything, and may be called twice."""
    await subject.provider.apply([runtime(1)])
    await subject.provider.claim(KEY, SessionId("s1"))
    await subject.provider.aclose()
    assert await subject.provider.list() == []

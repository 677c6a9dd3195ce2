"""What every EngineMeter promises, over each engine, with real sandboxes that really compute."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.core.clock import SystemClock
from gateway.core.interfaces import EngineMeter, LoadReader, SandboxProvider
from gateway.core.model import Limits, PoolSpec, Runtime, RuntimeKey, Sandbox, SandboxId, SessionId
from gateway.core.usage import Quantity, SandboxUsage
from gateway.provider.local import LocalProvider
from gateway.usage.meter import Account, Meter, Moment
from tests.support.kube.clusters import REAL, make_cluster
from tests.support.kube.opened import open_provider
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

KEY = RuntimeKey("default", "measured")
BUSY = "import time\nend = time.process_time() + 1.0\nwhile time.process_time() < end: pass"


@asynccontextmanager
async def local(folder: Path) -> AsyncIterator[SandboxProvider]:
    provider = LocalProvider(folder / "state", folder / "keys", SystemClock(), "bubblewrap")
    await provider.start()
    yield provider
    await provider.aclose()


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[SandboxProvider]:
    if REAL:
        pytest.skip("the real control plane has no metrics-server")
    async with make_cluster().running() as made:
        provider = await open_provider(made, folder)
        yield provider
        await provider.aclose()


@dataclass
class Subject:
    """An engine with one sandbox."""

    provider: SandboxProvider
    meter: EngineMeter
    sandbox: Sandbox

    async def compute(self) -> None:
        """A second of CPU."""
        endpoint = self.sandbox.endpoint
        url = "http://picod" if endpoint.uds else f"http://{endpoint}"
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=endpoint.uds), timeout=40.0) as client:
            body = {"command": ["python3", "-c", BUSY], "timeout": "30s"}
            assert (await client.post(f"{url}/api/execute", json=body)).json()["exit_code"] == 0

    async def measured(self) -> SandboxUsage:
        """The next measurement that there is."""
        found: list[SandboxUsage] = []

        async def known() -> bool:
            found.extend((await self.meter.usage([self.sandbox.id])).values())
            return bool(found)

        await eventually(known, "the sandbox was measured")
        return found[0]


@pytest.fixture(params=[local, cluster])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    open_engine: Callable[[Path], AbstractAsyncContextManager[SandboxProvider]] = request.param
    async with open_engine(tmp_path) as provider:
        await provider.apply([Runtime(KEY, auth=False, pool=PoolSpec(), limits=Limits(processes=64))])
        assert isinstance(provider, EngineMeter)
        yield Subject(provider, provider, await provider.claim(KEY, SessionId("s")))


async def test_time_on_the_cpu_is_counted_and_memory_is_known(subject: Subject) -> None:
    """Whether an engine tells seconds or cores, the meter makes seconds of them; memory is that of the processes."""
    meter, clock = Meter(), SystemClock()
    begun = clock.monotonic()
    account = Account("t", str(KEY), "1cpu-1024Mi")
    meter.begin(subject.sandbox.id, account, Moment(1e9, begun))
    await subject.measured()
    await subject.compute()
    usage = await subject.measured()
    now = Moment(1e9 + 100, clock.monotonic())
    meter.tick(now)
    meter.measured(subject.sandbox.id, usage.cpu_s, usage.memory_bytes, now, cores=usage.cores)
    amounts = [row for rows in meter.take() for row in rows.values()]
    assert sum(each.get(Quantity.CPU_SECONDS, 0.0) for each in amounts) > 0.2
    assert usage.memory_bytes is None or usage.memory_bytes > 1 << 20


async def test_load_is_what_a_sandbox_uses_now(subject: Subject) -> None:
    """Without taking a measurement away from the meter; None for one that is not there."""
    assert isinstance(subject.provider, LoadReader)
    await subject.measured()
    load = await subject.provider.load(subject.sandbox.id)
    assert load is not None
    assert load.memory_bytes is not None
    assert load.memory_bytes > 1 << 20
    if load.cpu_s is not None:  # the local engine: it also knows processes, of which picod is one
        await subject.compute()
        later = await subject.provider.load(subject.sandbox.id)
        assert later is not None
        assert later.cpu_s is not None
        assert later.cpu_s > load.cpu_s + 0.2
        assert load.processes is not None
        assert 1 <= load.processes < 64
    assert await subject.provider.load(SandboxId("nobody")) is None


async def test_unknown_sandboxes_are_left_out(subject: Subject) -> None:
    """Also beside a known one."""
    assert SandboxId("nobody") not in await subject.meter.usage([SandboxId("nobody"), subject.sandbox.id])
    assert await subject.meter.usage([]) == {}


async def test_sandbox_that_ended_is_told_of_once_more(subject: Subject) -> None:
    """With what it had used, and no memory."""
    await subject.measured()
    await subject.provider.release(subject.sandbox.id)

    async def last() -> bool:
        usage = (await subject.meter.usage([subject.sandbox.id])).get(subject.sandbox.id)
        return usage is not None and usage.memory_bytes is None

    await eventually(last, "it ended")


async def test_nothing_parked_has_no_size(subject: Subject) -> None:
    """An unknown reference is no error."""
    size: Awaitable[int] = subject.meter.parked_bytes("nobody")
    assert await size == 0

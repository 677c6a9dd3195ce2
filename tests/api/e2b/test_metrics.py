"""What a sandbox uses, as E2B's samples have it."""

from __future__ import annotations

import pytest

from gateway.api.e2b.metrics import describe, read_between, samples
from gateway.core.clock import SystemClock
from gateway.core.errors import BadRequestError
from gateway.core.model import Limits, SandboxId
from gateway.core.usage import SandboxLoad

ALWAYS = (0.0, float("inf"))
LIMITS = Limits(cpus=2.0, memory=1 << 30, workspace_size=5 << 30)


class Engine:
    """A LoadReader whose sandbox has used up more CPU time at each look, and ends after `looks`."""

    def __init__(self, looks: int, **load: float) -> None:
        self.left = looks
        self.cpu_s = 0.0
        self.load_ = load

    async def load(self, sandbox_id: SandboxId) -> SandboxLoad | None:
        self.left -= 1
        self.cpu_s += 10.0
        if self.left < 0:
            return None
        return SandboxLoad(cores=self.load_["cores"]) if "cores" in self.load_ else SandboxLoad(cpu_s=self.cpu_s)


async def test_cpu_seconds_are_looked_at_twice() -> None:
    """10 s of CPU time between two looks that are at least 0.1 s apart are 100 cores at most, of 2."""
    (sample,) = await samples(Engine(2), SandboxId("s"), LIMITS, SystemClock(), ALWAYS)
    assert 0 < sample["cpuUsedPct"] <= 5000
    assert (sample["cpuCount"], sample["memTotal"], sample["diskTotal"]) == (2, 1 << 30, 5 << 30)


async def test_busy_cores_are_taken_as_they_are() -> None:
    """An engine that knows them is asked once."""
    (sample,) = await samples(Engine(1, cores=1.0), SandboxId("s"), LIMITS, SystemClock(), ALWAYS)
    assert sample["cpuUsedPct"] == 50.0


@pytest.mark.parametrize("looks", [0, 1])
async def test_sandbox_that_ends_meanwhile_has_no_sample(looks: int) -> None:
    """Before the first look, or between the two."""
    assert await samples(Engine(looks), SandboxId("s"), LIMITS, SystemClock(), ALWAYS) == []


def test_what_is_not_known_is_zero() -> None:
    """Their clients' models have no null."""
    sample = describe(SandboxLoad(), 0.0, Limits(memory=None, cpus=None, workspace_size=None), 1.5)
    assert (sample["cpuCount"], sample["memUsed"], sample["memTotal"], sample["timestampUnix"]) == (1, 0, 0, 1)


@pytest.mark.parametrize("query", [{"start": "-1"}, {"end": "1e9"}, {"start": "5", "end": "4"}, {"end": "9" * 13}])
def test_malformed_times_are_refused(query: dict[str, str]) -> None:
    """With the name of the field."""
    with pytest.raises(BadRequestError, match=next(iter(query))):
        read_between(query)

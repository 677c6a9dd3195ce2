"""When everything that a run published counts as received."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from picod.interpreter import kernel
from tests.support.waiting import LIMIT_S


class Iopub:
    """Results that come slowly: `steps` looks see progress, in the last of which `idle` arrives."""

    def __init__(self, run: Any, steps: int, *, paused: bool = False) -> None:
        self.is_paused, self._run, self._left, self._seen, self.looks = paused, run, steps, 0, 0

    @property
    def progress(self) -> int:
        self.looks += 1
        if self._left:
            self._left -= 1
            self._seen += 1
            if self._left == 0:
                self._run.idle.set()
        return self._seen


async def wait(steps: int, *, paused: bool = False) -> tuple[bool, int]:
    """Whether `idle` was waited for, and how often progress was looked at."""
    run = SimpleNamespace(idle=asyncio.Event())
    iopub = Iopub(run, steps, paused=paused)
    async with asyncio.timeout(LIMIT_S):
        await kernel.Kernel._wait_idle(SimpleNamespace(_iopub=iopub), run)  # type: ignore[arg-type]
    return run.idle.is_set(), iopub.looks


async def test_run_waits_for_results_as_long_as_some_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the limit of a silence passes meanwhile: on a busy machine they take seconds."""
    monkeypatch.setattr(kernel, "_IDLE_TIMEOUT_S", 0.001)
    assert await wait(steps=20) == (True, 20)


async def test_run_ends_when_nothing_comes_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that has closed the channel never becomes idle."""
    monkeypatch.setattr(kernel, "_IDLE_TIMEOUT_S", 0.001)
    assert await wait(steps=0) == (False, 2)

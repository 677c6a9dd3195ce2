"""Fixtures of the gateway's own tests, and the event loop that they run on."""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import hypothesis
import looptime
import pytest
import pytest_asyncio
import uvloop

from tests.support.scripted import OpenScripted, Script, ScriptedSandbox, Served, say_ok, scripted

# The same examples in every run, so that a change is judged by itself; scripts/fuzz looks at new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
# A fifth of them, for `scripts/test fast`. tests/support/examples.py has the same for tests with a number of their own.
hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=20)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=400)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Tests in these folders start sandboxes, kernels, clusters or gateways: `scripts/test fast` leaves them out.
PROCESS_FOLDERS = ("provider", "integration", "cli", "security", "loadtest", "picod", "docs", "client", "console")
# Folders whose files take longest run first, in this order: with several workers, a file that takes a minute and is
# begun last keeps one of them busy while the others have ended.
LONG_FIRST = (*PROCESS_FOLDERS, "contract", "autoscaler", "identity")
# State machines of hypothesis, each one test of 10 to 16 s of CPU: the first of what does not start processes.
STATE_MACHINES = ("test_lifecycle_machine.py", "test_quota_machine.py")
# They wait for nothing: a limit of time would say how loaded the machine is.
COMPUTING = (*STATE_MACHINES, "test_regular_expressions.py")

COMPUTING_LIMIT_S = 300


@functools.cache  # thousands of tests, hundreds of files
def _folder(path: Path) -> str:
    tests = Path(__file__).parent
    return path.relative_to(tests).parts[0] if path.is_relative_to(tests) else ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import tests that `-m` leaves out with their whole folder.

    Each worker imports every module that it collects, with the clients' packages that those import: 10 s of CPU, of
    which `scripts/test fast` needs half.
    """
    is_left_out = "not processes" in config.option.markexpr.split(" and ")
    return True if is_left_out and _folder(collection_path) in PROCESS_FOLDERS else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order tests by LONG_FIRST, and mark those that start processes by the folder they are in."""
    rank = {folder: number for number, folder in enumerate(LONG_FIRST)}
    machines = len(PROCESS_FOLDERS) - 0.5
    items.sort(
        key=lambda item: machines if item.path.name in STATE_MACHINES else rank.get(_folder(item.path), len(rank))
    )
    for item in items:
        if _folder(item.path) in PROCESS_FOLDERS:
            item.add_marker("processes")
        # The limit finds what hangs. These wait for nothing; beside other work 20 s of computing take minutes.
        computes = item.get_closest_marker("simulation") or item.path.name in COMPUTING
        if computes and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(COMPUTING_LIMIT_S))


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Modules that say ON_UVLOOP = True run on the loop that the gateway is served on, with VIRTUAL_TIME on looptime's.

    looptime's own plugin is off (pyproject.toml): it makes a loop for each plain test and closes none.
    """
    module = getattr(item, "module", None)
    if getattr(module, "VIRTUAL_TIME", False):
        return {"virtual": lambda: looptime.new_event_loop()}
    return (
        {"uvloop": uvloop.new_event_loop}
        if getattr(module, "ON_UVLOOP", False)
        else {"asyncio": asyncio.new_event_loop}
    )


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for sockets: tmp_path, whose length depends on the user and on earlier runs, may be too long."""
    with tempfile.TemporaryDirectory(prefix="wg-", dir="/tmp") as name:
        yield Path(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept_gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, ScriptedSandbox]]:
    """One gateway for a module's tests that only ask to be refused; they are marked SHARED, to run on its loop."""
    async with scripted(tmp_path_factory.mktemp("kept")) as opened:
        yield opened


@pytest.fixture
async def open_gateway(tmp_path: Path) -> AsyncIterator[OpenScripted]:
    """Make gateways that end with the test."""
    async with AsyncExitStack() as stack:

        async def open_one(script: Script = say_ok, **changes: Any) -> tuple[Served, ScriptedSandbox]:
            return await stack.enter_async_context(scripted(tmp_path, script, **changes))

        yield open_one

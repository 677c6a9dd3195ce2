"""Real local sandboxes for tests: a runtime, a provider in its own folder, and code run through picod."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from gateway.core.clock import SystemClock
from gateway.core.model import Limits, PoolSpec, Runtime, RuntimeKey, Sandbox
from gateway.provider.local import Isolation, LocalProvider
from gateway.provider.local.egress import EgressServer
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
SANDBOX_PYTHON = ROOT / ".venv-sandbox"
KEY = RuntimeKey("default", "hostile")


def runtime(*, warm: int = 0, key: RuntimeKey = KEY, **fields: Any) -> Runtime:
    """A runtime whose picod asks for no token."""
    return Runtime(
        key, auth=False, pool=PoolSpec(size=warm), limits=fields.pop("limits", Limits(processes=64)), **fields
    )


@asynccontextmanager
async def serving(
    folder: Path,
    *runtimes: Runtime,
    isolation: Isolation = "bubblewrap",
    disk_reserve: int = 0,
    egress: EgressServer | None = None,
    sandbox_uids: str = "auto",
) -> AsyncIterator[LocalProvider]:
    """A started provider with its state in `folder`; nothing of it is left at the end. `egress`: who serves it."""
    python = SANDBOX_PYTHON if SANDBOX_PYTHON.exists() else None
    provider = LocalProvider(
        folder / "state",
        folder / "keys",
        SystemClock(),
        isolation,
        python,
        disk_reserve=disk_reserve,
        egress=egress,
        sandbox_uids=sandbox_uids,
    )
    await provider.apply(runtimes)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.aclose()


async def filled(provider: LocalProvider, key: RuntimeKey = KEY) -> None:
    """Wait until the pool has what it should have."""

    async def full() -> bool:
        status = await provider.status(key)
        return status.ready == status.target and status.starting == 0

    await eventually(full, f"the pool of {key} is full")


async def execute(sandbox: Sandbox, *command: str, timeout: str = "20s") -> dict[str, Any]:
    """Run a command in the sandbox: picod's answer."""
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=sandbox.endpoint.uds), timeout=40.0) as client:
        reply = await client.post("http://picod/api/execute", json={"command": command, "timeout": timeout})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


async def python(sandbox: Sandbox, code: str, *arguments: str, timeout: str = "20s") -> str:
    """What the code printed, run as the sandbox's python3; fails when it failed."""
    answer = await execute(sandbox, "python3", "-c", code, *arguments, timeout=timeout)
    assert answer["exit_code"] == 0, answer
    return str(answer["stdout"]).strip()


def processes_with(text: str) -> set[int]:
    """Live processes of this machine whose arguments or environment contain `text`; the dead but unreaped left out."""
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            seen = Path("/proc", entry, "cmdline").read_bytes() + Path("/proc", entry, "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in seen:
            found.add(int(entry))
    return found


def owner_mark(folder: Path) -> str:
    """What marks the processes of the provider whose state is in `folder`."""
    return f"WAKEGATE_SANDBOX={(folder / 'state' / 'owner').read_text()}/"

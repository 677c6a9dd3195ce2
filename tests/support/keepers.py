"""What the tests of workspace keepers share: runtimes and a local engine without sandboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.core.clock import SystemClock
from gateway.core.interfaces import SandboxProvider, WorkspaceKeeper
from gateway.core.model import Limits, Runtime, RuntimeKey, Sandbox, SessionId
from gateway.provider.local import LocalProvider
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer

KEY = RuntimeKey("default", "contract")


RUNTIME = Runtime(KEY, limits=Limits(processes=64))


SESSION = SessionId("5b0e1b63-7a2f-4f0f-9c45-000000000001")


@dataclass
class Subject:
    """A keeper under test, its sandboxes, and what stands for the files in one."""

    keeper: WorkspaceKeeper
    provider: SandboxProvider
    write: Callable[[Sandbox, str], None]
    read: Callable[[Sandbox], str]

    async def sandbox(self, content: str = "", session: SessionId = SESSION) -> Sandbox:
        """A fresh one with something in its workspace."""
        sandbox = await self.provider.claim(KEY, session)
        if content:
            self.write(sandbox, content)
        return sandbox

    async def asleep(self, content: str, session: SessionId = SESSION) -> str:
        """A session whose workspace is kept and whose sandbox is released: the reference."""
        sandbox = await self.sandbox(content, session)
        reference = await self.keeper.keep(sandbox.id, session)
        assert reference is not None
        await self.provider.release(sandbox.id)
        return reference

    async def wake(self, reference: str) -> str:
        """What a fresh sandbox has in its workspace when it was given what is kept."""
        sandbox = await self.sandbox()
        await self.keeper.restore(reference, sandbox.id, SESSION)
        return self.read(sandbox)


@asynccontextmanager
async def local(folder: Path) -> AsyncIterator[tuple[LocalProvider, PicodExecutor, Subject]]:
    """The local engine with its own parking, and an executor for its sandboxes."""
    keys, clock = KeyRing(folder / "keys"), SystemClock()
    keys.open()
    provider = LocalProvider(folder / "state", keys.public_dir, clock)
    await provider.apply([RUNTIME])
    await provider.start()

    def file(sandbox: Sandbox) -> Path:
        workspace = provider.workspace(sandbox.id)
        assert workspace is not None
        return workspace / "folder" / "content"

    def write(sandbox: Sandbox, content: str) -> None:
        file(sandbox).parent.mkdir(exist_ok=True)
        file(sandbox).write_text(content)

    try:
        executor = PicodExecutor(StaticCatalog([RUNTIME]), TokenIssuer(keys, clock))
        yield provider, executor, Subject(provider, provider, write, lambda sandbox: file(sandbox).read_text())
    finally:
        await provider.aclose()

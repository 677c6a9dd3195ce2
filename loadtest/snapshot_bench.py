"""How long each keeper takes to hibernate and wake a session, compared with `tar | zstd` of the same folder.

    scripts/bench snapshot_bench [--rounds 10] [--large 100]

Real sandboxes of the local engine (bubblewrap), a warm pool of one. `hibernate` is `keep` and then the release of the
sandbox, including the end of its processes; `wake` is the claim of a warm sandbox and `restore` into it. There are
three keepers: parking (renamed folders), snapshots in a folder, and the same encrypted. Each round wakes what it has
hibernated. In the same rounds the folder goes through `tar -c | zstd` into a file, synced as the store does it, and
through `zstd -d | tar -x`, with Debian's programs at zstd's default level. `first` is the first round. Ratios are
medians over medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.core.clock import SystemClock
from gateway.core.interfaces import WorkspaceKeeper
from gateway.core.model import PoolSpec, Runtime, RuntimeKey, Sandbox, SessionId
from gateway.provider.local import LocalProvider
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from gateway.snapshots import FolderStore, SealedStore, SnapshotKeys
from gateway.snapshots.keeper import SnapshotKeeper
from loadtest.figures import quantile

RUNTIME = Runtime(RuntimeKey("default", "bench"), pool=PoolSpec(size=1))
SESSION = SessionId("bench")
RATIO_BAR = 3.0  # times tar | zstd, of the large workspace
HIBERNATE_BAR, WAKE_BAR = 100.0, 25.0  # ms, of the small one, for the local engine's default keeper
PACK, UNPACK = "tar | zstd", "zstd -d | tar"


def fill(workspace: Path, files: int, size: int) -> None:
    """Write files of which half is text and half random: they compress to about half, as workspaces do."""
    rng = random.Random(7)
    words = [rng.randbytes(rng.randint(2, 9)).hex() for _ in range(2000)]
    for number in range(files):
        folder = workspace / f"folder{number % 10}"
        folder.mkdir(exist_ok=True)
        # Text of a fixed seed: each run compresses the same bytes.
        text = " ".join(rng.choices(words, k=size // 20)).encode()[: size // 2]
        (folder / f"file{number}").write_bytes(text + rng.randbytes(size - len(text)))


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Await one call. Returns its duration in milliseconds."""
    begun = time.perf_counter()
    await work()
    return (time.perf_counter() - begun) * 1000


def shell(script: str, *arguments: object) -> float:
    """Run a pipeline. Returns its duration in milliseconds, including the start of its processes."""
    begun = time.perf_counter()
    subprocess.run(["bash", "-ec", f"set -o pipefail; {script}", "bash", *map(str, arguments)], check=True)
    return (time.perf_counter() - begun) * 1000


class Bench:
    """One provider and one workspace that is hibernated and woken repeatedly."""

    def __init__(self, folder: Path, provider: LocalProvider, executor: PicodExecutor) -> None:
        self.folder = folder
        self.provider = provider
        self.times: dict[str, list[float]] = {PACK: [], UNPACK: []}
        clock, store = SystemClock(), FolderStore(folder / "snapshots")
        sealed = SealedStore(store, SnapshotKeys("bench", {"bench": os.urandom(32)}))
        self.keepers: dict[str, WorkspaceKeeper] = {
            "parking": provider,
            "snapshots": SnapshotKeeper(store, provider, executor, clock),
            "sealed": SnapshotKeeper(sealed, provider, executor, clock),
        }

    async def ready(self) -> None:
        """Wait until the pool is full and its sandbox has imported what a wake needs (a second after its start)."""
        while (await self.provider.status(RUNTIME.key)).ready < 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.5)

    async def cycle(self, name: str, sandbox: Sandbox) -> Sandbox:
        """Hibernate and wake with one keeper. Returns the sandbox that has the workspace afterwards."""
        keeper, kept, woken = self.keepers[name], [""], [sandbox]

        async def hibernate() -> None:
            reference = await keeper.keep(sandbox.id, SESSION)
            assert reference is not None
            kept[0] = reference
            await self.provider.release(sandbox.id)

        async def wake() -> None:
            woken[0] = await self.provider.claim(RUNTIME.key, SESSION)
            await keeper.restore(kept[0], woken[0].id, SESSION)

        self.times.setdefault(f"{name} hibernate", []).append(await timed(hibernate))
        await self.ready()  # a wake on a sandbox that is still importing would measure its imports
        self.times.setdefault(f"{name} wake", []).append(await timed(wake))
        await keeper.delete(kept[0])
        return woken[0]

    def baseline(self, workspace: Path) -> None:
        """Pack and unpack the same folder with tar and zstd."""
        archive, out = self.folder / "archive.tar.zst", self.folder / "out"
        out.mkdir()
        # With sync, since a snapshot is durable before its session counts as hibernated.
        self.times[PACK].append(shell('tar -C "$1" -cf - . | zstd -qf > "$2"; sync "$2"', workspace, archive))
        self.times[UNPACK].append(shell('zstd -dqc "$2" | tar -C "$1" -xpf -', out, archive))
        shutil.rmtree(out)

    def table(self, *, small: bool) -> None:
        """Print median, 95th percentile and first time of each step, and the ratio to the tools' median."""
        for name in self.keepers:
            for step, tool, bar in (("hibernate", PACK, HIBERNATE_BAR), ("wake", UNPACK, WAKE_BAR)):
                times = self.times[f"{name} {step}"]
                p50, other = statistics.median(times), statistics.median(self.times[tool])
                p95 = quantile(times, 0.95)
                verdict = ""
                if not small:
                    verdict = f"  bar {RATIO_BAR:g} x: {'ok' if p50 <= RATIO_BAR * other else 'MISSED'}"
                elif name == "parking":
                    verdict = f"  bar {bar:g} ms: {'ok' if p50 <= bar else 'MISSED'}"
                print(
                    f"  {name:10} {step:10} p50 {p50:8.1f} ms  p95 {p95:8.1f}  first {times[0]:8.1f} |"
                    f" {tool:13} {other:8.1f} ms | ratio {p50 / other:5.2f}{verdict}"
                )


async def measure(folder: Path, name: str, files: int, size: int, rounds: int) -> None:
    """Measure one workspace with all keepers and with the tools."""
    keys, clock = KeyRing(folder / "keys"), SystemClock()
    keys.open()
    provider = LocalProvider(folder / "state", keys.public_dir, clock)
    await provider.apply([RUNTIME])
    await provider.start()
    try:
        bench = Bench(folder, provider, PicodExecutor(StaticCatalog([RUNTIME]), TokenIssuer(keys, clock)))
        sandbox = await provider.claim(RUNTIME.key, SESSION)
        workspace = provider.workspace(sandbox.id)
        assert workspace is not None
        fill(workspace, files, size)
        for _ in range(rounds):
            # Each keeper gets the workspace that the one before has restored, so a fault of one would show in the next.
            for keeper in bench.keepers:
                sandbox = await bench.cycle(keeper, sandbox)
            workspace = provider.workspace(sandbox.id)
            assert workspace is not None
            # A fast keeper that loses files must not win.
            assert sum(1 for path in workspace.rglob("file*") if path.stat().st_size == size) == files
            bench.baseline(workspace)
    finally:
        await provider.aclose()
    print(f"{name}:")
    bench.table(small=files * size < 10_000_000)


async def main(rounds: int, large: int) -> None:
    """Measure a small and a large workspace, and print a table of each."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    for name, files, size in (("1 MB in 100 files", 100, 10_000), (f"{large} MB in 100 files", 100, large * 10_000)):
        with tempfile.TemporaryDirectory(prefix="wakegate-bench-") as folder:
            await measure(Path(folder), name, files, size, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure how sessions hibernate and wake.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--large", type=int, default=100, help="MB of the larger workspace")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.large))

"""How long a workspace takes to become a snapshot in a folder, and to be a workspace again, beside `tar | zstd`.

    .venv/bin/python loadtest/snapshot_bench.py [--rounds 10] [--large 100] [--sealed]

Two real picods on unix sockets. `hibernate` is GET /api/snapshot into a FolderStore, brought to the disk; `wake` is the
store's stream into PUT /api/snapshot of an empty workspace. `first` is what a fresh pair of picods takes. The same
folder goes through `tar -c | zstd` into a file, and `zstd -d | tar -x` out of it, both of Debian, at zstd's default
level; with `sync FILE` after the former, as the store does it. Medians; the bars are those we hold ourselves to.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx

from gateway.interfaces import SnapshotStore
from gateway.model import SessionId, SnapshotRef
from gateway.snapshots import FolderStore, SealedStore, SnapshotKeys

ROOT = Path(__file__).resolve().parents[1]
RATIO_BAR, HIBERNATE_BAR, WAKE_BAR = 3.0, 100.0, 25.0  # times tar | zstd; ms; ms


class Picod:
    """A picod of its own, told where to listen."""

    def __init__(self, folder: Path) -> None:
        self.workspace, uds = folder / "workspace", folder / "socket"
        self.workspace.mkdir(parents=True)
        command = [sys.executable, "-m", "picod", "--auth", "none", "--uds", str(uds), "--workspace"]
        self.process = subprocess.Popen([*command, str(self.workspace)], cwd=ROOT)
        while not uds.exists():
            time.sleep(0.01)
        transport = httpx.AsyncHTTPTransport(uds=str(uds))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://picod", timeout=120, trust_env=False)

    async def aclose(self) -> None:
        """End it."""
        await self.client.aclose()
        self.process.terminate()
        self.process.wait()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its workspace."""
        async with self.client.stream("GET", "/api/snapshot") as reply:
            reply.raise_for_status()
            async for chunk in reply.aiter_raw():
                yield chunk


def fill(workspace: Path, files: int, size: int) -> None:
    """Half of each file is text, half is noise: it shrinks to about half, as workspaces do."""
    rng = random.Random(7)
    words = [rng.randbytes(rng.randint(2, 9)).hex() for _ in range(2000)]
    for number in range(files):
        folder = workspace / f"folder{number % 10}"
        folder.mkdir(exist_ok=True)
        text = " ".join(rng.choices(words, k=size // 20)).encode()[: size // 2]
        (folder / f"file{number}").write_bytes(text + rng.randbytes(size - len(text)))


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    await work()
    return (time.perf_counter() - begun) * 1000


def shell(script: str, *arguments: object) -> float:
    """Milliseconds of a pipeline, its processes' start included."""
    begun = time.perf_counter()
    subprocess.run(["bash", "-ec", f"set -o pipefail; {script}", "bash", *map(str, arguments)], check=True)
    return (time.perf_counter() - begun) * 1000


async def measure(folder: Path, name: str, files: int, size: int, rounds: int, sealed: bool) -> None:
    """One workspace, all ways."""
    store: SnapshotStore = FolderStore(folder / "snapshots")
    if sealed:
        store = SealedStore(store, SnapshotKeys("bench", {"bench": os.urandom(32)}))
    source, target = Picod(folder / "source"), Picod(folder / "target")
    times: dict[str, list[float]] = {key: [] for key in ("hibernate", "wake", "tar | zstd", "zstd -d | tar")}
    archive, out = folder / "archive.tar.zst", folder / "out"
    try:
        await asyncio.sleep(2)  # as warm sandboxes are when they are claimed
        fill(source.workspace, files, size)
        for _ in range(rounds):
            refs: list[SnapshotRef] = []

            async def hibernate(refs: list[SnapshotRef] = refs) -> None:
                refs.append(await store.put(SessionId(name), source.chunks()))

            async def wake(refs: list[SnapshotRef] = refs) -> None:
                (await target.client.put("/api/snapshot", content=store.get(refs[0]))).raise_for_status()

            times["hibernate"].append(await timed(hibernate))
            for entry in target.workspace.iterdir():
                shutil.rmtree(entry)
            times["wake"].append(await timed(wake))
            out.mkdir()
            times["tar | zstd"].append(
                shell('tar -C "$1" -cf - . | zstd -q > "$2"; sync "$2"', source.workspace, archive)
            )
            times["zstd -d | tar"].append(shell('zstd -dqc "$2" | tar -C "$1" -xpf -', out, archive))
            shutil.rmtree(out)
            snapshot, archive_size = refs[0].size, archive.stat().st_size
            await store.delete(refs[0].key)
    finally:
        await source.aclose()
        await target.aclose()
    kept = f"{snapshot / 1e6:.1f} MB stored{' and sealed' if sealed else ''}"
    print(f"{name}: {kept}, tar | zstd {archive_size / 1e6:.1f} MB")
    small = files * size < 10_000_000
    for ours, theirs, bar in (("hibernate", "tar | zstd", HIBERNATE_BAR), ("wake", "zstd -d | tar", WAKE_BAR)):
        p50, other = statistics.median(times[ours]), statistics.median(times[theirs])
        first = times[ours][0]
        worst = sorted(times[ours])[min(rounds - 1, int(0.95 * rounds))]
        held = p50 <= bar if small else p50 <= RATIO_BAR * other
        told = f"bar {bar:g} ms" if small else f"bar {RATIO_BAR:g} x"
        print(
            f"  {ours:10} p50 {p50:8.1f} ms  p95 {worst:8.1f}  first {first:8.1f} | {theirs:14} {other:8.1f} ms |"
            f" ratio {p50 / other:5.2f}  {told}: {'ok' if held else 'MISSED'}"
        )


async def main(rounds: int, large: int, sealed: bool) -> None:
    """Measure and print."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {rounds} rounds")
    for name, files, size in (("1 MB in 100 files", 100, 10_000), (f"{large} MB in 100 files", 100, large * 10_000)):
        with tempfile.TemporaryDirectory(prefix="wakegate-bench-") as folder:
            await measure(Path(folder), name, files, size, rounds, sealed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure snapshots.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--large", type=int, default=100, help="MB of the larger workspace")
    parser.add_argument("--sealed", action="store_true", help="encrypt them")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.large, arguments.sealed))

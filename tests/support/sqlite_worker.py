"""A separate process that uses a sqlite store, for tests that kill it, race it or fill its disk.

Usage: sqlite_worker.py write PATH PREFIX | race PATH ID N | fill PATH
It prints one line for each answered write, and only once it was answered.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

from gateway.core.clock import SystemClock
from gateway.core.errors import StaleWriteError, StoreUnavailableError
from gateway.core.model import SessionId
from gateway.store.sqlite import SqliteStore
from tests.support.records import session


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def write(store: SqliteStore, prefix: str) -> None:
    """Eight writers at once, each raising the versions of its own records, until killed."""

    async def writer(n: int) -> None:
        for round_ in range(10**9):
            record = session(f"{prefix}-{n}-{round_}", reason="x" * 500)
            for _ in range(3):
                record = await store.put(record)
                say(record.id, record.version)

    await asyncio.gather(*(writer(n) for n in range(8)))


async def race(store: SqliteStore, session_id: str, times: int) -> None:
    """Raise one record's version `times` times, against whoever else does so."""
    while times:
        record = await store.get(SessionId(session_id))
        assert record is not None
        try:
            await store.put(replace(record, metadata={"n": str(int(record.metadata["n"]) + 1)}))
        except StaleWriteError:
            continue
        times -= 1
    say("done")


async def fill(store: SqliteStore, ballast: Path) -> None:
    """Write until the disk is full, free space, and continue."""
    answered = 0
    try:
        while True:
            await store.put(session(f"s{answered:05}", reason="x" * 4000))
            answered += 1
    except StoreUnavailableError as error:
        say("refused", error)
    assert await store.get(SessionId("s00000")) is not None
    say("reads")
    ballast.unlink()
    await store.put(session("afterwards"))
    say("healed", answered, len([each async for each in store.sessions(limit=10**6)]))


async def main() -> None:
    task, path = sys.argv[1], Path(sys.argv[2])
    if task == "fill":
        ballast = path.parent / "ballast"
        ballast.write_bytes(bytes(512 << 10))
    store = SqliteStore(path, SystemClock())
    await store.start()
    say("open")
    if task == "write":
        await write(store, sys.argv[3])
    elif task == "race":
        await race(store, sys.argv[3], int(sys.argv[4]))
    else:
        await fill(store, ballast)
    await store.aclose()


asyncio.run(main())

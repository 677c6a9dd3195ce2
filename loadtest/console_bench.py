"""What the console's page and its stream of events cost with ten thousand sessions.

    scripts/bench console_bench [--sessions 10000] [--viewers 10] [--seconds 20]

page     from the navigation to a table that a person can use: Chromium, a gateway whose store has that many sessions
         (wanted: 1 s). The ratio is to the same page with ten sessions, in the same run.
search   a search among all of them for one that is there, to its last page: seconds, and CPU of the gateway (and of
         Redis), with records in sqlite and in Redis.
stream   CPU of the gateway per viewer of /v1/events while sessions are created and ended, beside the same work without
         viewers (wanted: 1 % of a core for ten).

Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import httpx
import redis
import uvloop

from gateway.core.clock import SystemClock
from gateway.core.interfaces import SessionStore
from gateway.core.model import Kind, RuntimeKey, Session, SessionId, SessionState
from gateway.store import make_store
from gateway.store.sqlite import SqliteStore
from loadtest.local import create, gateway, until_full
from loadtest.processes import cpu_seconds
from tests.support.redis_server import RedisServer

_LOADS = 5  # the median of so many
_PAGE_S = 1.0
_CORE_SHARE = 0.01
_SEARCHES = 20
_PACE_S = 0.5  # between two sessions of the work beside the stream


async def fill(store: SessionStore, count: int) -> None:
    """Write so many records of lost sessions, which ask nothing of an engine."""
    await store.start()
    now = time.time()
    try:
        for i in range(count):
            await store.put(
                Session(
                    SessionId(str(uuid.uuid4())), RuntimeKey("default", "warm", Kind.CODE_INTERPRETER),
                    SessionState.LOST, now - i, now - i, now + 86400, 900.0, metadata={"name": f"session-{i}"},
                )
            )  # fmt: skip
    finally:
        await store.aclose()


async def search(client: httpx.AsyncClient, words: str) -> int:
    """Ask for all sessions that a search finds, as the console does; returns how many."""
    found, after = 0, ""
    while True:
        params = {"search": words, "limit": "100", **({"after": after} if after else {})}
        page = (await client.get("/v1/sessions", params=params)).raise_for_status().json()
        found, after = found + len(page["sessions"]), page["next"]
        if not after:
            return found


async def search_cost(client: httpx.AsyncClient, sessions: int, *pids: int) -> tuple[float, list[float]]:
    """Seconds of one search, the median, and the CPU seconds of each process per search."""
    words = f"session-{sessions - 1}"  # the oldest of them
    await search(client, words)
    before, times = [cpu_seconds(pid) for pid in pids], []
    for _ in range(_SEARCHES):
        began = time.perf_counter()
        assert await search(client, words) == 1
        times.append(time.perf_counter() - began)
    return statistics.median(times), [(cpu_seconds(pid) - at) / _SEARCHES for pid, at in zip(pids, before, strict=True)]


async def redis_search(folder: Path, sessions: int) -> tuple[float, list[float]]:
    """The same with the records in a Redis of its own."""
    server = RedisServer(folder / "redis").start()
    try:
        await fill(make_store(server.url, SystemClock(), prefix="wakegate"), sessions)
        (folder / "state").mkdir()
        flags = ("--code-context", "lazy", "--store", server.url)
        async with gateway(folder, 1, *flags) as (client, pid):
            await until_full(client, 1)
            with redis.Redis("127.0.0.1", server.port) as asked:
                of_redis = int(asked.info("server")["process_id"])
            return await search_cost(client, sessions, pid, of_redis)
    finally:
        server.kill()


async def page_time(url: str) -> float:
    """Seconds until the table has rows and its filter answers; the median of several loads."""
    from playwright.async_api import async_playwright

    times = []
    async with async_playwright() as playwright:
        from tests.support.browser import find_browser

        browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            page = await (await browser.new_context()).new_page()
            for _ in range(_LOADS):
                await page.goto("about:blank")
                began = time.perf_counter()
                await page.goto(f"{url}/#/sessions")
                await page.wait_for_selector("tbody tr")
                await page.fill("#search", "session-7777")  # one of ten thousand, none of ten
                await page.wait_for_selector("tbody td:has-text('name=session-7777'), tbody td.empty")
                times.append(time.perf_counter() - began)
        finally:
            await browser.close()
    return statistics.median(times)


async def stream_cpu(client: httpx.AsyncClient, pid: int, viewers: int, seconds: float) -> float:
    """The gateway's share of a core while sessions come and go and so many viewers read the stream."""

    async def view() -> None:
        async with client.stream("GET", "/v1/events", headers={"accept": "text/event-stream"}, timeout=None) as reply:
            reply.raise_for_status()
            async for _ in reply.aiter_raw():
                pass

    tasks = [asyncio.create_task(view()) for _ in range(viewers)]
    try:
        await asyncio.sleep(1.0)  # until all are connected
        began, before = time.perf_counter(), cpu_seconds(pid)
        while time.perf_counter() - began < seconds:
            _, _, session = await create(client, "warm")
            await client.delete(f"/v1/sessions/{session}")
            await asyncio.sleep(_PACE_S)
        return (cpu_seconds(pid) - before) / (time.perf_counter() - began)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def say_search(store: str, seconds: float, cpu: list[float]) -> None:
    """Print the line of one store."""
    of_redis = f", {cpu[1] * 1e3:.0f} ms of Redis" if len(cpu) > 1 else ""
    print(f"search  {store}: {seconds * 1e3:.0f} ms, {cpu[0] * 1e3:.0f} ms of CPU of the gateway{of_redis}", flush=True)


async def main(sessions: int, viewers: int, seconds: float) -> int:
    """Print both parts. Returns how many bars were missed."""
    found: dict[int, float] = {}
    missed = 0
    for count in (10, sessions):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "state").mkdir()
            await fill(SqliteStore(folder / "state" / "wakegate.db", SystemClock()), count)
            async with gateway(folder, 2) as (client, pid):
                await until_full(client, 2)
                found[count] = await page_time(str(client.base_url).rstrip("/"))
                if count == sessions:
                    say_search("sqlite", *await search_cost(client, sessions, pid))
                    shares: dict[int, list[float]] = {0: [], viewers: []}
                    for _ in range(3):
                        for each, measured in shares.items():
                            measured.append(await stream_cpu(client, pid, each, seconds))
    with tempfile.TemporaryDirectory() as name:
        say_search("Redis", *await redis_search(Path(name), sessions))
    ratio = found[sessions] / found[10]
    missed += found[sessions] > _PAGE_S
    print(f"page    {sessions} sessions {found[sessions]:.2f} s, 10 sessions {found[10]:.2f} s, ratio {ratio:.2f}")
    base, with_viewers = (statistics.median(shares[each]) for each in (0, viewers))
    missed += (with_viewers - base) * 10 / viewers > _CORE_SHARE
    print(
        f"stream  {with_viewers * 100:.2f} % of a core with {viewers} viewers, {base * 100:.2f} % without: "
        f"{(with_viewers - base) * 1000 / viewers:.2f} % for ten"
    )
    return missed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--viewers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(uvloop.run(main(arguments.sessions, arguments.viewers, arguments.seconds)))

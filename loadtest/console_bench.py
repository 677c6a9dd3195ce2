"""What the console's page and its stream of events cost with ten thousand sessions.

    scripts/bench console_bench [--sessions 10000] [--viewers 30] [--seconds 10] [--pairs 8] [--only page|search|stream]

page     from the navigation to a table that a person can use, the median of several loads (wanted: 1 s): Chromium, a
         gateway whose store has that many sessions. Beside it when its first rows are there, and how long a search that
         is typed takes (0.2 s of which it waits for the next key). The ratio is to the same page with ten sessions.
search   a search among all of them for one that is there, to its last page: seconds, and CPU of the gateway (and of
         Redis), with records in sqlite and in Redis.
stream   CPU of the gateway for ten viewers of /v1/events while sessions are created and ended at a steady pace (wanted:
         1 % of a core). Windows with viewers and without take turns, A B B A, and each pair is compared: what the
         gateway does besides is in both, and what is left of it is in the interval that is printed (95 %). An interval
         that contains the bar tells nothing: more --pairs, or an idle machine.

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
from collections.abc import Sequence
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
_PACE_S = 0.5  # from one session of the work beside the stream to the next
_MOST_VIEWERS = 30  # gateway/api/events.py: 32 of a tenant
_PARTS = ("page", "search", "stream")
# Of Student's t, for 95 % on both sides and so many degrees of freedom; 2 from there on.
_T = {1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 15: 2.13, 20: 2.09}


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


async def page_times(url: str) -> tuple[float, float]:
    """Seconds until the table has rows, and until its filter has answered as well; medians of several loads."""
    from playwright.async_api import async_playwright

    from tests.support.browser import find_browser

    rows, whole = [], []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        try:
            page = await (await browser.new_context()).new_page()
            # The first load is another: it starts the browser's processes and fills its caches.
            for _ in range(_LOADS + 1):
                await page.goto("about:blank")
                began = time.perf_counter()
                await page.goto(f"{url}/#/sessions", wait_until="commit")
                await page.wait_for_selector("tbody tr td.mono")
                rows.append(time.perf_counter() - began)
                await page.fill("#search", "session-7777")  # one of ten thousand, none of ten
                await page.wait_for_selector("tbody tr:only-child td:is(:has-text('name=session-7777'), .empty)")
                whole.append(time.perf_counter() - began)
        finally:
            await browser.close()
    return statistics.median(rows[1:]), statistics.median(whole[1:])


def exact_cpu(pid: int) -> float:
    """Seconds of CPU of a process's threads, from the scheduler: /proc/PID/stat counts in ticks of 10 ms."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


class Viewers:
    """So many readers of the stream of events, and how many events they have read together."""

    def __init__(self, client: httpx.AsyncClient, count: int) -> None:
        self._client, self._count = client, count
        self._tasks: list[asyncio.Task[None]] = []
        self.events = 0

    async def __aenter__(self) -> Viewers:
        ready = [asyncio.Event() for _ in range(self._count)]
        self._tasks = [asyncio.create_task(self._view(each)) for each in ready]
        await asyncio.gather(*(each.wait() for each in ready))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _view(self, ready: asyncio.Event) -> None:
        headers = {"accept": "text/event-stream"}
        async with self._client.stream("GET", "/v1/events", headers=headers, timeout=None) as reply:
            reply.raise_for_status()
            async for piece in reply.aiter_raw():
                ready.set()
                self.events += piece.count(b"\nevent: ")


async def window(client: httpx.AsyncClient, pid: int, viewers: int, seconds: float) -> tuple[float, int]:
    """The gateway's share of a core while sessions come and go and so many read the stream; events that they read."""
    async with Viewers(client, viewers) as reading:
        began, before, read = time.perf_counter(), exact_cpu(pid), reading.events
        # By the clock and not after a pause: a window with viewers, in which all is slower, has as many sessions.
        for number in range(round(seconds / _PACE_S)):
            await asyncio.sleep(began + number * _PACE_S - time.perf_counter())
            _, _, session = await create(client, "warm")
            await client.delete(f"/v1/sessions/{session}")
        await asyncio.sleep(began + seconds - time.perf_counter())
        return (exact_cpu(pid) - before) / (time.perf_counter() - began), reading.events - read


async def stream_cost(client: httpx.AsyncClient, pid: int, viewers: int, seconds: float, pairs: int) -> int:
    """Print what ten viewers cost. Returns 1 if that is more than it may be."""
    await window(client, pid, viewers, seconds)  # what is done once is done before
    bases, differences, read = [], [], 0
    for number in range(pairs):
        order = (0, viewers) if number % 2 == 0 else (viewers, 0)
        found = {each: await window(client, pid, each, seconds) for each in order}
        bases.append(found[0][0])
        differences.append((found[viewers][0] - found[0][0]) * 10 / viewers)
        read += found[viewers][1]
    cost, base = statistics.mean(differences), statistics.mean(bases)
    factor = next((value for freedom, value in sorted(_T.items(), reverse=True) if freedom < pairs), 12.7)
    spread = factor * statistics.stdev(differences) / pairs**0.5 if pairs > 1 else float("inf")
    least, most = cost - spread, cost + spread
    verdict = "met" if most <= _CORE_SHARE else "missed" if least > _CORE_SHARE else "not told apart from the bar"
    print(
        f"stream  ten viewers {cost * 100:.2f} % of a core, 95 % within {least * 100:.2f} to {most * 100:.2f}, "
        f"{pairs} pairs of {seconds:g} s with {viewers} viewers; without viewers {base * 100:.2f} %; "
        f"{read / (pairs * viewers * seconds):.1f} events a second to each: {verdict}",
        flush=True,
    )
    return int(cost > _CORE_SHARE)


def say_search(store: str, seconds: float, cpu: list[float]) -> None:
    """Print the line of one store."""
    of_redis = f", {cpu[1] * 1e3:.0f} ms of Redis" if len(cpu) > 1 else ""
    print(f"search  {store}: {seconds * 1e3:.0f} ms, {cpu[0] * 1e3:.0f} ms of CPU of the gateway{of_redis}", flush=True)


async def main(sessions: int, viewers: int, seconds: float, pairs: int, parts: Sequence[str]) -> int:
    """Print the parts. Returns how many bars were missed."""
    found: dict[int, tuple[float, float]] = {}
    missed = 0
    for count in (10, sessions):
        if count == 10 and "page" not in parts:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "state").mkdir()
            await fill(SqliteStore(folder / "state" / "wakegate.db", SystemClock()), count)
            async with gateway(folder, 2) as (client, pid):
                await until_full(client, 2)
                if "page" in parts:
                    found[count] = await page_times(str(client.base_url).rstrip("/"))
                if count == sessions and "search" in parts:
                    say_search("sqlite", *await search_cost(client, sessions, pid))
                if count == sessions and "stream" in parts:
                    missed += await stream_cost(client, pid, viewers, seconds, pairs)
    if "search" in parts:
        with tempfile.TemporaryDirectory() as name:
            say_search("Redis", *await redis_search(Path(name), sessions))
    if found:
        (rows, whole), (few_rows, few) = found[sessions], found[10]
        missed += whole > _PAGE_S
        verdict = "met" if whole <= _PAGE_S else "missed"
        print(
            f"page    {sessions} sessions {whole:.2f} s (rows {rows:.2f}), "
            f"10 sessions {few:.2f} s (rows {few_rows:.2f}), ratio {whole / few:.2f}: {verdict}"
        )
    return missed


def _viewers(text: str) -> int:
    count = int(text)
    if not 1 <= count <= _MOST_VIEWERS:
        raise argparse.ArgumentTypeError(f"expected 1 to {_MOST_VIEWERS}, as many as a gateway lets a tenant have")
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--viewers", type=_viewers, default=_MOST_VIEWERS)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--only", choices=_PARTS, action="append", default=[])
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(
            uvloop.run(main(given.sessions, given.viewers, given.seconds, given.pairs, given.only or _PARTS))
        )

"""Many at once, for session_bench: requests to one hibernated session, to many, and a store with many records."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from gateway.build import build
from gateway.core.clock import SystemClock
from gateway.core.interfaces import SessionStore
from gateway.core.model import RuntimeKey, Session, SessionId, SessionState
from gateway.core.settings import Settings
from gateway.provider.local import owner_name
from gateway.serving.server import serving
from gateway.store import make_store
from loadtest.figures import quantile
from loadtest.local import create, gateway, until_full
from loadtest.processes import own_pss_mb
from tests.support.redis_server import RedisServer

_NOTE = b"kept"
_RETENTION_S = 604_800.0
_TICKS = 50
_RETRY_LIMIT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """One answer. `milliseconds` from sending all requests to its last byte; status 0: the connection broke."""

    status: int
    start: str
    milliseconds: float
    right: bool
    retry_after: float = 0.0


async def all_at_once(url: str, sessions: Sequence[str]) -> list[Answer]:
    """GET the file `note` of each session, all at the same time, each on a connection that is open already."""
    parts = urlsplit(url)
    # Connected first, so that times are those of the wake and not of a thousand handshakes.
    links = [await asyncio.open_connection(parts.hostname, parts.port) for _ in sessions]
    began = time.perf_counter()
    for (_, writer), session in zip(links, sessions, strict=True):
        writer.write(b"GET /api/files/note HTTP/1.1\r\nhost: localhost\r\nx-session-id: %b\r\n\r\n" % session.encode())
    # Read at the same time: an answer that waits in a socket would look late.
    answers = await asyncio.gather(*(_answer(reader, began) for reader, _ in links))
    # Without the FIN of a close: a thousand sockets in TIME_WAIT would be in the way of the next part.
    for _, writer in links:
        writer.transport.abort()
    return answers


async def _answer(reader: asyncio.StreamReader, began: float) -> Answer:
    try:
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
    except (asyncio.IncompleteReadError, ConnectionError):
        return Answer(0, "", (time.perf_counter() - began) * 1e3, right=False)
    took = (time.perf_counter() - began) * 1e3
    again = float(fields.get("retry-after", 0))
    return Answer(int(start.split(" ")[1]), fields.get("x-wakegate-start", ""), took, body == _NOTE, again)


def print_answers(name: str, answers: Sequence[Answer], base: float | None = None) -> float:
    """Print one line for each start kind. Returns the median of all answers."""
    for kind in sorted({each.start for each in answers}):
        times = [each.milliseconds for each in answers if each.start == kind]
        p50, p99 = quantile(times, 0.5), quantile(times, 0.99)
        ratio = f"  {p50 / base:5.1f} x a live answer" if base else ""
        print(f"{name} {kind or 'none':<9} {len(times):5}  p50 {p50:8.1f} ms  p99 {p99:8.1f} ms{ratio}", flush=True)
    return quantile([each.milliseconds for each in answers], 0.5)


def errors(answers: Sequence[Answer]) -> int:
    """Print how many answers are not a 200 with the file's bytes (bar: 0). Returns 1 if the bar was missed."""
    wrong = Counter(each.status for each in answers if each.status != 200 or not each.right)
    print(f"errors {wrong.total()}{f' by status {dict(wrong)}' if wrong else ''}, bar 0: {verdict(not wrong)}")
    return int(bool(wrong))


def verdict(held: bool) -> str:
    """How a bar's result is printed: `held` or `MISSED`."""
    return "held" if held else "MISSED"


async def claims(client: httpx.AsyncClient) -> int:
    """The number of claims since the gateway's start, from its metrics."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return int(sum(s.value for each in families for s in each.samples if s.name == "wakegate_claims_total"))


async def hibernated_session(client: httpx.AsyncClient, allowed: asyncio.Semaphore) -> str:
    """The id of a new session that has the file `note` and is hibernated."""
    async with allowed:
        _, _, session = await create(client, "warm")
        headers = {"x-session-id": session}
        (await client.put("/api/files/note", content=_NOTE, headers=headers)).raise_for_status()
        (await client.post(f"/v1/sessions/{session}/hibernate")).raise_for_status()
        return session


async def measure_herd(folder: Path, count: int) -> int:
    """Send requests at once to one hibernated session, and again while it is active. Returns the bars missed."""
    async with gateway(folder, 2) as (client, _):
        session = await hibernated_session(client, asyncio.Semaphore(1))
        await until_full(client, 2)
        before = await claims(client)
        woken = await all_at_once(str(client.base_url), [session] * count)
        # Claims and not wakes: two sandboxes for one session is the error to look for.
        wakes = await claims(client) - before
        live = await all_at_once(str(client.base_url), [session] * count)
    base = print_answers("active:", live)
    print_answers("hibernated:", woken, base)
    print(f"wakes {wakes}, bar 1: {verdict(wakes == 1)}")
    return errors(woken) + errors(live) + (wakes != 1)


async def measure_storm(folder: Path, count: int, pool: int) -> int:
    """Send a request to each of many hibernated sessions at once, more than the pool holds, and again while they are
    active. Returns the bars missed."""
    async with gateway(folder, pool) as (client, pid):
        # Four at a time, as more would only wait for the engine's limit on starts.
        allowed = asyncio.Semaphore(4)
        sessions = await asyncio.gather(*(hibernated_session(client, allowed) for _ in range(count)))
        await until_full(client, pool)
        woken = await all_at_once(str(client.base_url), sessions)
        print(f"gateway with {count} sessions just woken: {own_pss_mb(pid):.1f} MB PSS")
        # Asked again as a client would, to see that refusals end; the first answers count for the bar.
        refused = [(name, each) for name, each in zip(sessions, woken, strict=True) if not each.right]
        await ask_again(str(client.base_url), refused)
        live = await all_at_once(str(client.base_url), sessions)
    base = print_answers("active:", live)
    print_answers("hibernated:", woken, base)
    print(f"longest held {max(each.milliseconds for each in woken) / 1e3:.1f} s; past the hold rule is an error")
    return errors(woken) + errors(live)


async def ask_again(url: str, refused: Sequence[tuple[str, Answer]]) -> None:
    """Retry refused requests after Retry-After, until all are answered or for two minutes, and print the result."""
    began, left, rounds = time.perf_counter(), list(refused), 0
    while left and time.perf_counter() - began < _RETRY_LIMIT_S:
        await asyncio.sleep(max(each.retry_after for _, each in left))
        answers = await all_at_once(url, [name for name, _ in left])
        left = [(name, each) for (name, _), each in zip(left, answers, strict=True) if not each.right]
        rounds += 1
    if refused:
        took = time.perf_counter() - began
        print(f"refused {len(refused)}; {rounds} rounds of retries after Retry-After in {took:.0f} s: {len(left)} left")


async def plant(store: SessionStore, count: int, owner: str) -> None:
    """Write records of sessions that were hibernated (parked) an hour ago, each with another expiry around a week."""
    now = SystemClock().now()
    for index in range(count):
        name = SessionId(str(uuid.uuid4()))
        # Spread over a week, so that the sweeper's query has to find the few that are due among the many.
        ends = now + _RETENTION_S * (0.5 + index / count)
        await store.put(
            Session(
                id=name,
                runtime=RuntimeKey("default", "warm"),
                state=SessionState.HIBERNATED,
                created_at=now - 7200.0,
                last_active_at=now - 3600.0,
                expires_at=ends,
                limit_at=ends,
                idle_timeout=900.0,
                owner=owner,
                snapshot=str(name),
                snapshot_at=now - 3600.0,
                metadata={"user": f"user-{index}"},
            )
        )


async def measure_many(folder: Path, count: int) -> int:
    """Measure a gateway with `count` hibernated sessions, on each store. Returns the bars missed."""
    redis = RedisServer(folder / "redis").start()
    try:
        missed = await _measure_store("sqlite", folder / "one", f"sqlite://{folder}/one/wakegate.db", count)
        return missed + await _measure_store("Redis", folder / "two", redis.url, count)
    finally:
        redis.kill()


async def _measure_store(name: str, folder: Path, url: str, count: int) -> int:
    state = folder / "state"
    state.mkdir(parents=True)
    store = make_store(url, SystemClock())
    await store.start()
    began = time.perf_counter()
    # In Redis a parked session names its gateway; another gateway's would not be this one's to sweep.
    await plant(store, count, owner_name(state) if name == "Redis" else "")
    await store.aclose()
    print(f"{name}: {count} records written in {time.perf_counter() - began:.1f} s", flush=True)
    memory = await _memory(folder, url)
    tick, longest = await _ticks(state, url)
    print(f"{name}: gateway {memory:.1f} MB PSS, bar 150: {verdict(memory <= 150)}")
    print(f"{name}: sweeper tick p50 {tick:.2f} ms, max {longest:.2f} ms, bar 20 for p50: {verdict(tick <= 20)}")
    return (memory > 150) + (tick > 20)


async def _memory(folder: Path, url: str) -> float:
    """PSS in MB of a gateway process after a sweep and a listing of all pages, which read every record."""
    async with gateway(folder, 0, "--store", url, "--sweep-interval", "0.2") as (client, pid):
        after: str | None = ""
        while after is not None:
            page = (
                await client.get("/v1/sessions", params={"limit": 500, **({"after": after} if after else {})})
            ).json()
            after = page.get("next")
        # Five sweeps of 0.2 s, each of which reads all records that are due.
        await asyncio.sleep(1.0)
        return own_pss_mb(pid)


async def _ticks(state: Path, url: str) -> tuple[float, float]:
    """Median and longest milliseconds of one sweep, in a gateway that is built as `serve` builds it."""
    # An interval of an hour: the loop must not sweep beside the sweeps that are timed.
    settings = Settings(state_dir=state, port=0, store=url, warm_pool=0, sweep_interval=3600.0)
    async with serving(held := await build(settings)):
        times = []
        for _ in range(_TICKS):
            times.append(await _timed(held.sessions.sweeper.sweep()))
    return quantile(times, 0.5), max(times)


async def _timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1e3

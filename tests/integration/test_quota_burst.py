"""Two gateway processes over one Redis under a burst of creates by one tenant: its limit is granted, exactly."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

LIMIT = 50
BURST = 200
AT_ONCE = 40
ADMIN = {"authorization": f"Bearer {'a' * 40}"}
RECOVERY_S = 60.0  # a killed gateway is taken for dead after 2 s, and what it reserved ends 4 s after that was


class Pair:
    """Both processes, and the key of a tenant that may have LIMIT sandboxes."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], urls: Sequence[str]) -> None:
        self.processes = processes
        limits = httpx.Limits(max_connections=None)
        self.clients = [httpx.Client(base_url=url, timeout=60, trust_env=False, limits=limits) for url in urls]
        made = self.clients[0].put("/v1/tenants/acme", json={"limits": {"sandboxes": LIMIT}}, headers=ADMIN)
        assert made.status_code == 201, made.text
        key = self.clients[0].post("/v1/keys", json={"role": "member", "tenant": "acme"}, headers=ADMIN).json()["key"]
        self.member = {"authorization": f"Bearer {key}"}
        for client in self.clients:
            wait_until(lambda client=client: self.limit_at(client) == LIMIT, "both follow the tenant's limit")  # type: ignore[misc]

    def limit_at(self, client: httpx.Client) -> int | None:
        reply = client.get("/v1/tenants/self", headers=self.member)
        return reply.json()["limits"].get("sandboxes") if reply.status_code == 200 else None

    def create(self, client: httpx.Client) -> str:
        """The status of a create, or `gone` where the gateway was killed."""
        try:
            return str(client.post("/v1/sessions", json={}, headers=self.member).status_code)
        except httpx.TransportError:
            return "gone"

    def used(self, client: httpx.Client) -> int:
        document = client.get("/v1/tenants/acme", headers=ADMIN).json()
        return int(document["used"]["sandboxes"])

    def sessions(self, client: httpx.Client) -> list[str]:
        reply = client.get("/v1/sessions", params={"limit": 1000}, headers=self.member)
        return [each["id"] for each in reply.json()["sessions"] if each["state"] != "terminated"]

    def end_all(self, client: httpx.Client) -> None:
        """End every session of the tenant, those of a dead gateway as soon as this one may."""

        def none_left() -> bool:
            for session in self.sessions(client):
                client.delete(f"/v1/sessions/{session}", headers=self.member)
            return not self.sessions(client)

        wait_until(none_left, "all sessions have ended", within=RECOVERY_S)
        wait_until(lambda: self.used(client) == 0, "the ledger holds nothing", within=RECOVERY_S)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two gateways that are ready."""
    redis = RedisServer(tmp_path / "redis").start()
    with contextlib.ExitStack() as stack:
        stack.callback(redis.kill)
        processes = []
        for name in ("a", "b"):
            argv = [sys.executable, "-m", "tests.support.quota_gateway", str(tmp_path / name), redis.url, name]
            log = stack.enter_context(open(tmp_path / f"{name}.log", "w"))
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        urls = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
        assert all(urls), (tmp_path / "a.log").read_text() + (tmp_path / "b.log").read_text()
        made = Pair(processes, urls)
        yield made
        for client in made.clients:
            client.close()
        for process in processes:
            assert process.stdout is not None
            process.stdout.close()


def test_burst_over_two_gateways_is_granted_the_limit_exactly(pair: Pair) -> None:
    """Of 200 creates 50 succeed and 150 are refused for the quota; once all have ended, 50 more succeed."""
    for _ in range(2):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            statuses = Counter(pool.map(pair.create, itertools.islice(itertools.cycle(pair.clients), BURST)))
        assert statuses == {"201": LIMIT, "429": BURST - LIMIT}
        assert [pair.used(client) for client in pair.clients] == [LIMIT, LIMIT]
        assert len(pair.sessions(pair.clients[1])) == LIMIT
        pair.end_all(pair.clients[1])


def test_burst_with_a_gateway_killed_amid_it_overcommits_and_leaks_nothing(pair: Pair) -> None:
    """The limit holds while one of two is killed; what that one had reserved and made is free again in the end."""
    a, b = pair.clients
    seen: list[int] = []
    over = Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(max(pair.used(b), len(pair.sessions(b))))

    with ThreadPoolExecutor(1) as watcher, ThreadPoolExecutor(AT_ONCE) as pool:
        watching = watcher.submit(watch)
        try:
            burst = pool.map(pair.create, itertools.islice(itertools.cycle((a, b)), BURST))
            wait_until(lambda: pair.used(b) >= 5, "the burst is under way")
            pair.processes[0].kill()
            statuses = Counter(burst)
        finally:
            over.set()
        watching.result()
    assert set(statuses) <= {"201", "429", "gone"}
    assert statuses["201"] <= LIMIT
    assert max(seen) <= LIMIT

    pair.end_all(b)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        again = Counter(pool.map(pair.create, [b] * BURST))
    assert again == {"201": LIMIT, "429": BURST - LIMIT}

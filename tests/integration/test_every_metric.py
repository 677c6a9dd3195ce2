"""Every family that `/metrics` exports moves when users, failures or a cluster give it reason to: none is for show."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from tests.support.kube.served import in_cluster
from tests.support.kube.simulator import ApiError
from tests.support.redis_server import RedisServer
from tests.support.serve import RUNTIME, Server, processes_of, serve
from tests.support.waiting import LIMIT_S, wait_until

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: my-interpreter}
spec:
  template: {image: none, resources: {limits: {cpu: "4"}, requests: {cpu: 10m}}}
  warmPoolSize: 1
  wakegate: {pool: {min: 1, max: 3}}
"""
CONSTANT = {"wakegate_build_info", "wakegate_bookable"}  # what runs, and what the machine has
# 0 or absent until this gateway leads the autoscaler, which may be before the first scrape.
AT_ONCE = {"wakegate_autoscaler_leads", "wakegate_pool_forecast_quantile", "wakegate_pool_forecast_level"}
# tests/egress: they take a world of hosts to reach, and a process to kill.
OUTSIDE = {
    "wakegate_egress_connections", "wakegate_egress_bytes", "wakegate_egress_restarts",
    "wakegate_package_cache", "wakegate_package_cache_saved_bytes", "wakegate_package_cache_bytes",
}  # fmt: skip
# tests/integration/test_tasks.py: they take an agent.
TASKS = {
    "wakegate_tasks", "wakegate_task_oldest_seconds", "wakegate_task_oldest_queued_seconds", "wakegate_task_tries",
    "wakegate_tasks_ended", "wakegate_task_webhooks",
}  # fmt: skip
PRICED = ("tenant_cost", "tenant_cost_without_hibernation", "warm_pools_cost")  # where there is a file of prices
DRAINING = {
    "wakegate_draining"
}  # tests/observability/test_metrics.py: who drains takes no new connection to be scraped by


class Seen:
    """What the scrapes of one gateway showed: families, and which of them differed between two scrapes."""

    def __init__(self, server: Server) -> None:
        self._client = server.client
        self._first: dict[str, dict[str, float]] = {}
        self.families: set[str] = set()
        self.moved: set[str] = set()
        self.look()

    def look(self) -> None:
        samples: dict[str, dict[str, float]] = defaultdict(dict)
        answer = self._client.get("/metrics", headers={"accept": "text/plain"})
        for family in text_string_to_metric_families(answer.text):
            self.families.add(family.name)
            samples[family.name] |= {f"{each.name}{each.labels}": each.value for each in family.samples}
        self._first = self._first or dict(samples)
        self.moved |= {name for name, values in samples.items() if values != self._before(name)}

    def _before(self, name: str) -> dict[str, float]:
        return {} if name in AT_ONCE else self._first.get(name, {})

    def until(self, *names: str, within: float = LIMIT_S) -> None:
        """Scrape until all of these have moved."""
        wanted = {f"wakegate_{name}" for name in names}

        def all_moved() -> bool:
            self.look()
            return wanted <= self.moved

        try:
            wait_until(all_moved, f"all of {names} move", within)
        except AssertionError as error:
            raise AssertionError(f"{error}; did not move: {sorted(wanted - self.moved)}") from None


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do the work in a thread of its own; the block's end waits for it."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def live_through(server: Server, seen: Seen) -> None:
    """What a day brings: sessions, a long request, a terminal, sleep and wake, a full pool, a full gateway."""
    client, session = server.client, server.session()
    seen.until("pool_starting", "pool_ready", "pool_claimed", "sandboxes_bound", "claims", "control_requests")
    with beside(lambda: server.run(session, "sleep 1")):
        seen.until("requests_in_flight")
    seen.until("requests", "request_duration_seconds", "stage_duration_seconds", "routes", "token_signings")
    url = server.url.replace("http", "ws") + f"/v1/sessions/{session}/terminal"
    used = ("sandbox_seconds", "cpu_seconds", "memory_byte_seconds", "requests", "egress_bytes")
    seen.until(*(f"tenant_{name}" for name in used))
    seen.until(*PRICED)
    with connect(url, proxy=None):
        seen.until("websockets_open")
    client.post(f"/v1/sessions/{session}/hibernate").raise_for_status()
    assert server.run(session, "head -c 200000 /dev/urandom > large").status_code == 200
    assert client.post(f"/v1/sessions/{session}/hibernate").status_code == 413  # over --snapshot-max-size
    seen.until("keeper_duration_seconds", "keeper_errors", "snapshot_bytes", "store_duration_seconds")

    def ask_for_another() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as another:
            another.get("/api/files", headers={"x-wakegate-runtime": RUNTIME.partition("/")[2]})

    with contextlib.ExitStack() as others:
        for _ in range(6):  # with the session above three more than --max-sandboxes: one that fails to start leaves two
            others.enter_context(beside(ask_for_another))
        # Those too many are refused after the 10 s that a request is held for a sandbox.
        seen.until("requests_held", "pool_misses", "errors", "queue_rejections", within=10 + LIMIT_S)
    seen.until("pool_lead_time_seconds", "pool_forecast_level", "pool_forecast_quantile", "event_loop_lag_seconds")
    seen.until("pool_target", "autoscaler_leads")


def test_every_metric_family_changes(tmp_path: Path) -> None:
    """Real requests, a killed sandbox, a Redis that goes away and a cluster move all that is exported."""
    manifest = tmp_path / "runtime.yaml"
    manifest.write_text(MANIFEST)
    (tmp_path / "prices.toml").write_text('currency = "EUR"\nvcpu_hour = 100.0\n')
    redis = RedisServer(tmp_path / "redis").start()
    flags = ["--store", redis.url, "--snapshots", f"file://{tmp_path}/snapshots", "--snapshot-max-size", "64Ki"]
    try:
        with serve(
            tmp_path / "state",
            *flags,
            "--runtime",
            str(manifest),
            "--max-sandboxes",
            "4",
            "--usage-interval",
            "1s",
            "--prices",
            str(tmp_path / "prices.toml"),
        ) as server:
            local = Seen(server)
            live_through(server, local)
            for process in processes_of(tmp_path / "state"):
                if process.pid != server.process.pid:
                    with contextlib.suppress(Exception):
                        process.send_signal(signal.SIGKILL)
            local.until("pool_failures")
            redis.kill()
            server.client.get("/v1/sessions/nobody")
            local.until("store_errors")
    finally:
        redis.kill()
    (tmp_path / "cluster").mkdir()
    with in_cluster(tmp_path / "cluster") as (server, kubernetes):
        cluster = Seen(server)
        server.session()
        cluster.until("kubernetes_api_duration_seconds")
        kubernetes.api.failing = ApiError(500, "InternalError", "etcd is away")
        assert server.client.post("/v1/sessions", json={"runtime": RUNTIME}).status_code == 503
        cluster.until("kubernetes_api_errors")
        kubernetes.api.failing = None
    assert local.families - {f"wakegate_{name}" for name in PRICED} == cluster.families
    still = {name for name in local.families - local.moved - cluster.moved if name.startswith("wakegate_")}
    assert still == CONSTANT | DRAINING | OUTSIDE | TASKS

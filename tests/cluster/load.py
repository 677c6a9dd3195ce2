"""Clients that use their sessions without a pause while something breaks, and what they have seen of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.cluster.gateway import Gateway

_BETWEEN_S, _BETWEEN_NEW_S = 0.1, 2.0
# A connection that is begun while kube-proxy gives a Service its endpoint back is never made: the REJECT for Services
# without one is gone, the address of the pod is not there yet, and conntrack keeps for two minutes where the first
# packet went. The next connection is made at once, so what a client loses is how long it waits before it tries again.
_PATIENCE_S, _CONNECT_S = 60.0, 5.0


@dataclass
class Load:
    """What happened while it ran. Errors are counted raw: no client asks again for the same answer."""

    answers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    lost: int = 0  # answers 200 without the session's file, or with another's
    slowest_s: float = 0.0
    longest_outage_s: float = 0.0
    created: int = 0
    not_created: Counter[str] = field(default_factory=Counter)
    longest_without_new_s: float = 0.0
    restored: set[str] = field(default_factory=set)  # what x-wakegate-restored said

    def figures(self) -> str:
        """One row of the report."""
        failed = ", ".join(f"{count} x {what}" for what, count in sorted(self.errors.items())) or "none"
        refused = ", ".join(f"{count} x {what}" for what, count in sorted(self.not_created.items())) or "none"
        return (
            f"{self.answers} answers, errors {failed}, longest outage {self.longest_outage_s:.1f} s, "
            f"slowest {self.slowest_s:.1f} s, lost {self.lost}; {self.created} sessions made, refused {refused}, "
            f"longest without a new one {self.longest_without_new_s:.1f} s"
        )


def _one(gateway: Gateway) -> httpx.Client:
    timeout = httpx.Timeout(_PATIENCE_S, connect=_CONNECT_S)
    return httpx.Client(base_url=gateway.client.base_url, headers=gateway.client.headers, timeout=timeout)


def _use(gateway: Gateway, session: str, note: str, load: Load, lock: threading.Lock, stop: threading.Event) -> None:
    body = {"command": ["cat", "note"]}
    failing_since: float | None = None
    with _one(gateway) as client:
        while not stop.is_set():
            began = time.monotonic()
            try:
                reply = client.post("/api/execute", json=body, headers={"x-session-id": session})
                failed = "" if reply.status_code == 200 else str(reply.status_code)
            except httpx.HTTPError as error:
                failed = type(error).__name__
            now = time.monotonic()
            with lock:
                load.slowest_s = max(load.slowest_s, now - began)
                if failed:
                    load.errors[failed] += 1
                    failing_since = failing_since or began
                else:
                    load.answers += 1
                    load.lost += reply.json()["stdout"] != note
                    if restored := reply.headers.get("x-wakegate-restored"):
                        load.restored.add(restored)
                    if failing_since is not None:
                        load.longest_outage_s = max(load.longest_outage_s, now - failing_since)
                        failing_since = None
            stop.wait(_BETWEEN_S)
    if failing_since is not None:
        with lock:
            load.longest_outage_s = max(load.longest_outage_s, time.monotonic() - failing_since)


def _create(gateway: Gateway, load: Load, lock: threading.Lock, stop: threading.Event) -> None:
    last = time.monotonic()
    with _one(gateway) as client:
        while not stop.is_set():
            session = ""
            try:
                reply = client.post("/v1/sessions", json={"runtime": gateway.runtime})
                failed = "" if reply.status_code == 201 else str(reply.status_code)
                session = "" if failed else reply.json()["id"]
                if session:
                    client.delete(f"/v1/sessions/{session}")
            except httpx.HTTPError as error:
                failed = failed if session else type(error).__name__
            now = time.monotonic()
            with lock:
                if session:
                    load.created += 1
                    load.longest_without_new_s = max(load.longest_without_new_s, now - last)
                    last = now
                else:
                    load.not_created[failed] += 1
            stop.wait(_BETWEEN_NEW_S)
    load.longest_without_new_s = max(load.longest_without_new_s, time.monotonic() - last)


@contextmanager
def under_load(gateway: Gateway, sessions: Sequence[tuple[str, str]], *, creates: bool = True) -> Iterator[Load]:
    """One client for each (session, content of its file `note`), and one that makes sessions and ends them."""
    load, lock, stop = Load(), threading.Lock(), threading.Event()
    threads = [threading.Thread(target=_use, args=(gateway, *each, load, lock, stop)) for each in sessions]
    if creates:
        threads.append(threading.Thread(target=_create, args=(gateway, load, lock, stop)))
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join()

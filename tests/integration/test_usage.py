"""Usage of real gateways: what user code burns, kill -9, and two gateways that take sessions over."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.serve import Server, serve
from tests.support.two_gateways import two
from tests.support.waiting import wait_until

INTERVAL_S = 0.5
FLAGS = ("--usage-interval", f"{INTERVAL_S}s", "--warm-pool", "1")
BURN = "python3 -c 'import time\nwhile time.process_time() < 1: pass'"


def used(server: Server, session: str) -> dict[str, Any]:
    """What the API says that a session has used."""
    reply = server.client.get("/v1/usage", params={"group_by": "session,runtime,tenant"})
    assert reply.status_code == 200, reply.text
    return next((row for row in reply.json()["usage"] if row["session"] == session), {})


def test_totals_survive_kill_9_within_one_interval(tmp_path: Path) -> None:
    """CPU, requests and starts of a session that is hibernated, and woken by the next run, are there; none twice."""
    began = time.monotonic()
    with serve(tmp_path / "state", *FLAGS) as server:
        session = server.session()
        assert server.run(session, BURN).json()["exit_code"] == 0
        assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
        wait_until(lambda: used(server, session).get("requests") == 1, "the request is written")
        wait_until(lambda: used(server, session).get("cpuSeconds", 0) >= 0.9, "the burnt second is written")
        before = used(server, session)
        server.kill()
    lived = time.monotonic() - began
    with serve(tmp_path / "state", *FLAGS) as server:
        kept = used(server, session)
        assert all(kept[name] >= before[name] for name in ("cpuSeconds", "requests", "egressBytes", "sandboxSeconds"))
        assert server.run(session, "true").status_code == 200
        wait_until(lambda: used(server, session)["startsWake"] + used(server, session)["startsWakeCold"], "the wake")
        wait_until(lambda: used(server, session)["requests"] >= 2, "the second request is written")
        after = used(server, session)

    assert before["requests"] == 1
    assert before["startsWarm"] + before["startsCold"] == 1
    assert 0 < before["sandboxSeconds"] <= lived
    assert before["memoryByteSeconds"] > 0
    assert before["egressBytes"] > 0
    assert before["tenant"] == "default"
    assert after["requests"] == 2
    assert after["sandboxSeconds"] >= before["sandboxSeconds"]


def test_two_gateways_and_a_takeover_count_once(tmp_path: Path) -> None:
    """Requests through either gateway count once, and the seconds of a session never exceed those that passed."""
    flags = ("--usage-interval", f"{INTERVAL_S}s", "--snapshots", f"file://{tmp_path / 'snapshots'}")
    with two(tmp_path, *flags) as (one, other, _):
        began = time.monotonic()
        session = one.session()
        for server in (one, other, one):
            assert server.run(session, "echo hello").status_code == 200
        assert one.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
        wait_until(lambda: used(other, session).get("requests") == 3, "three requests are written")
        one.kill()
        wait_until(lambda: other.run(session, "true").status_code == 200, "the other takes over")
        wait_until(lambda: used(other, session)["requests"] >= 4, "the fourth request is written")
        row, passed = used(other, session), time.monotonic() - began

    assert row["sandboxSeconds"] <= passed
    assert row["startsWake"] + row["startsWakeCold"] == 1
    assert row["requests"] == pytest.approx(4)

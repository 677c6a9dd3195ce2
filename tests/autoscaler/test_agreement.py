"""A gateway's run beside its replay: recorded completely, counted by the same rules, differences reported."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.autoscaler.replay.pool import Targets, simulate
from loadtest import replay_client
from loadtest.recording import Recording
from loadtest.replay_compare import Account, laboratory, measured, report, simulated
from tests.support.autoscaler import poisson

pytestmark = pytest.mark.simulation

LOG = """not JSON
{"event":"sandbox sb-1 of code-interpreters/default/replayed is ready 0.2500 s after its order","timestamp":"2026-01-01T00:00:10.000000Z"}
{"event":"sandbox sb-2 of code-interpreters/default/replayed is ready 1.0000 s after its order; surplus","timestamp":"2026-01-01T00:00:10.500000Z"}
{"event":"sandbox sb-3 of code-interpreters/default/other is ready 1.0000 s after its order","timestamp":"2026-01-01T00:00:11.000000Z"}
{"event":"code-interpreters/default/replayed: pool of 3, before it was 2: why.","timestamp":"2026-01-01T00:00:12.000000Z"}
"""  # noqa: E501


def made(size: int = 1, lead: float = 0.5) -> Recording:
    """A recording of a pool that behaves as the laboratory's does."""
    arrivals = poisson(0.8, 160.0)
    starts = [(-1.0, lead, True), *((float(at), lead, True) for at in arrivals)]
    run = Recording("made", 1.0, arrivals.tolist(), 160.0, 30.0, 0.25, "fixed", size, 16, 0.2, True, starts=starts)
    waiting_for = np.concatenate((np.full(size, -np.inf), arrivals[:-size] + lead))
    run.claims = [
        (float(at), "cold" if ready > at else "warm", max(float(ready - at), 0.0), 0.1)
        for at, ready in zip(arrivals, waiting_for, strict=True)
    ]
    for time in np.arange(0.0, 160.0, 0.05):
        claimed = int(np.count_nonzero(arrivals <= time))
        back = int(np.count_nonzero(arrivals + lead <= time))
        run.pool.append((float(time), size, max(size - claimed + back, 0), 0, lead, lead))
    return run


def test_accounts_of_the_same_pool_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Misses, idle, orders and wait of a recorded pool are counted as the laboratory counts its own."""
    run = made()
    seen, (lab, _, _) = measured(run), laboratory(run, 3)

    assert seen.misses == pytest.approx(lab.misses, abs=2.0)
    assert seen.misses > 20
    assert seen.orders == lab.orders
    assert seen.idle == pytest.approx(lab.idle, rel=0.03)
    assert seen.wait == pytest.approx(lab.wait, rel=0.05)
    assert report(run)
    assert capsys.readouterr().out.count("yes") == 4


def test_difference_of_a_fifth_or_an_error_is_no_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    """A gateway that misses more than the laboratory says, or fails requests, does not pass."""
    run = made()
    worse = replace(run, claims=[(at, "cold", wait, took) for at, _, wait, took in run.claims])

    assert not report(worse)
    assert "  no" in capsys.readouterr().out
    assert not report(replace(run, errors={"status 502": 1}))


def test_unwanted_starts_are_idle_in_both_accounts() -> None:
    """A start that was no longer wanted when it was ready counts: its seconds are idle."""
    run = made()
    unwanted = replace(run, starts=[*run.starts, (100.0, 7.0, False)])

    assert measured(unwanted).idle - measured(run).idle == pytest.approx(7.0)
    given_up = Targets(np.array([-9.0, 99.0, 99.1]), np.array([1.0, 2.0, 1.0]))
    outcome = simulate(np.zeros(0), given_up, lead=7.0, scored_from=60.0, end=200.0, joins=True)
    assert outcome.idle == pytest.approx(140.0 + 7.0)
    assert isinstance(simulated(run, given_up), Account)


def test_recording_is_read_from_the_log_and_kept(tmp_path: Path) -> None:
    """Starts and orders of the runtime are taken from the log, at the times when they were ordered."""
    run = made()
    run.starts = []
    run.read_log(LOG.splitlines(), "default/replayed", began=1767225600.0)
    run.save(tmp_path / "run.json")
    kept = Recording.load(tmp_path / "run.json")

    assert [tuple(each) for each in kept.starts] == [(9.5, 1.0, False), (9.75, 0.25, True)]
    assert [tuple(each) for each in kept.orders] == [(12.0, 3, "why.")]
    assert len(kept.claims) == len(run.claims)


def test_real_gateway_is_recorded_whole(tmp_path: Path) -> None:
    """Some seconds of a trace on a gateway with real sandboxes: every claim, every start and the pool are kept."""
    args = argparse.Namespace(seed=1, seconds=5.0, warm_up=0.0, tick=0.25, max=4, out=tmp_path)
    run = replay_client.record("twitter,fixed", args)

    assert run.errors == {}
    assert len(run.claims) == len(run.arrivals) > 0
    assert {start for _, start, _, _ in run.claims} <= {"warm", "cold"}
    assert len(run.starts) >= len(run.claims), "each claim is refilled"
    assert all(0.0 < lead < 60.0 for _, lead, _ in run.starts)
    assert {target for _, target, *_ in run.pool} == {1}
    assert len(Recording.load(tmp_path / "twitter-fixed.json").claims) == len(run.claims)

"""Idle gaps of sessions: what advice would have cost beside fixed timeouts, counted gap by gap."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gateway.autoscaler.replay import cli
from gateway.autoscaler.replay.gaps import advised, fixed_timeout, frontier, idle_at_equal_waits, made_gaps, read_gaps
from gateway.core.errors import BadRequestError


def test_fixed_timeouts_are_counted_gap_by_gap() -> None:
    """Gaps of 30, 100 and 1,000 s with a timeout of 60: 150 s of idling and two requests that wait."""
    cost = fixed_timeout([(0.0, "a", 30.0), (0.0, "b", 100.0), (1.0, "c", 1000.0)], 60.0, warm_up=0.0)

    assert (cost.gaps, cost.idle, cost.waits, cost.wakes) == (3, 150.0, 2, 2)


def test_advice_idles_less_than_fixed_timeouts_at_equal_waits() -> None:
    """Think times of half a minute with pauses of an hour: a quarter less, where a wait is worth five minutes."""
    gaps = made_gaps("chat", 100)
    fixed = [fixed_timeout(gaps, each) for each in (60.0, 300.0, 900.0, 1800.0)]
    cost = advised(gaps, 300.0)

    assert cost.idle <= 0.9 * idle_at_equal_waits(fixed, cost.waits)


def test_timer_is_woken_ahead_and_stays_awake_for_its_request() -> None:
    """A request every ten minutes: nearly none waits, for a tenth of the idle time of the timeout that spares it."""
    gaps = made_gaps("agent", 60)
    ahead, kept = advised(gaps, 300.0, prewake=True), fixed_timeout(gaps, 900.0)

    assert ahead.waits <= 0.02 * ahead.gaps
    assert ahead.idle <= 0.15 * kept.idle
    assert advised(gaps, 300.0).waits == ahead.gaps, "without waking ahead each of them waits"


def test_gaps_are_learned_when_they_end() -> None:
    """Of gaps that all begin at once none is known while the others are decided on: the timeout is all there is."""
    cost = advised([(float(number) / 1e3, f"s{number}", 5000.0) for number in range(300)], 300.0, timeout=900.0)

    assert cost.idle == cost.gaps * 900.0


def test_gaps_are_read_from_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Requests of sessions in any order of sessions become gaps; what is wrong is named with its line."""
    file = tmp_path / "requests.csv"
    file.write_text("session,at\na,0\nb,5\na,30\na,30.2\nb,65\n")
    assert read_gaps(file) == [(0.0, "a", 30.0), (5.0, "b", 60.0)]

    for wrong in ("soon", "nan", "inf", ""):
        file.write_text(f"session,at\na,{wrong}\n")
        with pytest.raises(BadRequestError, match=r"requests\.csv:2: expected session,at"):
            read_gaps(file)
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    assert cli.run(parser.parse_args(["--gaps", "made:nothing"])) == 2
    assert "there are chat, office, agent, mixed" in capsys.readouterr().err


def test_frontier_has_every_policy() -> None:
    """Four timeouts, then five prices of a wait, without and with waking ahead."""
    costs = frontier(made_gaps("mixed", 12))

    assert [each.policy for each in costs[:2]] == ["1 min", "5 min"]
    assert len(costs) == 14

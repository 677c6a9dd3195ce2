"""Compares a recorded run of a gateway with the laboratory's results for the same claims.

There are three results for the claims at the times when they really were sent:

* **measured**: the gateway and its sandboxes;
* **same targets**: the laboratory's pool with the targets that the gateway ordered, so that only the pool differs;
* **laboratory**: the loop in virtual time (replay/live.py), which gets the claims and the lead times.

Terms: a *miss* is a claim that finds no ready sandbox (`x-wakegate-start: cold`). *Idle* are the sandbox-seconds of
ready sandboxes, and of starts for which no claim was waiting in the end. *Orders* are starts. *Wait* is the mean time
from a claim to its sandbox (`claim` in Server-Timing) over all claims, including hits.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.replay.leads import RecordedLeads
from gateway.autoscaler.replay.live import LiveLoop
from gateway.autoscaler.replay.pool import Control, Outcome, Targets, simulate
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.core.model import PoolMode, PoolSpec
from loadtest.recording import Recording

TOLERANCE = 0.2
_MAX_TRAVEL_S = 0.03  # from the client's sending a request to the gateway's claim for it
_MISSES = ("cold", "wake-cold")
_NAMES = ("misses", "idle, sandbox-seconds", "orders", "mean wait, ms")


@dataclass(frozen=True)
class Account:
    """The totals of a run, without its warm-up."""

    misses: float
    idle: float  # sandbox-seconds
    orders: float
    wait: float  # seconds, mean


def measured(run: Recording) -> Account:
    """The totals of what the gateway did."""
    claims = [each for each in run.claims if each[0] >= run.warm_up]
    times = np.array([each[0] for each in run.pool] + [run.seconds])
    ready = np.array([each[2] for each in run.pool], dtype=np.float64)
    held = np.diff(np.clip(times, run.warm_up, run.seconds))  # each sample is valid until the next one
    unwanted = sum(lead for ordered, lead, wanted in run.starts if not wanted and run.warm_up < ordered + lead)
    return Account(
        sum(start in _MISSES for _, start, _, _ in claims),
        float(ready @ held) + unwanted,
        sum(run.warm_up <= ordered < run.seconds for ordered, _, _ in run.starts),
        float(np.mean([wait for _, _, wait, _ in claims])),
    )


def _account(outcome: Outcome) -> Account:
    return Account(
        outcome.claims - outcome.hits,
        outcome.idle,
        outcome.orders,
        float(outcome.waits.sum()) / max(outcome.claims, 1),
    )


def leads_of(run: Recording) -> RecordedLeads:
    """The lead times of the run's starts."""
    return RecordedLeads(np.array([each[0] for each in run.starts]), np.array([each[1] for each in run.starts]))


def simulated(run: Recording, targets: Targets | Control, late: Floats | float = 0.0) -> Account:
    """The totals of the laboratory's pool for the claims, each `late` by so many seconds, with the run's lead times."""
    leads = leads_of(run)
    sent: Floats = np.sort(np.array([each[0] for each in run.claims]) + late)
    lead = leads.median(run.warm_up)
    return _account(
        simulate(sent, targets, lead=lead, scored_from=run.warm_up, end=run.seconds, joins=run.joins, leads=leads)
    )


def ordered_targets(run: Recording) -> Targets:
    """The targets that the gateway ordered; before the first one the pool has its initial size."""
    # A minute before the start, so that the initial pool is ready at time 0 whatever the lead times.
    times, levels = [-60.0, *(at for at, _, _ in run.orders)], [run.size, *(target for _, target, _ in run.orders)]
    return Targets(np.array(times), np.array(levels, dtype=np.float64))


def loop(run: Recording, phase: float = 0.0) -> LiveLoop:
    """The laboratory's gateway. `phase`: the offset of its ticks, as a fraction of a tick."""
    spec = PoolSpec(size=run.size, min=0, max=run.max, target_miss_rate=run.miss_rate, mode=PoolMode(run.mode))
    settings = AutoscalerSettings(tick=run.tick, joins=run.joins)
    # The first look lies shortly before time 0, at which the gateway was ready; `phase` moves it by a fraction of a
    # tick.
    return LiveLoop(spec, settings, None, begins=-(0.5 + phase) * run.tick - 0.3)


def laboratory(run: Recording, times: int = 40) -> tuple[Account, Account, Account]:
    """Mean, least and most of the laboratory's totals, with ticks and claims some milliseconds earlier or later.

    A pool's rule is chosen once a minute among rules that did about equally well so far, so it can depend on whether a
    tick came before or after a claim, and the gateway's exact ticks are unknown. A run is one sample of many, as a
    single replay would be.
    """
    rng = np.random.default_rng(1)
    found = np.array(
        [
            astuple(simulated(run, loop(run, i / times), rng.random(len(run.claims)) * _MAX_TRAVEL_S))
            for i in range(times)
        ]
    )
    return Account(*found.mean(axis=0)), Account(*found.min(axis=0)), Account(*found.max(axis=0))


def report(run: Recording) -> bool:
    """Print the totals. Returns whether laboratory and gateway agree and no request failed."""
    seen, same = measured(run), simulated(run, ordered_targets(run))
    lab, least, most = laboratory(run)
    leads = [lead for ordered, lead, _ in run.starts if ordered >= run.warm_up]
    claims = sum(sent >= run.warm_up for sent, _, _, _ in run.claims)
    p50, p90, p99 = (float(np.quantile(leads, q)) for q in (0.5, 0.9, 0.99))
    aim = f"pool of {run.size}" if run.mode == "fixed" else f"targetMissRate {run.miss_rate:g}"
    rate = seen.misses / max(claims, 1)
    # The 95 % interval of a binomial count: of 300 claims at 20 % misses, 60 +- 14.
    off = 1.96 * math.sqrt(rate * (1.0 - rate) * claims)
    print(f"{run.name}, {run.compress:g} times as fast, {run.mode} ({aim}), tick {run.tick:g} s")
    errors = ", ".join(f"{n} x {error}" for error, n in run.errors.items()) or "none"
    print(f"{claims} claims in {run.seconds - run.warm_up:g} s after {run.warm_up:g} s of warm-up; errors: {errors}")
    print(f"lead times of {len(leads)} starts, s: p50 {p50:.2f}, p90 {p90:.2f}, p99 {p99:.2f}")
    print(f"misses: {rate:.1%}; {seen.misses:.0f} may differ by {off:.0f} by chance (95 %)")
    print(f"{'':24}{'measured':>9}{'same targets':>14}{'laboratory':>12}{'least..most':>15}{'ratio':>7}  within 20 %")
    agree = True
    for name, field in zip(
        ("misses", "idle, sandbox-seconds", "orders", "mean wait, ms"), fields(Account), strict=True
    ):
        unit = 1e3 if field.name == "wait" else 1.0
        values = [unit * float(getattr(account, field.name)) for account in (seen, same, lab, least, most)]
        ratio = values[2] / values[0] if values[0] else (1.0 if not values[2] else math.inf)
        good = abs(ratio - 1.0) <= TOLERANCE
        agree &= good
        between = f"{values[3]:.0f}..{values[4]:.0f}"
        print(
            f"{name:24}{values[0]:9.0f}{values[1]:14.0f}{values[2]:12.0f}{between:>15}{ratio:7.2f}"
            f"  {'yes' if good else 'no'}"
        )
    print()
    return agree and not run.errors

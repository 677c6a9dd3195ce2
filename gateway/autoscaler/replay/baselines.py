"""What the field does, as policies over the same traces. Each is swept over its one knob to draw its frontier.

None sees the future except `known-rates`, `known-changes` and `oracle`. All are computed on whole arrays, since none
depends on the pool but `hpa`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gateway.autoscaler.forecast import Floats
from gateway.autoscaler.rates import RATES, erlang_values
from gateway.autoscaler.replay.pool import Targets
from gateway.autoscaler.replay.trace import Trace

Policy = Callable[[Trace, float, float], Targets]  # trace, lead time, knob


def fixed(trace: Trace, lead: float, size: float) -> Targets:
    """AgentCube's warmPoolSize and agent-sandbox's SandboxWarmPool replicas: a constant."""
    return Targets(np.array([trace.start]), np.array([size]))


def _counts_before(trace: Trace, at: Floats, span: float) -> Floats:
    """Arrivals in the `span` seconds before each time."""
    found = np.searchsorted(trace.arrivals, at) - np.searchsorted(trace.arrivals, at - span)
    return found.astype(np.float64)


def _falling_max(values: Floats, steps: int) -> Floats:
    """The maximum of the last `steps` values: a scale-down stabilisation window."""
    padded = np.concatenate((np.full(steps - 1, values[0]), values))
    out: Floats = np.lib.stride_tricks.sliding_window_view(padded, steps).max(axis=1)
    return out


def keda(trace: Trace, lead: float, headroom: float) -> Targets:
    """KEDA on a rate metric: ceil(rate over 1 min x lead x headroom), polled each 15 s, cooldown 300 s."""
    at = np.arange(trace.start, trace.end, 15.0)
    wanted = np.ceil(_counts_before(trace, at, 60.0) / 60.0 * lead * headroom)
    # 300 s of cooldown at polls of 15 s are 20 steps back, and the present one.
    return Targets(at, _falling_max(wanted, 21))


def kpa(trace: Trace, lead: float, headroom: float) -> Targets:
    """Knative's KPA: mean demand of a 60 s window, or of the 6 s panic window when that is twice as much.

    In panic it never goes down for 60 s. Ticks of 2 s; demand is claims per lead time.
    """
    at = np.arange(trace.start, trace.end, 2.0)
    stable = _counts_before(trace, at, 60.0) / 60.0 * lead * headroom
    burst = _counts_before(trace, at, 6.0) / 6.0 * lead * headroom
    # Twice the stable demand, and at least 2: Knative's panic threshold of 200 %, against pools of less than one
    # sandbox.
    panic = np.where(burst >= 2.0 * np.maximum(stable, 1.0), burst, 0.0)
    return Targets(at, np.ceil(np.maximum(stable, _falling_max(panic, 30))))


def hpa(trace: Trace, lead: float, utilisation: float) -> Targets:
    """Kubernetes' HPA on the share of the pool in use: ceil(size x used / wanted), each 15 s, 300 s down-stabilised.

    Used are the claims of the last lead time, which is what a refilling pool has missing.
    """
    at = np.arange(trace.start, trace.end, 15.0)
    used = _counts_before(trace, at, lead)
    size, window, out = 1.0, np.ones(20), np.empty(len(at))
    for i, u in enumerate(used.tolist()):
        share = min(u / size, 1.0) / utilisation
        # The controller's defaults: a tolerance of 10 %, and upwards at most the double or 4 pods more, whichever is
        # larger, in 15 s. Downwards the highest of the last 300 s holds: 20 polls.
        wanted = max(np.ceil(size * share - 1e-9), 1.0) if abs(share - 1.0) > 0.1 else size
        window[i % 20] = wanted
        size = float(min(max(window.max(), 1.0), max(2.0 * size, size + 4.0)))
        out[i] = size
    return Targets(at, out)


def histogram(trace: Trace, lead: float, q: float) -> Targets:
    """Serverless in the Wild, on pools: the q quantile of lead-time counts over the last hour, each minute."""
    at = np.arange(trace.start, trace.end, 60.0)
    samples = _counts_before(trace, np.arange(trace.start, trace.end, lead), lead)
    per_minute = max(int(60.0 / lead), 1)
    hour = 60 * per_minute
    padded = np.concatenate((np.full(hour, samples[0]), samples))
    windows = np.lib.stride_tricks.sliding_window_view(padded, hour)[::per_minute][: len(at)]
    # In parts of 2,000 windows, since np.quantile copies them: at 360 counts (an hour at a lead time of 10 s) 6 MB
    # each.
    levels = np.concatenate(
        [np.quantile(part, q, axis=1, method="higher") for part in np.array_split(windows, len(windows) // 2000 + 1)]
    )
    return Targets(at[: len(levels)], levels)


def seasonal_naive(trace: Trace, lead: float, headroom: float) -> Targets:
    """The most that the same quarter hour needed on the last 7 days, scaled; on the first day, the most so far."""
    at = np.arange(trace.start, trace.end, 60.0)
    peaks = _counts_before(trace, at, 900.0) / 900.0 * lead
    levels = np.maximum.accumulate(peaks)
    for day in range(1, 8):
        shift = day * 1440 - 15  # the quarter hour that begins now, a day ago
        if shift >= len(at):
            break
        past = peaks[: len(at) - shift]
        levels[shift:] = past if day == 1 else np.maximum(levels[shift:], past)
    return Targets(at, np.ceil(levels * headroom))


def oracle(trace: Trace, lead: float, _: float) -> Targets:
    """Knows every arrival: one sandbox is ordered a lead time ahead of each. No real policy can do better."""
    # A millisecond on either side, so that a sandbox is there before its claim, and its place is gone after it.
    ordered, gone = trace.arrivals - lead - 1e-3, trace.arrivals + 1e-3
    at = np.concatenate((ordered, gone))
    step = np.concatenate((np.ones(len(ordered)), -np.ones(len(gone))))
    order = np.argsort(at, kind="stable")
    return Targets(at[order], step[order].cumsum())


def known_rates(trace: Trace, lead: float, cold_start_cost: float) -> Targets:
    """Knows the rate of each bin ahead of time, but not the arrivals within: the lower bound of any forecast of rates.

    The level of a bin is the best by Erlang's formula when a cold start costs that many idle sandbox-seconds.
    """
    width = trace.bin_width
    edges = np.arange(trace.start, trace.end + width, width)
    rates = np.histogram(trace.arrivals, edges)[0] / width
    unique, which = np.unique(rates, return_inverse=True)
    load, blocked = unique * lead, np.ones(len(unique))
    levels, searching, n = np.zeros(len(unique)), np.ones(len(unique), dtype=bool), 0
    while searching.any():
        n += 1
        after = load * blocked / (n + load * blocked)
        # Sandbox n is worth holding while the claims that it saves per second, each worth the cost of a cold start and
        # the lead time for which its sandbox is not idle, exceed the one sandbox-second that it costs per second.
        searching &= unique * (blocked - after) * (cold_start_cost + lead) > 1.0
        levels[searching] = n
        blocked = after
    return Targets(edges[:-1] - lead, levels[which])


def known_changes(trace: Trace, lead: float, cold_start_cost: float) -> Targets:
    """Knows when the rate changes (at each bin of the trace) and which rates there are in all of it, but has to learn
    from the claims which of them it is now, without a look at earlier bins: a yardstick for all who react to claims.

    Bayes' rule over RATES, from the bin's beginning, with what the whole trace's rates are in hindsight as the prior.
    The level is the best by Erlang's formula when a cold start costs that many idle sandbox-seconds.
    """
    # 300 looks per bin, but none more often than the live loop's tick of a second.
    width, step = trace.bin_width, max(trace.bin_width / 300.0, 1.0)
    bins, ticks = math.ceil(trace.span / width), math.ceil(width / step)
    counts = np.histogram(trace.arrivals, trace.start + np.arange(bins + 1) * width)[0]
    prior = np.zeros(len(RATES))
    for count, often in zip(*np.unique(counts, return_counts=True), strict=True):
        # The rates that such a count speaks for: a gamma distribution's density.
        logs = (count + 0.5) * np.log(RATES) - RATES * width
        likely = np.exp(logs - logs.max())
        prior += often * likely / likely.sum()
    at = trace.start + (np.arange(bins)[:, None] * width + np.arange(ticks) * step).ravel()
    seen = np.searchsorted(trace.arrivals, at)
    seen -= np.repeat(seen[::ticks], ticks)
    size = int(trace.arrivals.size and 4.0 * counts.max() / width * lead + 32)
    worth = erlang_values(lead, size)
    levels = np.zeros(len(at))
    for tick in range(ticks):
        found, which = np.unique(seen[tick::ticks], return_inverse=True)
        logs = np.log(prior + 1e-300) + found[:, None] * np.log(RATES) - RATES * (tick * step)
        belief = np.exp(logs - logs.max(axis=1, keepdims=True))
        saved = (belief / belief.sum(axis=1, keepdims=True)) @ worth
        levels[tick::ticks] = np.count_nonzero(saved * (cold_start_cost + lead) > lead, axis=1)[which]
    return Targets(at, levels)


COSTS = (50.0, 150.0, 400.0, 1000.0, 2000.0, 5000.0, 20000.0)  # of a cold start, idle sandbox-seconds
KNOBS: dict[str, tuple[Policy, tuple[float, ...]]] = {
    "keda": (keda, (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
    "kpa": (kpa, (1.0, 2.0, 4.0, 8.0, 16.0)),
    "hpa": (hpa, (0.9, 0.7, 0.5, 0.3, 0.2)),
    "histogram": (histogram, (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)),
    "seasonal-naive": (seasonal_naive, (1.0, 2.0, 4.0, 8.0, 16.0)),
    "known-rates": (known_rates, COSTS),
    "known-changes": (known_changes, COSTS),
}

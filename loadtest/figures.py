"""Statistics of samples, the same for all benchmarks."""

from __future__ import annotations


def quantile(values: list[float], q: float) -> float:
    """The q-quantile by nearest rank; `values` need not be sorted."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]

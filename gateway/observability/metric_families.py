"""Families of prometheus_client made of our counters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from gateway.observability.counters import Calls, Histogram
from gateway.observability.metric_sources import TaskLoad


class Families:
    """The part of a CollectorRegistry that prometheus_client's encoders use."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families of one scrape."""
        return self._families


def gauges(name: str, text: str, values: Mapping[str, float]) -> Metric:
    """A gauge family with one sample per runtime."""
    family = GaugeMetricFamily(name, text, labels=["runtime"])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def resources(name: str, text: str, values: Mapping[str, float]) -> Metric:
    """A gauge family with one sample per resource: cpu in cores, memory in bytes, gpu."""
    family = GaugeMetricFamily(name, text, labels=["resource"])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def counts(name: str, text: str, labels: list[str], values: Mapping[Any, int]) -> Metric:
    """A counter family; keys are label values, several as a tuple."""
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in sorted(values.items()):
        family.add_metric([key] if isinstance(key, str) else list(key), count)
    return family


def task_families(tasks: TaskLoad) -> Iterator[Metric]:
    """Background invocations of agents."""
    family = GaugeMetricFamily("wakegate_tasks", "Tasks that are not over", labels=["runtime", "state"])
    for key, waiting in tasks.waiting.items():
        family.add_metric([key, "queued"], waiting.queued)
        family.add_metric([key, "running"], waiting.running)
    yield family
    ages = {key: waiting.oldest for key, waiting in tasks.waiting.items()}
    yield gauges("wakegate_task_oldest_seconds", "Age of the oldest task that is not over", ages)
    ages = {key: waiting.oldest_queued for key, waiting in tasks.waiting.items()}
    yield gauges("wakegate_task_oldest_queued_seconds", "Age of the oldest task that waits; 0: none does", ages)
    yield counts("wakegate_task_tries", "Tries of tasks that were begun", ["runtime"], tasks.tries)
    yield counts("wakegate_tasks_ended", "Tasks that ended", ["runtime", "state"], tasks.tasks)
    yield counts("wakegate_task_webhooks", "Webhooks of tasks", ["outcome"], tasks.webhooks)


def call_families(part: str, text: str, calls: Calls) -> Iterator[Metric]:
    """Durations and errors of the calls to one part."""
    durations = histograms(f"wakegate_{part}_duration_seconds", text, ["operation"])
    for operation, histogram in sorted(calls.durations.items()):
        add_histogram(durations, [operation], histogram)
    yield durations
    yield counts(f"wakegate_{part}_errors", f"{text}: those that failed", ["operation", "error"], calls.errors)


def histograms(name: str, text: str, labels: list[str]) -> HistogramMetricFamily:
    """A histogram family without samples; `add_histogram` adds them."""
    return HistogramMetricFamily(name, text, labels=labels)


def add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    """Add one of our histograms to a family."""
    buckets: list[tuple[str, float]] = []
    seen = 0  # Prometheus' buckets are cumulative, Histogram's are not
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound is None else f"{bound:g}", seen))
    family.add_metric(labels, buckets, histogram.sum)

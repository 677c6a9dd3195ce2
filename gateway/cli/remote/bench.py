"""bench: how long this gateway takes for what sessions do, as seen from here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import over_api
from gateway.cli.remote.progress import counting
from gateway.cli.remote.screen import Format, Output, print_document, print_table
from wakegate_client import APIError, Client

MOST_SESSIONS = 1000
_MARK = {"wakegate-bench": "1"}  # so that sessions of a bench that was killed can be told: ls --metadata


@over_api
def bench(
    gateway: Client,
    sessions: Annotated[int, typer.Option(min=1, max=MOST_SESSIONS, help="How many are made and ended.")] = 20,
    at_once: Annotated[int, typer.Option(min=1, max=64, help="How many of them at a time.")] = 4,
    requests: Annotated[int, typer.Option(min=1, max=1000, help="Commands in each session.")] = 10,
    runtime: Annotated[str, typer.Option(help="NAMESPACE/NAME; the built-in or the only one if absent.")] = "",
    sleep: Annotated[bool, typer.Option("--sleep/--no-sleep", help="Hibernate and wake each once.")] = True,
    output: Output = Format.TABLE,
) -> None:
    """Make sessions, run commands in them, put them to sleep and wake them, and print how long each step took.

    Sessions of the bench are real: they count in limits, and use warm sandboxes that others then wait for.

    \b
    wakegate bench --sessions 100 --at-once 10
    """
    steps = Steps()

    def use(_: int) -> None:
        with steps.timed("create"):
            created = gateway.create_session(runtime or None, metadata=_MARK)
        session = str(created["id"])
        try:
            for number in range(requests):
                with steps.timed("first command" if number == 0 else "command"):
                    gateway.execute(session, ["true"])
            if sleep:
                with steps.timed("hibernate"):
                    gateway.hibernate(session)
                with steps.timed("wake and command"):
                    gateway.execute(session, ["true"])
        finally:
            with steps.timed("end"):
                gateway.end_session(session)
            advance(1)

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool, counting("sessions", sessions) as advance:
        errors = [error for error in pool.map(_caught(use), range(sessions)) if error is not None]
    rows = steps.rows()
    if output is Format.TABLE:
        print_table(rows, COLUMNS)
        typer.echo(f"{sessions} sessions in {time.perf_counter() - began:.1f} s, {len(errors)} of them failed")
    else:
        print_document({"steps": rows, "failed": len(errors)}, output)
    if errors:
        raise errors[0]


class Steps:
    """The times of each step, in seconds."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long the block took, if it succeeds."""
        began = time.perf_counter()
        # No `finally`: a refusal is answered faster than the step takes, and would make the figures look better.
        yield
        self._times.setdefault(step, []).append(time.perf_counter() - began)

    def rows(self) -> list[dict[str, Any]]:
        """One per step, in the order in which they first happened; milliseconds."""
        rows: list[dict[str, Any]] = []
        for step, times in self._times.items():
            # Inclusive: the other method puts the p99 of 20 times beyond the slowest of them.
            cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
            shown = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(times)}
            rows.append({"step": step, "count": len(times)} | {name: round(s * 1e3, 2) for name, s in shown.items()})
        return rows


COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "STEP": lambda row: row["step"],
    "COUNT": lambda row: row["count"],
    "P50 MS": lambda row: row["p50"],
    "P95 MS": lambda row: row["p95"],
    "P99 MS": lambda row: row["p99"],
    "MAX MS": lambda row: row["max"],
}


def _caught(work: Callable[[int], None]) -> Callable[[int], APIError | None]:
    """The refusal in place of an exception, so that the other sessions go on."""

    def run(number: int) -> APIError | None:
        try:
            work(number)
        except APIError as error:
            return error
        return None

    return run

"""top: what a gateway does now, as a table that renews itself."""

from __future__ import annotations

import heapq
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import complete_session, over_api
from gateway.cli.remote.screen import plain, print_plain_table, table_of
from wakegate_client import APIError, Client
from wakegate_client.calls import session_metrics

_LATELY = 10  # sessions whose use is shown
_SAMPLE = re.compile(r"(wakegate_[a-z_]+|process_[a-z_]+)(?:\{([^}]*)\})? ([0-9.e+-]+)")
_LABEL = re.compile(r'(?<![a-z])([a-z]+)="([^"]*)"')
_COLUMNS = {
    name: (lambda row, name=name: row[name])
    for name in ("RUNTIME", "TARGET", "READY", "STARTING", "CLAIMED", "WARM", "COLD", "MISSES", "FAILURES")
}


@over_api
def top(
    gateway: Client,
    sessions: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", autocompletion=complete_session, show_default=False)
    ] = None,
    interval: Annotated[float, typer.Option(min=0.5, metavar="SECONDS", help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
) -> None:
    """Watch sessions, sandboxes, warm pools and the queue of a gateway. Needs a key that may read metrics.

    On a terminal also what the ten sessions use that were used last. With ids, what these use: CPU since the start of
    their sandboxes, memory, processes, disk, requests.

    \b
    wakegate top
    wakegate top ID ID --once
    """
    if sessions:
        _watch_sessions(gateway, sessions, interval, once=once or not sys.stdout.isatty())
        return
    before = _look(gateway)
    if once or not sys.stdout.isatty():
        print(_summary(before, None))
        print_plain_table(_pools(before), _COLUMNS)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, screen=True) as live:
        last: dict[str, Any] | None = None
        while True:
            tables = [table_of(_pools(before), _COLUMNS)]
            if lately := _metrics(gateway, before["lately"]):
                tables += ["", table_of(lately, _OF_LATELY)]
            live.update(Group(Text(_summary(before, last)), "", *tables), refresh=True)
            time.sleep(interval)
            last, before = before, _look(gateway)


def _watch_sessions(gateway: Client, sessions: Sequence[str], interval: float, *, once: bool) -> None:
    def rows() -> list[dict[str, Any]]:
        return [gateway.send(session_metrics(each)) for each in sessions]

    if once:
        print_plain_table(rows(), _OF_SESSIONS)
        return
    from rich.live import Live

    with Live(table_of(rows(), _OF_SESSIONS), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            live.update(table_of(rows(), _OF_SESSIONS), refresh=True)


def _metrics(gateway: Client, sessions: Sequence[str]) -> list[dict[str, Any]]:
    """Of those that have not ended since they were listed."""
    found = []
    for each in sessions:
        with suppress(APIError):
            found.append(gateway.send(session_metrics(each)))
    return found


def _used(field: str, limit: str, show: Callable[[float], str]) -> Callable[[Mapping[str, Any]], str]:
    """A cell: what is used now, of its limit; empty for what is asleep or not known."""

    def cell(row: Mapping[str, Any]) -> str:
        sandbox = row["sandbox"] or {}
        if sandbox.get(field) is None:
            return ""
        used = show(sandbox[field])
        if sandbox.get(limit) is None:
            return used
        return f"{used.removesuffix(' MiB')} of {show(sandbox[limit])}"  # the unit once

    return cell


def _mib(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"


_OF_SESSIONS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "ID": lambda row: row["session"],
    "STATE": lambda row: row["state"],
    "CPU": _used("cpuSeconds", "", lambda seconds: f"{seconds:.1f} s"),
    "MEMORY": _used("memoryBytes", "memoryLimit", _mib),
    "PROCESSES": _used("processes", "processesLimit", lambda count: f"{count:.0f}"),
    "DISK": _used("diskBytes", "diskLimit", _mib),
    "REQUESTS": lambda row: row["requests"],
    "STARTS": lambda row: " ".join(f"{kind}={count}" for kind, count in row["starts"].items() if count),
}


# Of those that are active, in a line of 100 characters.
_OF_LATELY = {title: cell for title, cell in _OF_SESSIONS.items() if title not in ("STATE", "STARTS")}


def _look(gateway: Client) -> dict[str, Any]:
    """Metrics, runtimes, and sessions by state."""
    samples: dict[str, float] = {}
    by_runtime: dict[tuple[str, str, str], float] = {}
    try:
        with gateway.stream("GET", "/metrics") as response:
            for line in response.iter_lines():
                if (found := _SAMPLE.match(line)) is not None:
                    name, labels, value = found[1], found[2] or "", float(found[3])
                    samples[name] = samples.get(name, 0.0) + value
                    if name in ("wakegate_claims_total", "wakegate_pool_misses_total"):
                        pairs = dict(_LABEL.findall(labels))
                        by_runtime[name, pairs.get("runtime", ""), pairs.get("start", "")] = value
    except APIError as error:
        # A member's key may not read metrics, and is shown its sessions and the pools all the same.
        if error.status != 403:
            raise
    sessions = [(each["state"], each["lastActiveAt"], each["id"]) for each in gateway.list_sessions(limit=1000)]
    states = Counter(state for state, _, _ in sessions)
    # Ten: each is a request of its own at each look.
    lately = heapq.nlargest(_LATELY, ((used, name) for state, used, name in sessions if state == "active"))
    return {"at": time.monotonic(), "samples": samples, "by_runtime": by_runtime, "states": states,
            "lately": [name for _, name in lately],
            "runtimes": gateway.runtimes()}  # fmt: skip


def _summary(look: Mapping[str, Any], last: Mapping[str, Any] | None) -> str:
    samples = look["samples"]
    states = ", ".join(f"{count} {plain(state)}" for state, count in sorted(look["states"].items()))
    warm = sum(each["pool"]["ready"] for each in look["runtimes"])
    flight, held = (samples.get(f"wakegate_requests_{name}", 0) for name in ("in_flight", "held"))
    lines = [
        f"sessions   {states or 'none'}",
        f"sandboxes  {samples.get('wakegate_sandboxes_bound', 0):.0f} in use, {warm} warm",
        f"requests   {flight:.0f} in flight, {held:.0f} wait for a sandbox",
    ]
    if last is not None:
        # Rates are between two looks, so the first has none: since the start they would hide what happens now.
        seconds = max(look["at"] - last["at"], 1e-3)

        def rate(name: str) -> float:
            return float((samples.get(name, 0.0) - last["samples"].get(name, 0.0)) / seconds)

        lines.append(
            f"gateway    {rate('wakegate_request_duration_seconds_count'):.1f} requests/s,"
            f" {100 * rate('process_cpu_seconds_total'):.0f} % of a core,"
            f" {samples.get('process_resident_memory_bytes', 0) / 2**20:.0f} MiB"
        )
    return "\n".join(lines)


def _pools(look: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for each in look["runtimes"]:
        key = f"{each['namespace']}/{each['name']}"
        counts = {
            (name, start): value
            for (name, runtime, start), value in look["by_runtime"].items()
            if runtime.endswith("/" + key)  # metrics have KIND/NAMESPACE/NAME, the list of runtimes has no such name
        }
        pool = each["pool"]
        rows.append({
            "RUNTIME": key, "TARGET": pool["target"], "READY": pool["ready"], "STARTING": pool["starting"],
            "CLAIMED": pool["claimed"], "FAILURES": pool["failures"],
            "WARM": f"{counts.get(('wakegate_claims_total', 'warm'), 0):.0f}",
            "COLD": f"{counts.get(('wakegate_claims_total', 'cold'), 0):.0f}",
            "MISSES": f"{counts.get(('wakegate_pool_misses_total', ''), 0):.0f}",
        })  # fmt: skip
    return rows

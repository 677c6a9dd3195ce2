"""pools: the warm pools, and `pools explain` why each has its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import complete_runtime, over_api
from gateway.cli.remote.screen import Format, Output, age, plain, show
from wakegate_client import APIError, Client

app = typer.Typer(invoke_without_command=True)
# `pool` and `demand` are null until the pool has been looked at, which is in the first second of a gateway's life, and
# later where a runtime has just been added.
_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "RUNTIME": lambda each: each["runtime"],
    "MODE": lambda each: each["mode"],
    "TARGET": lambda each: each["target"],
    "READY": lambda each: (each["pool"] or {}).get("ready"),
    "STARTING": lambda each: (each["pool"] or {}).get("starting"),
    "EXPECTED CLAIMS": lambda each: (each["demand"] or {}).get("expectedClaims"),
    "WHY": lambda each: each["why"],
}


# `invocation`: --context is a flag of every command, so that name is taken.
@app.callback()
@over_api
def pools(gateway: Client, invocation: typer.Context, output: Output = Format.TABLE) -> None:
    """Warm pools with their sizes, and why.

    \b
    wakegate pools
    wakegate pools explain my-interpreter
    """
    if invocation.invoked_subcommand is None:
        show(gateway.autoscaler()["pools"], _COLUMNS, output, name="runtime")


@app.command("ls")
@over_api
def ls(gateway: Client, output: Output = Format.TABLE) -> None:
    """List warm pools and their sizes."""
    show(gateway.autoscaler()["pools"], _COLUMNS, output, name="runtime")


@app.command()
@over_api
def explain(
    gateway: Client,
    runtime: Annotated[
        str, typer.Argument(metavar="RUNTIME", help="NAME, or NAMESPACE/NAME.", autocompletion=complete_runtime)
    ],
    output: Output = Format.TABLE,
) -> None:
    """Say why a pool has its size: the forecast, the rule, the recent changes."""
    # A key is KIND/NAMESPACE/NAME, of which each end behind a slash will do, of an agent's revision without its @3 too;
    # the first of several, as kinds may share a name.
    found = [
        each
        for each in gateway.autoscaler()["pools"]
        if f"/{each['runtime']}".endswith(f"/{runtime}")
        or f"/{each['runtime'].partition('@')[0]}".endswith(f"/{runtime}")
    ]
    if not found:
        raise APIError(404, "", f"no runtime {runtime} has a pool; `wakegate pools` lists them")
    if output is not Format.TABLE:
        show(found[:1], _COLUMNS, output, name="runtime", one=True)
        return
    for row in _facts(found[0]):
        print(f"{row['name']:<10} {plain(row['value'])}")
    for change in found[0]["changes"][:5]:  # the newest come first
        at = datetime.fromtimestamp(change["at"], UTC).isoformat()
        print(f"{'changed':<10} {age(at)} ago from {change['from']} to {change['to']}: {plain(change['why'])}")


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} s"


def _facts(pool: Mapping[str, Any]) -> list[dict[str, Any]]:
    demand, lead, size = pool["demand"], pool["leadTime"], pool["pool"]
    facts = {
        "runtime": pool["runtime"],
        "why": pool["why"],
        "target": f"{pool['target']} (from {pool['min']} to {pool['max']}, {pool['mode']})",
        "now": size and f"{size['ready']} ready, {size['starting']} starting, {size['claimed']} in use",
        "forecast": demand
        and f"{demand['expectedClaims']:.2f} claims in the next {demand['horizon']:.1f} s,"
        f" {demand['recentClaims']} came lately",
        "misses": demand and f"{demand['expectedMissesPerHour']:.1f} an hour expected",
        "lead time": f"{_seconds(lead['planned'])} planned; measured p50 {_seconds(lead['p50'])},"
        f" p90 {_seconds(lead['p90'])}",
        "rule": f"{pool['rule']}, {pool['stocking']}",
        "error": pool["error"] or (size and size["lastError"]),
    }
    return [{"name": name, "value": value} for name, value in facts.items() if value]

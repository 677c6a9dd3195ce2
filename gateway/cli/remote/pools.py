"""pools: the warm pools, and `pools explain` why each has its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import Format, Output, print_document, show
from wakegate_client import APIError, Client

app = typer.Typer(invoke_without_command=True)
_COLUMNS = {
    "RUNTIME": lambda each: each["runtime"],
    "MODE": lambda each: each["mode"],
    "TARGET": lambda each: each["target"],
    "READY": lambda each: each["pool"]["ready"],
    "STARTING": lambda each: each["pool"]["starting"],
    "EXPECTED CLAIMS": lambda each: each["demand"].get("expectedClaims"),
    "WHY": lambda each: each["why"],
}


@app.callback()
def pools(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Warm pools with their sizes, and why.

    \b
    wakegate pools
    wakegate pools explain my-interpreter
    """
    if context.invoked_subcommand is None:
        _list(output=output)


def _list(*, output: Format) -> None:
    @over_api
    def listed(gateway: Client) -> None:
        show(gateway.autoscaler()["pools"], _COLUMNS, output, name="runtime")

    listed(url="", api_key="", context="", ca="")


@app.command("ls")
@over_api
def ls(gateway: Client, output: Output = Format.TABLE) -> None:
    """List the pools."""
    show(gateway.autoscaler()["pools"], _COLUMNS, output, name="runtime")


@app.command()
@over_api
def explain(
    gateway: Client,
    runtime: Annotated[str, typer.Argument(metavar="RUNTIME", help="NAME, or NAMESPACE/NAME.")],
    output: Output = Format.TABLE,
) -> None:
    """Say why a pool has its size: the forecast, the rule, the recent changes."""
    found = [each for each in gateway.autoscaler()["pools"] if f"/{each['runtime']}".endswith(f"/{runtime}")]
    if not found:
        raise APIError(404, "", f"no runtime {runtime} has a pool; `wakegate pools` lists them")
    if output is not Format.TABLE:
        print_document(found[0], output)
        return
    show(_facts(found[0]), {"": lambda row: row["name"], " ": lambda row: row["value"]}, Format.TABLE)


def _facts(pool: Mapping[str, Any]) -> list[dict[str, Any]]:
    demand, lead = pool["demand"], pool["leadTime"]
    facts = {
        "runtime": pool["runtime"],
        "why": pool["why"],
        "target": f"{pool['target']} (from {pool['min']} to {pool['max']}, {pool['mode']})",
        "now": f"{pool['pool']['ready']} ready, {pool['pool']['starting']} starting, {pool['pool']['claimed']} in use",
        "forecast": f"{demand.get('expectedClaims')} claims in the next {demand.get('horizon')} s,"
        f" {demand.get('recentClaims')} came lately",
        "misses": f"{demand.get('expectedMissesPerHour')} an hour expected",
        "lead time": f"{lead['planned']} s planned; measured p50 {lead['p50']}, p90 {lead['p90']}",
        "rule": f"{pool['rule']}, {pool['stocking']}",
        "error": pool["error"] or pool["pool"]["lastError"],
    }
    return [{"name": name, "value": value} for name, value in facts.items() if value]

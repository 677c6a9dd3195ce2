"""runtimes: list, show, and check manifests before a gateway gets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import complete_runtime, over_api
from gateway.cli.remote.screen import Format, Output, show
from wakegate_client import APIError, Client
from wakegate_client.calls import runtimes

app = typer.Typer(no_args_is_help=True)


def _name(runtime: Mapping[str, Any]) -> str:
    """As every command takes it that wants a runtime: two namespaces may have the same name."""
    return f"{runtime['namespace']}/{runtime['name']}"


_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "RUNTIME": _name,
    "KIND": lambda each: each["kind"],
    "IMAGE": lambda each: each.get("image"),
    "READY": lambda each: f"{each['pool']['ready']}/{each['pool']['target']}",
    "CLAIMED": lambda each: each["pool"]["claimed"],
    "LOSSES": lambda each: each["pool"]["losses"],
    "LAST ERROR": lambda each: each["pool"]["lastError"] or each["pool"]["lastLoss"],
}


@app.command("ls")
@over_api
def ls(gateway: Client, output: Output = Format.TABLE) -> None:
    """List the runtimes."""
    show(
        gateway.runtimes(),
        _COLUMNS,
        output,
        name=_name,
        empty="no runtimes; `wakegate serve --runtime FILE` serves one",
    )


@app.command("get")
@over_api
def get(
    gateway: Client,
    runtime: Annotated[str, typer.Argument(metavar="RUNTIME", autocompletion=complete_runtime, show_default=False)],
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Its manifest too, credentials masked; for admins and operators.")
    ] = False,
    output: Output = Format.YAML,
) -> None:
    """Show a runtime with its pool: NAME, or NAMESPACE/NAME."""
    for each in gateway.send(runtimes({"manifest": "true"} if manifest else {})):
        if runtime in (each["name"], _name(each)):
            show([each], _COLUMNS, output, name=_name, one=True)
            return
    raise APIError(404, "", f"there is no runtime {runtime}; `wakegate runtimes ls` lists them")


@app.command("validate")
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", show_default=False)],
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="As a gateway in a cluster reads them.")] = False,
) -> None:
    """Check manifests as a gateway would, without one. The exit status is 2 for one that is wrong."""
    # Here alone: it brings the schema of manifests and YAML, which the other two verbs do without.
    from gateway.runtimes.manifest import load_runtimes

    for each in load_runtimes(files, engine="kubernetes" if kubernetes else "local"):
        print(f"{each.key} is valid")

"""runtimes: list, show, and check manifests before a gateway gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import Format, Output, print_document, show
from wakegate_client import APIError, Client

app = typer.Typer(no_args_is_help=True)
_COLUMNS = {
    "RUNTIME": lambda each: f"{each['namespace']}/{each['name']}",
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
    show(gateway.runtimes(), _COLUMNS, output, name="name")


@app.command("get")
@over_api
def get(gateway: Client, runtime: str, output: Output = Format.YAML) -> None:
    """Show a runtime with its pool: NAME, or NAMESPACE/NAME."""
    for each in gateway.runtimes():
        if runtime in (each["name"], f"{each['namespace']}/{each['name']}"):
            print_document(dict(each), Format.JSON if output is Format.JSON else Format.YAML)
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

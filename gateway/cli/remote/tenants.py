"""tenants: list, show, set and delete."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import Format, Output, plain, show
from gateway.core.errors import SettingsError
from wakegate_client import Client
from wakegate_client.calls import delete_tenant, get_tenant, put_tenant

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="TENANT", show_default=False)]
_COLUMNS = {
    "NAME": lambda each: each["name"],
    "LIMITS": lambda each: ", ".join(f"{name}={value}" for name, value in each["limits"].items()) or "none",
    "USED": lambda each: ", ".join(f"{name}={value:g}" for name, value in each["used"].items()),
}


@app.command("ls")
@over_api
def ls(gateway: Client, output: Output = Format.TABLE) -> None:
    """List tenants with their limits, and what they use."""
    empty = "no tenants but `default`, which has no limits; `wakegate tenants set` makes one"
    show(gateway.tenants(), _COLUMNS, output, name="name", empty=empty)


@app.command("get")
@over_api
def get(
    gateway: Client, name: Annotated[str, typer.Argument(metavar="[TENANT]", help="`self`: your own.")] = "self",
    output: Output = Format.YAML,
) -> None:  # fmt: skip
    """Show a tenant, its limits and what it uses."""
    found = gateway.send(get_tenant(name))
    show([found], _COLUMNS, output, name="name", one=True)


@app.command("set")
@over_api
def set_(
    gateway: Client,
    name: Name,
    limits: Annotated[list[str] | None, typer.Argument(metavar="[LIMIT=VALUE...]", show_default=False)] = None,
) -> None:
    """Set a tenant's limits, all of them: what is not named is not limited any more.

    \b
    wakegate tenants set acme sessions=100 memory=64Gi maxDuration=8h
    """
    gateway.send(put_tenant(name, dict(_limit(each) for each in limits or ())))
    print(f"{plain(name)} set")


@app.command("rm")
@over_api
def rm(
    gateway: Client,
    name: Name,
    sessions: Annotated[
        str, typer.Option(metavar="keep|end", help="keep: they end by their own timeouts; end: now.")
    ] = "keep",
) -> None:
    """Delete a tenant: its keys are revoked, its tokens refused."""
    gateway.send(delete_tenant(name, sessions))
    print(f"{plain(name)} deleted")


def _limit(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SettingsError([f"{text}: expected LIMIT=VALUE"])
    # sessions=100 is a number, memory=64Gi and maxDuration=8h are text, and `"100"` in quotes is text too: as in JSON,
    # which the API takes, so that a limit that is added there needs no change here.
    try:
        return name, json.loads(value, parse_constant=_no_number, parse_float=_finite)
    except ValueError:
        return name, value


def _no_number(text: str) -> float:
    """Python reads NaN and Infinity, which are no JSON and cannot be sent."""
    raise ValueError(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number

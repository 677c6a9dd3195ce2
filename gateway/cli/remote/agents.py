"""agents: list, show, stop, start and delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.remote.agent_names import AgentName, split_name
from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import Format, Output, age, plain, show
from wakegate_client import Client
from wakegate_client.calls import delete_agent, get_agent, list_agents, start_agent, stop_agent

app = typer.Typer(no_args_is_help=True)


def _name(agent: Mapping[str, Any]) -> str:
    """NAMESPACE/NAME, which other commands take too: two tenants may each have an agent of one name."""
    return f"{agent['namespace']}/{agent['name']}"


_COLUMNS = {
    "AGENT": _name,
    "PHASE": lambda each: each["phase"],
    "REVISION": lambda each: each["revision"] or "-",
    "OWNER": lambda each: each["owner"],
    "AGE": lambda each: age(each["createdAt"]) if each["createdAt"] else "-",
    "MANAGED BY": lambda each: each["managedBy"],
}


@app.command("ls")
@over_api
def ls(
    gateway: Client,
    phase: Annotated[
        str, typer.Option(metavar="PHASE", help="Pending, Running, Updating, Stopped or Failed.", show_default=False)
    ] = "",
    output: Output = Format.TABLE,
) -> None:
    """List agents, those of manifests too."""
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = gateway.send(list_agents({"phase": phase, "after": after}))
        found += page["agents"]
        if not page["next"]:
            break
        after = page["next"]
    empty = "no such agents" if phase else "no agents; `wakegate deploy FOLDER` makes one"
    show(found, _COLUMNS, output, name=_name, empty=empty)


@app.command("get")
@over_api
def get(gateway: Client, agent: AgentName, output: Output = Format.YAML) -> None:
    """Show an agent: its manifest, its state, its requests and what it costs."""
    found = gateway.send(get_agent(*split_name(agent)))
    show([found], _COLUMNS, output, name=_name, one=True)


@app.command("stop")
@over_api
def stop(gateway: Client, agent: AgentName) -> None:
    """End its sessions and its warm sandboxes; it is kept, and refuses requests."""
    gateway.send(stop_agent(*split_name(agent)))
    print(f"{plain(agent)} stopped")


@app.command("start")
@over_api
def start(gateway: Client, agent: AgentName) -> None:
    """Start an agent that was stopped: it serves requests again."""
    gateway.send(start_agent(*split_name(agent)))
    print(f"{plain(agent)} started")


@app.command("rm")
@over_api
def rm(gateway: Client, agent: AgentName) -> None:
    """Delete an agent with all its revisions; its sessions end, and their files are gone."""
    gateway.send(delete_agent(*split_name(agent)))
    print(f"{plain(agent)} deleted")

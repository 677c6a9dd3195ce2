"""`wakegate rollout`: what becomes of a change to an agent, and undoing it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.deploy.calls import change_rollout, get_revisions, get_rollout
from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import Format, Output, plain, show
from wakegate_client import Client

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="AGENT", show_default=False)]
Move = Annotated[
    bool, typer.Option("--move", help="Move sessions of other revisions to the one that serves, with their files.")
]
_COLUMNS = {
    "REVISION": lambda each: each["revision"],
    "CREATED": lambda each: each["createdAt"],
    "BY": lambda each: each["createdBy"],
    "REASON": lambda each: each["reason"],
    "CHANGED": lambda each: ", ".join(change["field"] for change in each["diff"]) or "-",
}


@app.command("status")
@over_api
def status(gateway: Client, name: Name, output: Output = Format.TABLE) -> None:
    """Show the change that is under way, and what happened last."""
    document = gateway.send(get_rollout(name))
    if output is Format.TABLE:
        _show(document)
    else:
        show([document], {}, output, name="stable", one=True)


@app.command("history")
@over_api
def history(gateway: Client, name: Name, output: Output = Format.TABLE) -> None:
    """List revisions: who made each, when, and what it changed."""
    show(gateway.send(get_revisions(name))["revisions"], _COLUMNS, output, name="revision")


@app.command("undo")
@over_api
def undo(
    gateway: Client,
    name: Name,
    to: Annotated[int, typer.Option("--to", help="The revision to go back to; the one before if absent.")] = 0,
    move: Move = False,
) -> None:
    """Go back to an earlier revision."""
    _show(gateway.send(change_rollout(name, "undo", to or None)))
    _move(gateway, name, move)


@app.command("pause")
@over_api
def pause(gateway: Client, name: Name) -> None:
    """Hold a change where it is; it is still rolled back if it fails."""
    _show(gateway.send(change_rollout(name, "pause")))


@app.command("resume")
@over_api
def resume(gateway: Client, name: Name) -> None:
    """Let a paused change go on."""
    _show(gateway.send(change_rollout(name, "resume")))


@app.command("promote")
@over_api
def promote(gateway: Client, name: Name, move: Move = False) -> None:
    """Give all new sessions the new revision now."""
    _show(gateway.send(change_rollout(name, "promote")))
    _move(gateway, name, move)


@app.command("move")
@over_api
def move(
    gateway: Client,
    name: Name,
    discard_files: Annotated[
        bool, typer.Option("--discard-files", help="Without their files, which a cluster cannot keep.")
    ] = False,
) -> None:
    """Move the sessions of earlier revisions to the one that serves, with their files."""
    _move(gateway, name, wanted=True, discard_files=discard_files)


def _move(gateway: Client, name: str, wanted: bool, *, discard_files: bool = False) -> None:
    if not wanted:
        return
    done = gateway.send(change_rollout(name, "move", discard_files=discard_files))
    print(f"{len(done['moved'])} sessions moved to revision {done['stable']}; each wakes there with its next request")
    for each in done["kept"]:
        print(f"{plain(each['session'])} stays: {plain(each['reason'])}")


def _show(document: dict[str, Any]) -> None:
    under_way = document["rollout"]
    print(f"revision {document['stable']} serves new sessions")
    if under_way is not None:
        paused = ", paused" if under_way["paused"] else ""
        print(f"revision {under_way['revision']} is {under_way['phase']} since {under_way['since']}{paused}")
    # The newest five: what led to where it is now. `rollout history` has all revisions.
    for event in document["events"][:5]:
        print(f"{event['at']}  {event['revision']}  {plain(event['text'])}")

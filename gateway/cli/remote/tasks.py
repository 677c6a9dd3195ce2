"""tasks: what became of an agent's background invocations."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from gateway.cli.remote.agent_names import AgentName, split_name
from gateway.cli.remote.connection import over_api
from gateway.cli.remote.progress import waiting
from gateway.cli.remote.screen import Format, Output, age, note, plain, show, write_answer
from wakegate_client import Client
from wakegate_client.calls import cancel_task, get_task, list_schedules, list_tasks, retry_task, task_result

app = typer.Typer(no_args_is_help=True)
TaskId = Annotated[str, typer.Argument(metavar="TASK", show_default=False)]
_WAIT = "30s"  # of one request; the gateway allows a minute, and proxies on the way often less
_FAILED = 1
_COLUMNS = {
    "ID": lambda each: each["id"],
    "STATE": lambda each: each["state"],
    "AGE": lambda each: age(datetime.fromtimestamp(each["createdAt"], UTC).isoformat()),
    "TRIES": lambda each: f"{each['attempts']}/{each['maxAttempts']}",
    "SESSION": lambda each: each["session"] or "-",
    "ERROR": lambda each: each["error"] or "",
}
_SCHEDULES = {
    "NAME": lambda each: each["name"],
    "CRON": lambda each: each["cron"],
    "TIMEZONE": lambda each: each["timezone"],
    "NEXT": lambda each: _moment(each["next"]),
    "LAST": lambda each: _moment(each["last"]),
    "OUTCOME": lambda each: each["lastOutcome"] or "-",
    "TASK": lambda each: each["lastTask"] or "-",
}


@app.command("ls")
@app.command("list", hidden=True)  # its first name
@over_api
def list_(
    gateway: Client,
    agent: AgentName,
    state: Annotated[
        str, typer.Option(metavar="STATE", help="queued, running, succeeded, failed, dead or cancelled.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="How many at most, up to 100.")] = 20,
    output: Output = Format.TABLE,
) -> None:
    """List an agent's tasks, the newest first."""
    name, namespace = split_name(agent)
    page = gateway.send(list_tasks(name, {"namespace": namespace, "state": state, "limit": limit}))
    show(page["tasks"], _COLUMNS, output, empty="no such tasks" if state else f"{name} has no tasks")
    if page["next"]:
        note(f"there are more than {limit}; --limit shows up to 100, --state only some")


@app.command("schedules")
@over_api
def schedules(gateway: Client, agent: AgentName, output: Output = Format.TABLE) -> None:
    """List when an agent is asked by itself, and what came of it last."""
    name, namespace = split_name(agent)
    found = gateway.send(list_schedules(name, namespace))["schedules"]
    show(found, _SCHEDULES, output, name="name", empty=f"{name} has no schedules")


@app.command("get")
@app.command("show", hidden=True)
@over_api
def show_(gateway: Client, agent: AgentName, task: TaskId, output: Output = Format.YAML) -> None:
    """Show a task: its state, its tries, how far it is, and a result of up to 64 KiB."""
    name, namespace = split_name(agent)
    found = gateway.send(get_task(name, task, namespace))
    show([found], _COLUMNS, output, one=True)


@app.command("result")
@over_api
def result(
    gateway: Client,
    agent: AgentName,
    task: TaskId,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
) -> None:
    """Print what the agent answered, byte for byte. The exit status is 1 for a task that has not succeeded."""
    name, namespace = split_name(agent)
    if wait:
        finish(gateway, name, task, namespace)
        return
    write_answer([gateway.send(task_result(name, task, namespace))])
    _check(gateway.send(get_task(name, task, namespace)))


@app.command("cancel")
@over_api
def cancel(gateway: Client, agent: AgentName, task: TaskId) -> None:
    """Stop a task that waits or runs."""
    name, namespace = split_name(agent)
    _say(gateway.send(cancel_task(name, task, namespace)))


@app.command("retry")
@over_api
def retry(gateway: Client, agent: AgentName, task: TaskId) -> None:
    """Try a task that is over again, such as a dead letter."""
    name, namespace = split_name(agent)
    _say(gateway.send(retry_task(name, task, namespace)))


def finish(gateway: Client, name: str, task: str, namespace: str) -> None:
    """Wait for a task's end, and print its result. Raises typer.Exit for one that has not succeeded."""
    with waiting(f"task {task} is under way"):
        while True:
            document = gateway.send(get_task(name, task, namespace, _WAIT))
            if document["state"] not in ("queued", "running"):
                break
    if document["result"] is not None:
        write_answer([gateway.send(task_result(name, task, namespace))])
    _check(document)


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")


def _check(document: dict[str, Any]) -> None:
    if document["state"] != "succeeded":
        note(f"task {document['id']} {document['state']}: {document['error'] or 'without a result'}")
        raise typer.Exit(_FAILED)


def _say(document: dict[str, Any]) -> None:
    asked = ", and is stopped" if document["state"] == "running" and document["cancelRequested"] else ""
    print(f"{plain(document['id'])} {plain(document['state'])}{asked}")

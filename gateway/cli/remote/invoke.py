"""invoke: ask an agent something, and show what it answers; now, or in the background."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.remote.agent_names import AgentName, split_name
from gateway.cli.remote.connection import over_api
from gateway.cli.remote.screen import note, plain, write_answer
from gateway.cli.remote.tasks import finish
from gateway.core.errors import SettingsError
from wakegate_client import APIError, Client
from wakegate_client.calls import get_agent, invoke_async, quoted


@over_api
def invoke(
    gateway: Client,
    agent: AgentName,
    data: Annotated[
        str, typer.Option("--data", "-d", help="The body: text, @FILE, or @- for standard input.", show_default=False)
    ] = "{}",
    path: Annotated[str, typer.Option(metavar="PATH", help="Below the agent's own path, such as /process.")] = "/",
    session: Annotated[str, typer.Option(metavar="ID", help="In this session; else in a new one.")] = "",
    content_type: Annotated[str, typer.Option(metavar="TYPE", help="Of the body.")] = "application/json",
    in_background: Annotated[bool, typer.Option("--async", help="Do not wait; print the id of a task.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="With --async: wait for the end, and show the result.")] = False,
    attempts: Annotated[int, typer.Option(help="With --async: how often it is tried.", show_default=False)] = 0,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="With --async: how long one try may take.")] = "",
    key: Annotated[str, typer.Option("--idempotency-key", help="With --async: the same key, the same task.")] = "",
    webhook: Annotated[str, typer.Option(metavar="URL", help="With --async: is told of the end.")] = "",
) -> None:
    """Ask an agent something, and show its answer as it comes; the session is named on standard error.

    \b
    wakegate invoke greeter -d '{"message": "hello"}'
    wakegate invoke greeter --session ID -d @question.json --path /process
    wakegate invoke greeter --async -d @question.json
    wakegate invoke greeter --async --wait -d @question.json
    """
    name, namespace = split_name(agent)
    of_tasks = {
        "x-wakegate-task-attempts": str(attempts or ""),
        "x-wakegate-task-timeout": timeout,
        "idempotency-key": key,
        "x-wakegate-webhook": webhook,
    }
    asked = {field: value for field, value in of_tasks.items() if value}
    in_background = in_background or wait
    if asked and not in_background:
        raise SettingsError(["--attempts, --timeout, --idempotency-key and --webhook: are of tasks; add --async"])
    body = _body(data)
    where = str(gateway.send(get_agent(name, namespace))["path"]).rstrip("/") + "/" + path.lstrip("/")
    headers = {"content-type": content_type}
    if not in_background:
        _now(gateway, where, body, {**headers, **({"x-session-id": quoted(session)} if session else {})})
        return
    task = gateway.send(invoke_async(where, body, {**headers, **asked}, session))
    if wait:
        note(f"task {task['id']}")
        finish(gateway, name, task["id"], task["namespace"])
    else:
        print(plain(task["id"]))


def _now(gateway: Client, where: str, body: bytes, headers: dict[str, Any]) -> None:
    try:
        with gateway.stream("POST", where, content=body, headers=headers) as answer:
            if found := answer.headers.get("x-session-id"):
                note(f"session {found}")
            write_answer(answer.iter_bytes())
    except APIError as error:
        if error.code:
            raise  # the gateway's own words
        raise APIError(error.status, "", f"the agent answered {error.status}: {error}") from error


def _body(data: str) -> bytes:
    if data == "@-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise SettingsError([f"--data {data}: cannot be read: {error.strerror}"]) from None

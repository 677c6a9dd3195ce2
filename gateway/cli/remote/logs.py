"""logs: what became of a session, and what runs in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import SessionId, over_api
from gateway.cli.remote.screen import Format, Output, plain, print_document
from wakegate_client import APIError, Client, UnreachableError
from wakegate_client.calls import in_sandbox, session_logs


@over_api
def logs(
    gateway: Client,
    session: SessionId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as things happen.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the starts, sleeps, wakes and losses of a session, and the processes in it while it is awake.

    They are those that its gateway has seen since its start; the audit trail has all.
    """
    events = gateway.send(session_logs(session))["events"]
    processes = _processes(gateway, session)
    if output is not Format.TABLE:
        print_document({"events": events, "processes": processes}, output)
        return
    for event in events:
        _print(event)
    for each in processes:
        words = " ".join(map(str, each.get("command") or [each.get("name", "")]))
        print("  ".join(plain(each.get(name)) for name in ("started_at", "id", "state")), plain(words), sep="  ")
    after = events[-1]["id"] if events else ""
    # A stream ends when its gateway stops in order; the next request finds another gateway, or none, which ends this.
    # The last id goes with it, so that nothing is said twice and, in the same gateway, nothing is left out.
    while follow:
        headers = {"accept": "text/event-stream", **({"last-event-id": after} if after else {})}
        try:
            with gateway.events("GET", "/v1/events", headers=headers, params={"session": session}) as stream:
                for event in stream:
                    after = event.id or after
                    if isinstance(event.data, dict) and "event" in event.data:
                        _print(event.data)
        except UnreachableError as error:
            raise UnreachableError(f"{error}; the log broke off") from error


def _processes(gateway: Client, session: str) -> list[dict[str, Any]]:
    """Those that picod knows; none where the session sleeps (asking would wake it) or may not be looked into."""
    # Looked at first: the request below goes to the sandbox, and a log must not be what wakes a session.
    if gateway.get_session(session)["state"] != "active":
        return []
    try:
        found = gateway.send(in_sandbox("GET", session, "/api/processes")).get("processes")
    except APIError:
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _print(event: Mapping[str, Any]) -> None:
    details = "  ".join(f"{name}={value}" for name, value in event["details"].items())
    print(f"{plain(event['at'])}  {plain(event['event'])}  {plain(details)}", flush=True)

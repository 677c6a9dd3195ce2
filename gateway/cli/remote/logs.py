"""logs: what became of a session, who did what in it, and what runs there."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import SessionId, over_api
from gateway.cli.remote.screen import Format, Output, plain, print_document
from wakegate_client import APIError, Client, UnreachableError
from wakegate_client.calls import in_sandbox, session_audit, session_logs

_AUDIT_INTERVAL_S = 2.0  # between looks while following; each reads the end of a file of the gateway's
_AUDIT_LINES = 100


@over_api
def logs(
    gateway: Client,
    session: SessionId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as things happen.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show what became of a session, the commands and code that ran in it, and the processes while it is awake.

    Starts, sleeps, wakes and losses are those that its gateway has seen since its start. Who ran what is from the audit
    trail, where the gateway keeps one (--audit-log) and the key may read it.
    """
    events = gateway.send(session_logs(session))["events"]
    actions = _actions(gateway, session)
    processes = _processes(gateway, session)
    if output is not Format.TABLE:
        print_document({"events": events, "actions": actions, "processes": processes}, output)
        return
    # Both have the same form of time, which sorts as text.
    lines = [(each["at"], _event_line(each)) for each in events] + [
        (each["at"], _action_line(each)) for each in actions
    ]
    for _, line in sorted(lines, key=lambda pair: pair[0]):
        print(line, flush=True)
    for each in processes:
        words = " ".join(map(str, each.get("command") or [each.get("name", "")]))
        known = "  ".join(plain(each.get(name)) for name in ("started_at", "id", "state"))
        print(known, plain(words), sep="  ", flush=True)
    if follow:
        last = actions[-1]["line"] if actions else -1
        # Of the process: it ends with the command. The events are read on this thread, which they block.
        threading.Thread(target=_follow_actions, args=(gateway, session, last), daemon=True).start()
        _follow_events(gateway, session, events[-1]["id"] if events else "")


def _follow_events(gateway: Client, session: str, after: str) -> None:
    # A stream ends when its gateway stops in order; the next request finds another gateway, or none, which ends this.
    # The last id goes with it, so that nothing is said twice and, in the same gateway, nothing is left out.
    while True:
        headers = {"accept": "text/event-stream", **({"last-event-id": after} if after else {})}
        try:
            with gateway.events("GET", "/v1/events", headers=headers, params={"session": session}) as stream:
                for event in stream:
                    after = event.id or after
                    if isinstance(event.data, dict) and "event" in event.data:
                        print(_event_line(event.data), flush=True)
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


def _follow_actions(gateway: Client, session: str, last: int) -> None:
    """Print the lines of the audit trail that follow `last`, until there is no more to be had."""
    pause = threading.Event()
    while not pause.wait(_AUDIT_INTERVAL_S):
        try:
            actions = _actions(gateway, session)
        except (APIError, UnreachableError):
            return  # the stream of events ends of the same, and says so
        for each in actions:
            if each["line"] > last:
                last = each["line"]
                print(_action_line(each), flush=True)


def _actions(gateway: Client, session: str) -> list[dict[str, Any]]:
    """What the audit trail has of the session, oldest first; none where there is no trail, or it may not be read.

    Without what became of it, which has no status: that is among the events too, and would be shown twice.
    """
    try:
        found = gateway.send(session_audit(session, _AUDIT_LINES))["events"]
    except APIError as error:
        if error.status in (403, 404):
            return []
        raise
    return [each for each in reversed(found) if each["status"]]


def _event_line(event: Mapping[str, Any]) -> str:
    details = "  ".join(f"{name}={value}" for name, value in event["details"].items())
    return f"{plain(event['at'])}  {plain(event['event'])}  {plain(details)}"


def _action_line(action: Mapping[str, Any]) -> str:
    # A digest says nothing to a person; -o json has it.
    details = "  ".join(f"{name}={value}" for name, value in action["detail"].items() if name != "sha256")
    who = action["actor"].get("subject") or action["actor"].get("role", "")
    return f"{plain(action['at'])}  {plain(action['action'])}  {action['status']}  by {plain(who)}  {plain(details)}"

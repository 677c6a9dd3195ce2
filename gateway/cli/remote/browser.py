"""open: a port of a session in the browser."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from gateway.cli.remote.connection import SessionId, Target, over_api
from wakegate_client import Client
from wakegate_client.answers import read_json
from wakegate_client.calls import Call, of_session

_TOKEN_TTL = "1h"  # noqa: S105 - a duration

Port = Annotated[int, typer.Argument(metavar="PORT", min=1, max=65535, show_default=False)]


@over_api
def open_port(
    gateway: Client,
    target: Target,
    session: SessionId,
    port: Port,
    print_only: Annotated[bool, typer.Option("--print", help="Print the address, open nothing.")] = False,
) -> None:
    """Open a server that listens in a session in the browser.

    Where the gateway wants a key, the address has a token for this port alone, for an hour.

    \b
    wakegate exec -d ID python3 -m http.server 8000
    wakegate open ID 8000
    """
    gateway.get_session(session)  # a browser would show its absence as a page of JSON
    url = gateway.port_url(session, port)
    # An address stays in the browser's history and in logs on the way: so it has a token for one port and one hour,
    # and never the key, which is worth all sessions.
    if target.key:
        path = of_session(session, "/tokens")
        made = gateway.send(Call("POST", path, read_json, json={"ttl": _TOKEN_TTL, "ports": [port]}))
        url += f"?wakegate_token={made['token']}"
    if print_only or not webbrowser.open(url):
        print(url)

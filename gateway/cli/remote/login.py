"""login: remember gateways by name, with their keys."""

from __future__ import annotations

import sys
from getpass import getpass
from typing import Annotated

import typer

from gateway.cli.remote.connection import Target, connect, contexts_file, read_contexts, write_contexts
from gateway.cli.remote.screen import note, plain
from gateway.core.errors import SettingsError
from wakegate_client.base import DEFAULT_URL


def login(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="What to call it.")] = "default",
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="The gateway's address.", envvar="WAKEGATE_URL")
    ] = DEFAULT_URL,
    ca: Annotated[str, typer.Option("--ca", help="Certificates to trust, a PEM file.", show_default=False)] = "",
    no_key: Annotated[bool, typer.Option("--no-key", help="A gateway that asks for none.")] = False,
    use: Annotated[bool, typer.Option("--use", help="Only choose NAME for the commands to come.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List what is remembered.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Forget NAME and its key.")] = False,
) -> None:
    """Remember a gateway's address and key, readable by you only, and use them in commands that name none.

    The key is asked for, or read from standard input where that is no terminal.

    \b
    wakegate login --url https://gateway.example prod
    wakegate keys create --role member | wakegate login
    wakegate login --use prod
    """
    known = read_contexts()
    contexts = known["contexts"]
    if list_:
        for each in sorted(contexts):
            mark = "*" if each == known.get("current") else " "
            print(f"{mark} {plain(each)}  {plain(contexts[each].get('url'))}")
        return
    if use or forget:
        if name not in contexts:
            raise SettingsError([f"there is no context {name}; `wakegate login --list` shows those there are"])
        if forget:
            del contexts[name]
        write_contexts({"current": name if use else known.get("current", ""), "contexts": contexts})
        return
    if not url.startswith(("http://", "https://")):
        raise SettingsError([f"--url {url}: expected http://HOST:PORT or https://HOST"])
    # Never a flag: arguments are in the shell's history, and every user of the machine sees them in /proc.
    key = "" if no_key else (getpass("API key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    # Tried before it is remembered: a key with a letter missing fails here, and not in the next command.
    with connect(Target(url, key, ca)) as gateway:
        caller = gateway.caller()
    contexts[name] = {"url": url, "key": key, "ca": ca}
    write_contexts({"current": name, "contexts": contexts})
    note(f"{url}: {caller['role']} of {caller['tenant']}; remembered as {name} in {contexts_file()}")

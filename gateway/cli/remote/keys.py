"""keys: make, list, revoke and rotate API keys, at a gateway or in the session store of this machine."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Protocol

import typer

from gateway.cli.remote.connection import ApiKey, Ca, Context, Url, complete_runtime, connect, find_target
from gateway.cli.remote.screen import Format, Output, note, plain, show
from gateway.core.errors import SettingsError
from gateway.core.identity import KEY_ROLES
from gateway.core.settings import ENV_PREFIX
from gateway.core.settings_load import load
from gateway.core.units import parse_lifetime
from wakegate_client import Client
from wakegate_client.calls import create_key, list_keys, revoke_key, rotate_key

app = typer.Typer(no_args_is_help=True)


class Spelling(StrEnum):
    """How a key is written; it is the same key."""

    WAKEGATE = "wakegate"
    E2B = "e2b"


class Keys(Protocol):
    """Where keys are made and ended."""

    def create(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """A new key of these fields of POST /v1/keys; `expires` in seconds."""

    def list(self, tenant: str) -> Sequence[Mapping[str, Any]]:
        """The keys of a tenant, or of all if it is empty."""

    def revoke(self, key_id: str) -> None:
        """End a key, at every gateway within two seconds."""

    def rotate(self, key_id: str, overlap: float) -> Mapping[str, Any]:
        """A key with the same rights; the old one ends in so many seconds."""


class _OfGateway:
    """Those of a gateway, which only an admin may see and change."""

    def __init__(self, gateway: Client) -> None:
        self._gateway = gateway

    def create(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._gateway.send(create_key(fields))

    def list(self, tenant: str) -> Sequence[Mapping[str, Any]]:
        return self._gateway.send(list_keys(tenant))

    def revoke(self, key_id: str) -> None:
        self._gateway.send(revoke_key(key_id))

    def rotate(self, key_id: str, overlap: float) -> Mapping[str, Any]:
        return self._gateway.send(rotate_key(key_id, {"overlap": overlap} if overlap else {}))


_STORE = {"state_dir": "DIR", "store": "URL", "store_prefix": "NAME", "config": "FILE"}


def _setting(name: str) -> Any:
    flag = "--" + name.replace("_", "-")
    text = f"As `wakegate serve` has it: its store is used, no gateway asked. Also {ENV_PREFIX}{name.upper()}."
    return Annotated[str, typer.Option(flag, metavar=_STORE[name], help=text, show_default=False)]


_OPTIONS: Mapping[str, Any] = {
    "url": Url, "api_key": ApiKey, "context": Context, "ca": Ca, **{name: _setting(name) for name in _STORE},
}  # fmt: skip


def _with_keys(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `keys: Keys` as its first argument, and the flags that say whose."""
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.name != "keys"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=kind)
        for name, kind in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def connected(**options: Any) -> Any:
        gateway = {name: options.pop(name) for name in ("url", "api_key", "context", "ca")}
        store = {name: value for name in _STORE if (value := options.pop(name))}
        if store and any(gateway.values()):
            flag = "--" + next(iter(store)).replace("_", "-")
            raise SettingsError(
                [f"{flag} is of the store on this machine, --url, --api-key and --context of a gateway"]
            )
        if _asks_store(gateway, store):
            from gateway.cli.keys import StoredKeys  # most of a gateway, which the API does without

            return command(StoredKeys(load(store, os.environ)), **options)
        with connect(find_target(**gateway)) as client:
            return command(_OfGateway(client), **options)

    keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    connected.__signature__ = inspect.Signature([*keyword, *added])  # type: ignore[attr-defined]
    return connected


def _asks_store(gateway: Mapping[str, str], store: Mapping[str, str]) -> bool:
    """Flags decide, then variables of the store, then whether a key for a gateway is known.

    Without one the gateway could only refuse, and the first key is made where there is none yet.
    """
    if any(gateway.values()) or store:
        return bool(store)
    return any(os.environ.get(ENV_PREFIX + name.upper()) for name in _STORE) or not find_target().key


def _a_role(value: str) -> str:
    if value not in KEY_ROLES:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(KEY_ROLES)}")
    return value


KeyId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
Form = Annotated[Spelling, typer.Option("--format", help="e2b: as E2B's SDKs take it; it is the same key.")]


@app.command("create")
@_with_keys
def create(
    keys: Keys,
    role: Annotated[
        str,
        typer.Option(
            metavar="|".join(KEY_ROLES), show_default=False, callback=_a_role,
            autocompletion=lambda incomplete: [str(each) for each in KEY_ROLES if each.startswith(incomplete)],
        ),
    ],
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose sessions it sees.")] = "default",
    name: Annotated[str, typer.Option(metavar="TEXT", help="For people, to know it by.")] = "",
    user: Annotated[
        str, typer.Option(metavar="NAME", help="The person whose sessions are hidden from the tenant's others.")
    ] = "",
    expires: Annotated[str, typer.Option(metavar="DURATION", help="How long it is valid, e.g. 90d.")] = "",
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMESPACE/NAME", help="The only runtime that it may use; may be repeated.",
            autocompletion=complete_runtime,
        ),
    ] = None,
    form: Form = Spelling.WAKEGATE,
) -> None:  # fmt: skip
    """Make a key, and print it once.

    At the gateway, where a key for it is known (--api-key, WAKEGATE_API_KEY, `wakegate login`); else, or with
    --state-dir or --store, in the session store of this machine, which needs no gateway.

    \b
    wakegate keys create --role admin --state-dir /var/lib/wakegate     # the first one
    wakegate keys create --role member --tenant acme --expires 90d
    """
    fields: dict[str, Any] = {"role": role, "tenant": tenant, "name": name, "user": user, "runtimes": runtime or []}
    seconds = _seconds("--expires", expires)
    _show(keys.create({**fields, "expires": seconds} if seconds else fields), form)


@app.command("ls")
@app.command("list", hidden=True)  # its first name
@_with_keys
def ls(
    keys: Keys,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Only those of this tenant.")] = "",
    lines: Annotated[bool, typer.Option("--json", help="One JSON object per key and line.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """List keys, the oldest first; never the keys themselves."""
    found = keys.list(tenant)
    if lines:
        for each in found:
            print(json.dumps(each))
        return
    empty = "no keys of that tenant" if tenant else "no keys here; `wakegate keys create --role admin` makes one"
    show(found, _COLUMNS, output, empty=empty)


@app.command("revoke")
@app.command("rm", hidden=True)  # as sessions and tenants are ended
@_with_keys
def revoke(keys: Keys, key: KeyId) -> None:
    """End a key, at every gateway within two seconds."""
    keys.revoke(key)
    print(f"{plain(key)} revoked")


@app.command("rotate")
@_with_keys
def rotate(
    keys: Keys,
    key: KeyId,
    overlap: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the old one goes on; else it ends at once.")
    ] = "",
    form: Form = Spelling.WAKEGATE,
) -> None:
    """Make a key with the same rights, and end the old one."""
    _show(keys.rotate(key, _seconds("--overlap", overlap)), form)


_COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "ID": lambda each: each["id"],
    "ROLE": lambda each: each["role"],
    "TENANT": lambda each: each["tenant"],
    "NAME": lambda each: each["name"],
    "EXPIRES": lambda each: each["expiresAt"] or "never",
    "LAST USED": lambda each: each["lastUsedAt"] or "never",
    "RUNTIMES": lambda each: ",".join(each["runtimes"]) or "all",
}


def _show(made: Mapping[str, Any], form: Spelling) -> None:
    """The key alone on standard output, for scripts; what it is, beside it."""
    ends = f"expires {made['expiresAt']}" if made["expiresAt"] else "never expires"
    note(f"key {made['id']}: {made['role']} of {made['tenant']}, {ends}. It is shown this once:")
    sys.stderr.flush()
    print(plain(made["e2bKey"] if form is Spelling.E2B else made["key"]))


def _seconds(flag: str, text: str) -> float:
    """0 for what was not given. Raises SettingsError."""
    if not text:
        return 0.0
    # A key that has ended when it is made is a mistake, and so is an overlap of nothing that was written down.
    try:
        seconds = parse_lifetime(text)
    except ValueError:
        seconds = -1.0
    if seconds <= 0:
        raise SettingsError([f"{flag}: expected a duration above zero such as 90d or 12h, got {text[:64]!r}"])
    return seconds

"""`wakegate keys`: make, list, revoke and rotate API keys, in the session store that the settings name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson

from gateway.build import store_of
from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError
from gateway.core.identity import Role
from gateway.core.settings import Settings, make_state_dir
from gateway.core.units import parse_lifetime, rfc3339
from gateway.identity.directory import KeyDirectory, open_directory
from gateway.identity.keys import APIKey, e2b_spelling

_COLUMNS = "{:<10} {:<9} {:<16} {:<24} {:<21} {:<21} {}"


async def run(settings: Settings, arguments: argparse.Namespace) -> int:
    """Run one verb; returns the exit status. Raises WakegateError."""
    async with _directory(settings) as directory:
        match arguments.verb:
            case "create":
                made = await directory.create(
                    role=Role(arguments.role),
                    tenant=arguments.tenant,
                    name=arguments.name,
                    user=arguments.user,
                    runtimes=arguments.scopes,
                    lifetime=_seconds("--expires", arguments.expires),
                )
                _show(*made, arguments.format)
            case "list" | "ls":
                _list(await directory.list(arguments.of_tenant), "lines" if arguments.json else arguments.output)
            case "revoke":
                key = await directory.revoke(arguments.key_id)
                print(f"revoked {key.id} ({key.role} of {key.tenant})")
            case "rotate":
                overlap = _seconds("--overlap", arguments.overlap) or 0.0
                _show(*await directory.rotate(arguments.key_id, overlap=overlap), arguments.format)
    return 0


@asynccontextmanager
async def _directory(settings: Settings) -> AsyncIterator[KeyDirectory]:
    clock = SystemClock()
    # The store itself and not a gateway's API: the first key has to be made before anybody can ask for one.
    make_state_dir(settings.state_dir)
    store = store_of(settings, clock)
    await store.start()
    try:
        yield await open_directory(store.documents, clock)
    finally:
        await store.aclose()


def _show(text: str, key: APIKey, form: str) -> None:
    """The key alone on standard output, for scripts; what it is, beside it."""
    ends = "never expires" if key.expires_at is None else f"expires {rfc3339(key.expires_at)}"
    print(f"key {key.id}: {key.role} of {key.tenant}, {ends}. It is shown this once:", file=sys.stderr)
    print(e2b_spelling(text) if form == "e2b" else text)


def _list(found: Sequence[APIKey], form: str) -> None:
    """`form`: of -o, or `lines`: a JSON object a line."""
    documents = [_document(key) for key in found]
    match form:
        case "lines":
            for each in documents:
                print(orjson.dumps(each).decode())
        case "json":
            print(orjson.dumps(documents, option=orjson.OPT_INDENT_2).decode())
        case "yaml":
            import yaml

            print(yaml.safe_dump(documents, sort_keys=False), end="")
        case "name":
            for key in found:
                print(key.id)
        case _ if not found:
            print("no keys; `wakegate keys create --role admin` makes one", file=sys.stderr)
        case _:
            print(_COLUMNS.format("ID", "ROLE", "TENANT", "NAME", "EXPIRES", "LAST USED", "RUNTIMES"))
            for each in documents:
                ends, used = each["expiresAt"] or "never", each["lastUsedAt"] or "never"
                runtimes = ",".join(each["runtimes"]) or "all"
                row = (each["id"], each["role"], each["tenant"], each["name"], ends, used, runtimes)
                print(_COLUMNS.format(*row).rstrip())


def _document(key: APIKey) -> dict[str, Any]:
    return {
        "id": key.id, "role": str(key.role), "tenant": key.tenant, "name": key.name, "user": key.user,
        "runtimes": sorted(key.runtimes), "expiresAt": None if key.expires_at is None else rfc3339(key.expires_at),
        "lastUsedAt": None if key.last_used_at is None else rfc3339(key.last_used_at),
    }  # fmt: skip


def _seconds(flag: str, text: str | None) -> float | None:
    if text is None:
        return None
    # A key that has ended when it is made is a mistake, and so is an overlap of nothing that was written down: -1 for
    # what is no duration makes both one refusal.
    try:
        seconds = parse_lifetime(text)
    except ValueError:
        seconds = -1.0
    if seconds <= 0:
        raise SettingsError([f"{flag}: expected a duration above zero such as 90d or 12h, got {text[:64]!r}"])
    return seconds

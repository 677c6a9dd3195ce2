"""create, ls, get, resize, pause, wake, rm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from gateway.cli.remote.connection import SessionId, complete_runtime, complete_session, is_id, over_api
from gateway.cli.remote.progress import waiting
from gateway.cli.remote.screen import Format, Output, age, note, plain, show, table_of
from gateway.core.errors import SettingsError
from gateway.core.model import SessionState
from gateway.core.units import parse_lifetime, readable_size
from wakegate_client import APIError, Client

_WATCH_S = 2.0

Runtime = Annotated[
    str,
    typer.Option(
        "--runtime", "-r", metavar="NAME", help="NAMESPACE/NAME, or NAME in default.", autocompletion=complete_runtime
    ),
]  # fmt: skip
_STATES = (*(str(each) for each in SessionState), "all")
OptionalIds = Annotated[
    list[str] | None, typer.Argument(metavar="[ID...]", autocompletion=complete_session, show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Every session that the filters leave.")]
OlderThan = Annotated[str, typer.Option(metavar="DURATION", help="With --all: unused for as long, e.g. 2h.")]

COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "ID": lambda each: each["id"],
    "STATE": lambda each: each["state"],
    "RUNTIME": lambda each: f"{each['runtime']['namespace']}/{each['runtime']['name']}",
    "AGE": lambda each: age(each["createdAt"]),
    "LAST USE": lambda each: age(each["lastActiveAt"]),
    "START": lambda each: each.get("start"),
    "TENANT": lambda each: each.get("tenant"),
}


@over_api
def create(
    gateway: Client,
    runtime: Runtime = "",
    ttl: Annotated[str, typer.Option(metavar="DURATION", help="When it ends, e.g. 8h.")] = "",
    idle_timeout: Annotated[str, typer.Option(metavar="DURATION", help="Unused for as long, it is hibernated.")] = "",
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    output: Output = Format.NAME,
) -> None:
    """Make a session, and print its id.

    \b
    id=$(wakegate create)
    wakegate create -r default/my-interpreter --idle-timeout 5m --metadata purpose=demo -o json
    """
    fields = dict(_pair(each) for each in metadata or ())
    with waiting("a sandbox is being started"):
        made = gateway.create_session(
            runtime or None, ttl=ttl or None, idle_timeout=idle_timeout or None, metadata=fields or None
        )
    show([made], COLUMNS, output, one=True)


@over_api
def ls(
    gateway: Client,
    state: Annotated[
        str,
        typer.Option(
            metavar="STATE",
            help="active, hibernated, lost, terminated, ..., all.",
            autocompletion=lambda incomplete: [each for each in _STATES if each.startswith(incomplete)],
        ),
    ] = "",
    runtime: Runtime = "",
    metadata: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")] = None,
    search: Annotated[str, typer.Option(metavar="WORDS", help="All in id, state, runtime or metadata.")] = "",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = 1000,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show them anew every two seconds.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """List sessions, the newest first: without --state those that have not ended.

    \b
    wakegate ls
    wakegate ls --state hibernated --runtime my-interpreter -o name
    wakegate ls --search 'nightly user=ann'
    wakegate ls --watch
    """
    filters = {"state": state, "runtime": runtime, "search": search} | {
        f"metadata.{name}": value for name, value in map(_pair, metadata or ())
    }

    def found() -> list[Any]:
        return list(_first(limit, gateway.list_sessions(**filters, limit=min(limit, 1000))))

    if not watch:
        filtered = any(filters.values())
        show(
            found(),
            COLUMNS,
            output,
            empty="no such sessions" if filtered else "no sessions; `wakegate create` makes one",
        )
        return
    from rich.live import Live

    with Live(table_of(found(), COLUMNS), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(table_of(found(), COLUMNS), refresh=True)


@over_api
def get(gateway: Client, session: SessionId, output: Output = Format.YAML) -> None:
    """Show a session."""
    show([gateway.get_session(session)], COLUMNS, output, one=True)


@over_api
def resize(
    gateway: Client,
    session: SessionId,
    cpu: Annotated[str, typer.Option(metavar="CORES", help="E.g. 2 or 500m.")] = "",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="E.g. 2Gi.")] = "",
    processes: Annotated[int, typer.Option(min=0, help="At a time; threads count.", show_default=False)] = 0,
    reset: Annotated[bool, typer.Option("--reset", help="Back to what its runtime has.")] = False,
) -> None:
    """Change how much of the machine a session may use, while it runs.

    \b
    wakegate resize ID --memory 2Gi --cpu 2
    wakegate resize ID --reset
    """
    if reset == bool(cpu or memory or processes):
        raise SettingsError(["name a size with --cpu, --memory or --processes, or --reset, and not both"])
    with waiting(f"{session} is being resized"):
        found = gateway.resize(session, cpu=cpu or None, memory=memory or None, processes=processes or None)
    own = found.get("resources")
    shown = ", ".join(f"{name} {_amount(name, value)}" for name, value in (own or {}).items())
    print(f"{plain(session)} has {shown or 'the size of its runtime'}")


@over_api
def pause(gateway: Client, sessions: OptionalIds = None, all_: All = False, older_than: OlderThan = "") -> None:
    """Hibernate sessions: their sandboxes end, files and variables stay.

    \b
    wakegate pause ID
    wakegate pause --all --older-than 2h
    """
    _each(
        _chosen(gateway, sessions, all_, older_than, state="active"),
        gateway.hibernate,
        "hibernated",
        "is being put to sleep",
    )


@over_api
def wake(gateway: Client, sessions: OptionalIds = None, all_: All = False, older_than: OlderThan = "") -> None:
    """Give hibernated sessions their sandboxes back ahead of their next request.

    \b
    wakegate wake ID
    wakegate wake --all
    """
    chosen = _chosen(gateway, sessions, all_, older_than, state="hibernated")
    _each(chosen, gateway.wake, "awake", "is being woken")


@over_api
def rm(
    gateway: Client,
    sessions: OptionalIds = None,
    all_: All = False,
    older_than: OlderThan = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --all: do not ask.")] = False,
) -> None:
    """End sessions: their sandboxes and files are gone.

    \b
    wakegate rm ID ID
    wakegate rm --all --older-than 2h --yes
    """
    chosen = _chosen(gateway, sessions, all_, older_than)
    if all_ and chosen and not yes:
        # On standard error: `wakegate rm --all > ended` would put the question into the file, and wait for ever.
        typer.confirm(f"End {len(chosen)} session{'s' if len(chosen) > 1 else ''}?", abort=True, err=True)
    _each(chosen, gateway.end_session, "ended", "is being ended")


def _each(sessions: Sequence[str], act: Callable[[str], Any], done: str, under_way: str) -> None:
    """Do it to each, say so, and fail at the end if one could not be done."""
    if not sessions:
        note("no such sessions")
    failed: APIError | None = None
    # One that fails keeps no other from its turn: among a hundred that are ended one has often just ended by itself.
    # What failed last is the exit status, what failed before it is said at once.
    for number, session in enumerate(sessions, 1):
        of = f", {number} of {len(sessions)}" if len(sessions) > 1 else ""
        try:
            with waiting(f"{session} {under_way}{of}"):
                act(session)
            print(f"{plain(session)} {done}")
        except APIError as error:
            if failed is not None:
                note(f"wakegate: {failed}")
            failed = error
    if failed is not None:
        raise failed


def _chosen(
    gateway: Client, sessions: list[str] | None, everything: bool, older_than: str, *, state: str = ""
) -> list[str]:
    """The ids that were named, or those of all sessions, unused for long enough. Raises SettingsError."""
    if bool(sessions) == everything:
        raise SettingsError(["name sessions, or all of them with --all, and not both"])
    if older_than and not everything:
        raise SettingsError(["--older-than: goes with --all"])
    if sessions:
        return [is_id(each) for each in sessions]
    try:
        least = parse_lifetime(older_than) if older_than else 0.0
    except ValueError as error:
        raise SettingsError([f"--older-than: {error}"]) from error
    # All ids before the first is ended, so that no page is read of a list that this command is changing.
    return [each["id"] for each in gateway.list_sessions(state=state, limit=1000) if _unused(each) >= least]


def _amount(name: str, value: float) -> str:
    return readable_size(int(value)) if name == "memory" else f"{value:g}"


def _unused(session: Mapping[str, Any]) -> float:
    from datetime import UTC, datetime

    return (datetime.now(UTC) - datetime.fromisoformat(session["lastActiveAt"])).total_seconds()


def _first(limit: int, sessions: Iterator[Any]) -> Iterator[Any]:
    for _, session in zip(range(limit), sessions, strict=False):
        yield session


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SettingsError([f"--metadata {text}: expected KEY=VALUE"])
    return name, value

"""Which gateway a command speaks to: from flags, WAKEGATE_URL and WAKEGATE_API_KEY, or what `wakegate login` remembers.

A remembered key is sent to the address that it was remembered with and to no other: `--url` alone never takes a key to
a stranger.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from gateway.core.errors import SettingsError
from wakegate_client import APIError, Client
from wakegate_client.base import DEFAULT_URL

Url = Annotated[str, typer.Option("--url", metavar="URL", help="The gateway's address.", show_default=False)]
ApiKey = Annotated[
    str, typer.Option("--api-key", metavar="KEY", help="An API key; better in WAKEGATE_API_KEY.", show_default=False)
]


def complete_context(incomplete: str) -> list[str]:
    """Names of contexts for a shell's completion."""
    try:
        return [name for name in read_contexts()["contexts"] if name.startswith(incomplete)]
    except Exception:  # a prompt is no place for an error
        return []


Context = Annotated[
    str,
    typer.Option(
        "--context", metavar="NAME", help="What `wakegate login` remembers.", show_default=False,
        autocompletion=complete_context,
    ),
]  # fmt: skip
Ca = Annotated[str, typer.Option("--ca", metavar="FILE", help="Certificates to trust, a PEM file.", show_default=False)]
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OPTIONS: Mapping[str, Any] = {"url": Url, "api_key": ApiKey, "context": Context, "ca": Ca}


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway: its address, a key or "", and a file of certificates or ""."""

    url: str
    key: str = ""
    ca: str = ""


def contexts_file() -> Path:
    """Where contexts are remembered, readable by their user only."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "wakegate" / "contexts.json"


def read_contexts() -> dict[str, Any]:
    """`{"current": NAME, "contexts": {NAME: {"url", "key", "ca"}}}`. Raises SettingsError for a file that is none."""
    path = contexts_file()
    try:
        document = json.loads(path.read_text())
        for each in document["contexts"].values():
            if not all(isinstance(value, str) for value in each.values()):
                raise TypeError
    except FileNotFoundError:
        return {"current": "", "contexts": {}}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingsError([f"{path}: is no file of contexts; delete it, and log in again"]) from None
    return dict(document)


def write_contexts(document: Mapping[str, Any]) -> None:
    """Write the file so that nobody else ever reads it, and a crash leaves the old one."""
    path = contexts_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    half = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        json.dump(document, file, indent=2)
    half.replace(path)


def find_target(*, url: str = "", api_key: str = "", context: str = "", ca: str = "") -> Target:
    """Flags win over variables, those over the context. Raises SettingsError for a context that is not there."""
    known = read_contexts()
    name = context or os.environ.get("WAKEGATE_CONTEXT", "") or str(known.get("current", ""))
    saved = known["contexts"].get(name)
    if saved is None and (context or os.environ.get("WAKEGATE_CONTEXT")):
        raise SettingsError([f"there is no context {name}; `wakegate login --list` shows those there are"])
    saved = saved or {}
    # A context that was named is meant as a whole; the variables are for commands that name none.
    environ: Mapping[str, str] = {} if context else os.environ
    found = url or environ.get("WAKEGATE_URL") or saved.get("url") or DEFAULT_URL
    if not found.startswith(("http://", "https://")):
        raise SettingsError([f"{found}: is no address of a gateway; expected http://HOST:PORT or https://HOST"])
    # To the address that it was remembered with and no other: see above.
    same = found.rstrip("/") == str(saved.get("url", "")).rstrip("/")
    key = api_key or environ.get("WAKEGATE_API_KEY") or (saved.get("key", "") if same else "")
    return Target(found, key, ca or environ.get("WAKEGATE_CA") or (saved.get("ca", "") if same else ""))


def connect(target: Target) -> Client:
    """A client of a gateway. Raises SettingsError for a wrong address, and for certificates that cannot be read."""
    # Here, as httpx would put the key into its error.
    if not (target.key.isascii() and target.key.isprintable()):
        raise SettingsError(["the API key has characters that no key has, such as a line break; copy it again"])
    try:
        return Client(target.url, target.key, verify=tls_of(target) or True)
    except (httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise SettingsError([f"{target.url}: is no address of a gateway: {error}"]) from None


def tls_of(target: Target) -> ssl.SSLContext | None:
    """The context for an https address; None for http. Raises SettingsError."""
    if not target.url.startswith("https"):
        return None
    try:
        return ssl.create_default_context(cafile=target.ca or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"--ca {target.ca}: cannot be read: {error}"]) from error


def over_api(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `gateway: Client` as its first argument, and the flags by which one is found.

    `target: Target`, where it asks for that as well, is what the client was made of.
    """
    # Not options of `wakegate` itself: those would have to stand before the command, and people add --url at the end.
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.name not in ("gateway", "target")]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=kind)
        for name, kind in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def connected(**options: Any) -> Any:
        target = find_target(**{name: options.pop(name) for name in _OPTIONS})
        more = {"target": target} if "target" in signature.parameters else {}
        with connect(target) as gateway:
            return command(gateway, **more, **options)

    keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    connected.__signature__ = inspect.Signature([*keyword, *added])  # type: ignore[attr-defined]
    return connected


def complete_session(incomplete: str) -> list[str]:
    """Ids of sessions for a shell's completion: at most a page, nothing where no gateway answers."""
    try:
        with connect(find_target()) as gateway:
            from wakegate_client.calls import list_sessions

            # One page: a person waits for the Tab, and who has more sessions types more of the id.
            page = gateway.send(list_sessions({"limit": 200}))
            return [each["id"] for each in page["sessions"] if each["id"].startswith(incomplete)]
    except Exception:  # a prompt is no place for an error
        return []


def complete_runtime(incomplete: str) -> list[str]:
    """Names of runtimes, with and without their namespaces, for a shell's completion; nothing where none answers."""
    try:
        with connect(find_target()) as gateway:
            names = [f"{each['namespace']}/{each['name']}" for each in gateway.runtimes()]
    except Exception:  # as above
        return []
    return [each for each in (*names, *(name.partition("/")[2] for name in names)) if each.startswith(incomplete)]


def is_id(text: str) -> str:
    """The id of a session as it was given. Raises APIError where no session can have it.

    The gateway would take `a/b` for another path, and say that it has no such page.
    """
    if not _ID.fullmatch(text):
        raise APIError(404, "SESSION_NOT_FOUND", f"there is no session {text[:64]!r}")
    return text


SessionId = Annotated[
    str, typer.Argument(metavar="ID", autocompletion=complete_session, show_default=False, callback=is_id)
]

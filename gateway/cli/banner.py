"""The banner that `wakegate serve` prints once it listens: the URL, the runtimes, and commands to copy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

from gateway import __version__
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Kind, RuntimeKey
from gateway.core.settings import Settings, requires_identity

if TYPE_CHECKING:
    from gateway.app.gateway import Gateway


_DEFAULT_URL = "http://127.0.0.1:8080"  # of the command, whose package a gateway does not import


def banner_of(gateway: Gateway, url: str, settings: Settings) -> str:
    """The banner of a running gateway: its engine's summary is complete only then.

    Where logs are JSON, one such line: whoever collects them reads this stream line by line too.
    """
    engine = gateway.engine.summary().splitlines()
    if settings.log_format == "json":
        return _as_json(url, [str(runtime.key) for runtime in gateway.catalog.all()], engine, settings)
    runtimes = [f"{runtime.key}, warm pool of {runtime.pool.size}" for runtime in gateway.catalog.all()]
    return banner(url, settings, runtimes, engine, first_key(gateway.catalog))


def first_key(catalog: RuntimeCatalog) -> RuntimeKey:
    """The runtime for the banner's examples: a code interpreter if one is served. A cluster may not have any yet."""
    keys = sorted((runtime.key for runtime in catalog.all()), key=lambda key: key.kind is Kind.AGENT_RUNTIME)
    return keys[0] if keys else RuntimeKey("default", "my-interpreter")


def banner(url: str, settings: Settings, runtimes: Sequence[str], engine: Sequence[str], first: RuntimeKey) -> str:
    """The URL, the runtimes, isolation and limits, the state folder, and commands to copy.

    `engine` has lines `WORD: TEXT`; a word that repeats is printed once, so its texts form a list.
    """
    name = f"{first.namespace}/{first.name}"
    curl = 'curl -s -H "authorization: Bearer $KEY"' if requires_identity(settings) else "curl -s"
    invoke = f"{url}/v1/namespaces/{first.namespace}/{first.kind.segment}/{first.name}/invocations/"
    # python3 and not jq: it is there, as this is a program in it.
    pick = "python3 -c 'import json,sys; print(json.load(sys.stdin)[\"id\"])'"
    # An agent's paths and bodies are not known here, so its example shows the head of whatever it answers.
    lines = [f"  {curl} -i {invoke}"]
    if first.kind is not Kind.AGENT_RUNTIME:
        lines = [
            f"""  {curl} {invoke}api/execute -d '{{"command": ["python3", "-c", "print(\\"Hello\\")"]}}'""",
            f"""  S=$({curl} {url}/v1/sessions -d '{{"runtime": "{name}"}}' | {pick})""",
            f"""  {curl} {url}/api/execute -H "x-session-id: $S" -d '{{"command": ["uname", "-a"]}}'""",
        ]
        # The address only where the command would not find it by itself.
        key = "WAKEGATE_API_KEY=$KEY " if requires_identity(settings) else ""
        at = "" if url == _DEFAULT_URL else f" --url {url}"
        lines.append(f"  {key}.venv/bin/wakegate run{at} python3 -c 'print(1)'")
    if requires_identity(settings):
        lines.insert(0, f"  KEY=$(.venv/bin/wakegate keys create --role member{_store_flags(settings)})")
    facts = [("serves", line) for line in runtimes]
    facts += [(word, text) for word, _, text in (line.partition(": ") for line in engine)]
    facts.append(("access", _access(settings)))
    facts.append(("console", f"{url}/ in a browser"))
    facts.append(("state", str(settings.state_dir)))
    if settings.workers > 1:
        facts.append(("workers", f"{settings.workers} processes share this port"))
    before = ["", *(word for word, _ in facts)]  # each line's word is left out if the line above has the same
    table = [f"  {'' if word == last else word:<10} {text}" for (word, text), last in zip(facts, before, strict=False)]
    return "\n".join([f"Wakegate {__version__} listens on {url}", *table, "Try it:", *lines])


def _as_json(url: str, runtimes: Sequence[str], engine: Sequence[str], settings: Settings) -> str:
    line = {
        "event": f"Wakegate {__version__} listens on {url}",
        "level": "info",
        "logger": __name__,
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "url": url,
        "runtimes": list(runtimes),
        "engine": list(engine),
        "access": _access(settings),
    }
    return orjson.dumps(line).decode()


def _access(settings: Settings) -> str:
    """One line: whether requests need a key, and who can send some where they do not."""
    if requires_identity(settings):
        return "requests need an API key or a token (docs/security.md)"
    if settings.insecure_no_auth:
        return "WARNING: whoever reaches this address may run code here (--insecure-no-auth)"
    return "all users of this machine; requests need no key"


def _store_flags(settings: Settings) -> str:
    """The flags by which another command finds the same store."""
    if settings.store:
        return (
            f' --store "$WAKEGATE_STORE" --store-prefix {shlex.quote(settings.store_prefix)}'  # it may have a password
        )
    return f" --state-dir {shlex.quote(str(settings.state_dir))}"

"""The banner that `wakegate serve` prints once it listens: the URL, the runtimes, and commands to copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway import __version__
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Kind, RuntimeKey
from gateway.core.settings import Settings

if TYPE_CHECKING:
    from gateway.app import Gateway


def banner_of(gateway: Gateway, url: str, settings: Settings) -> str:
    """The banner of a gateway that runs."""
    runtimes = [f"{runtime.key}, warm pool of {runtime.pool.size}" for runtime in gateway.catalog.all()]
    return banner(url, settings, runtimes, gateway.engine_summary().splitlines(), first_key(gateway.catalog))


def first_key(catalog: RuntimeCatalog) -> RuntimeKey:
    """The runtime for the banner's examples: a code interpreter if one is served. A cluster may have none yet."""
    keys = sorted((runtime.key for runtime in catalog.all()), key=lambda key: key.kind is Kind.AGENT_RUNTIME)
    return keys[0] if keys else RuntimeKey("default", "my-interpreter")


def banner(url: str, settings: Settings, runtimes: Sequence[str], engine: Sequence[str], first: RuntimeKey) -> str:
    """What a person sees at the start: where it listens, what it serves, how it isolates, and lines to copy."""
    name = f"{first.namespace}/{first.name}"
    invoke = f"{url}/v1/namespaces/{first.namespace}/{first.kind.segment}/{first.name}/invocations/"
    pick = "python3 -c 'import json,sys; print(json.load(sys.stdin)[\"id\"])'"
    lines = [f"  curl -si {invoke}"]  # an agent's paths and bodies are not known here
    if first.kind is not Kind.AGENT_RUNTIME:
        lines = [
            f"""  curl -s {invoke}api/execute -d '{{"command": ["python3", "-c", "print(\\"Hello\\")"]}}'""",
            f"""  S=$(curl -s {url}/v1/sessions -d '{{"runtime": "{name}"}}' | {pick})""",
            f"""  curl -s {url}/api/execute -H "x-session-id: $S" -d '{{"command": ["uname", "-a"]}}'""",
        ]
    return "\n".join([
        f"Wakegate {__version__} listens on {url}",
        *(f"  {'serves' if not i else '':<10} {line}" for i, line in enumerate(runtimes)),
        *(f"  {word:<10} {text}" for word, _, text in (line.partition(": ") for line in engine)),
        f"  {'state':<10} {settings.state_dir}",
        *([f"  {'workers':<10} {settings.workers} processes share this port"] if settings.workers > 1 else []),
        "Try it:",
        *lines,
    ])  # fmt: skip

"""The operations on agents, as the client sends them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any
from urllib.parse import quote

from wakegate_client.answers import read_json
from wakegate_client.calls import Call


def _agent(name: str, tail: str = "") -> str:
    return f"/v1/agents/{quote(name, safe='')}{tail}"


# `slow`: without a limit on the time to the answer. 64 MiB over a thin line and an installation take minutes; the
# client's 60 s would give up on what the gateway goes on with.
def upload_bundle(archive: IO[bytes]) -> Call[Any]:
    """Answers `{"digest"}`. The archive is read while it is sent."""
    return Call("POST", "/v1/agent-bundles", read_json, content=archive, slow=True)


def install(requirements: str) -> Call[Any]:
    """The environment of a list of requirements: answers `{"digest", "cached", "seconds"}`."""
    return Call("POST", "/v1/agent-environments", read_json, json={"requirements": requirements}, slow=True)


def create_agent(name: str, fields: Mapping[str, Any]) -> Call[Any]:
    """A new agent. `fields`: spec, bundle, environment, strategy."""
    return Call("POST", "/v1/agents", read_json, json={"name": name, **fields})


def change_agent(name: str, fields: Mapping[str, Any]) -> Call[Any]:
    """PATCH /v1/agents/{name}: makes its next revision."""
    return Call("PATCH", _agent(name), read_json, json=fields)


def get_agent(name: str) -> Call[Any]:
    """GET /v1/agents/{name}: its specification and its status."""
    return Call("GET", _agent(name), read_json)


def get_revisions(name: str) -> Call[Any]:
    """`{"revisions"}`, the newest first."""
    return Call("GET", _agent(name, "/revisions"), read_json)


def get_rollout(name: str) -> Call[Any]:
    """GET /v1/agents/{name}/rollout: which revisions are served, and which is coming."""
    return Call("GET", _agent(name, "/rollout"), read_json)


def change_rollout(name: str, action: str, to: int | None = None, *, discard_files: bool = False) -> Call[Any]:
    """Undo, pause, resume, promote, move."""
    body: dict[str, Any] = {"action": action} if to is None else {"action": action, "to": to}
    if discard_files:
        body["discardFiles"] = True
    return Call("POST", _agent(name, "/rollout"), read_json, json=body)

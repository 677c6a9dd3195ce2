"""What E2B's API keeps of a sandbox in its session's record, and the record as E2B's JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.core.model import PRIVATE_METADATA, Runtime, Session, SessionState
from gateway.core.units import rfc3339

_KEY = PRIVATE_METADATA + "e2b"
ENVD_VERSION = "0.6.7"  # what the SDKs may expect of files and processes; see docs/clients.md
CLIENT_ID = "wakegate"
_MAX_ENVS_BYTES = 16 << 10
_RUNNING = frozenset((SessionState.CREATING, SessionState.ACTIVE, SessionState.WAKING, SessionState.LOST))


@dataclass(frozen=True, slots=True)
class E2BRecord:
    """What a sandbox was created with. `envs` are variables of all its commands and code."""

    template: str = ""
    envs: Mapping[str, str] = field(default_factory=dict)
    auto_pause: bool = False  # at its timeout it is paused, not killed
    auto_resume: bool = True
    allow_internet: bool | None = None  # as the client asked

    def stored(self) -> dict[str, str]:
        """As entries of a session's metadata."""
        value = {
            "template": self.template,
            "envs": dict(self.envs),
            "pause": self.auto_pause,
            "resume": self.auto_resume,
            "internet": self.allow_internet,
        }
        return {_KEY: orjson.dumps(value).decode()}


def record_of(session: Session) -> E2BRecord:
    """What a session's record keeps; of one that another surface made, its runtime's name as the template."""
    text = session.metadata.get(_KEY)
    if text is None:
        return E2BRecord(template=session.runtime.name, auto_pause=True)
    value = orjson.loads(text)
    return E2BRecord(value["template"], value["envs"], value["pause"], value["resume"], value["internet"])


def is_running(session: Session) -> bool:
    """Whether E2B would call it running; else it is paused."""
    return session.state in _RUNNING


def ends_at(session: Session) -> float:
    """When its timeout passes, in epoch seconds: at the end of its life or, if it pauses then, of its idle timeout."""
    return min(session.idle_at if record_of(session).auto_pause else session.expires_at, session.expires_at)


def sandbox_document(session: Session, token: str, domain: str | None) -> dict[str, Any]:
    """The answer to creating or connecting to a sandbox."""
    record = record_of(session)
    return {
        "sandboxID": session.id,
        "templateID": record.template,
        "alias": record.template,
        "clientID": CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": token,
        "trafficAccessToken": token,
        "domain": domain,
    }


def listed_document(session: Session, runtime: Runtime | None) -> dict[str, Any]:
    """A sandbox as GET /v2/sandboxes lists it."""
    record = record_of(session)
    limits = (runtime or Runtime(session.runtime)).limits.resized(session.resources)
    return {
        "sandboxID": session.id,
        "templateID": record.template,
        "alias": record.template,
        "clientID": CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "startedAt": rfc3339(session.created_at),
        "endAt": rfc3339(ends_at(session)),
        "state": "running" if is_running(session) else "paused",
        "cpuCount": max(1, round(limits.cpus or 1)),
        "memoryMB": (limits.memory or 0) >> 20,
        "diskSizeMB": (limits.workspace_size or 0) >> 20,
        "metadata": session.public_metadata,
    }


def detail_document(session: Session, runtime: Runtime | None, domain: str | None) -> dict[str, Any]:
    """A sandbox as GET /sandboxes/{id} has it: with its domain and what becomes of it when it times out."""
    record = record_of(session)
    return {
        **listed_document(session, runtime),
        "domain": domain,
        "lifecycle": {"autoResume": record.auto_resume, "onTimeout": "pause" if record.auto_pause else "kill"},
        "allowInternetAccess": bool(record.allow_internet),
    }


def fits(envs: Mapping[str, str]) -> bool:
    """Whether variables are small enough to be kept in the record."""
    return sum(len(name.encode()) + len(value.encode()) for name, value in envs.items()) <= _MAX_ENVS_BYTES

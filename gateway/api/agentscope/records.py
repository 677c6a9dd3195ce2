"""What AgentScope's API keeps of a sandbox in its session's record, and the record as its JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.core.errors import BadRequestError
from gateway.core.model import PRIVATE_METADATA, Session

_KEY = PRIVATE_METADATA + "agentscope"
_MAX_META_BYTES = 4096
_CONTEXT = "session_ctx_id"  # in `meta`: the client's own name of a session


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """What a sandbox was created with."""

    type: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> str:
        """The client's name of its session; empty: it gave none."""
        value = self.meta.get(_CONTEXT)
        return value if isinstance(value, str) else ""

    def stored(self) -> dict[str, str]:
        """As entries of a session's metadata. Raises BadRequestError if `meta` is too large."""
        text = orjson.dumps({"type": self.type, "meta": dict(self.meta)}).decode()
        if len(text) > _MAX_META_BYTES:
            raise BadRequestError(f"meta: expected at most {_MAX_META_BYTES} bytes of JSON")
        return {_KEY: text}


def record_of(session: Session) -> SandboxRecord | None:
    """What a session's record keeps; None for one that another surface made."""
    text = session.metadata.get(_KEY)
    if text is None:
        return None
    value = orjson.loads(text)
    return SandboxRecord(value["type"], value["meta"])


def info_document(session: Session, record: SandboxRecord) -> dict[str, Any]:
    """The answer to `get_info`. Clients choose their class by the type in `version`, and dial only this server."""
    return {
        "session_id": session.id,
        "container_id": session.id,
        "container_name": session.id,
        "url": "",
        "ports": [],
        "mount_dir": None,
        "storage_path": None,
        "runtime_token": "",
        "version": f"wakegate/runtime-sandbox-{record.type}:latest",
        "meta": dict(record.meta),
        "timeout": 60,
        "session_ctx_id": record.context,
    }

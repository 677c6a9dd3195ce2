"""What a SandboxClaim asks for, read and checked; the same where a client sends it and where a cluster has it. Pure.

Each function raises BadRequestError; `require_runtime` NotFoundError.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gateway.api.agent_sandbox.records import Claim
from gateway.core.agent_sandbox import CLAIM_GROUP
from gateway.core.errors import BadRequestError, NotFoundError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Kind, Runtime, RuntimeKey

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]{0,255}")
_MAX_ENV, _MAX_LABELS = 100, 64
_MAX_VALUE_CHARS = 4096
_MAX_RECORD_BYTES = 16 << 10  # of all that a claim keeps: a record is read and written whole


def read_claim(body: Mapping[str, Any], namespace: str) -> Claim:
    """A SandboxClaim that is to be made."""
    metadata, spec = _object(body, "metadata"), _object(body, "spec")
    name = metadata.get("name")
    if name is None and isinstance(metadata.get("generateName"), str):
        name = f"{metadata['generateName'][:240]}{secrets.token_hex(3)}"
    name = require_name(name, "metadata.name")
    pool = _object(spec, "warmPoolRef", "spec.").get("name")
    if not isinstance(pool, str) or not pool:
        raise BadRequestError("spec.warmPoolRef.name: missing; it names a code interpreter, as my-interpreter")
    if spec.get("volumeClaimTemplates"):
        raise BadRequestError("spec.volumeClaimTemplates: there are no volumes here; a session's workspace is kept")
    life = _object(spec, "lifecycle", "spec.")
    shutdown_time = life.get("shutdownTime")
    if shutdown_time is not None and not isinstance(shutdown_time, str):
        raise BadRequestError("spec.lifecycle.shutdownTime: expected a time of RFC 3339")
    claim = Claim(
        namespace, name, pool[:253], _read_env(spec.get("env")), _read_texts(metadata, "labels"),
        _read_texts(metadata, "annotations"), shutdown_time,
    )  # fmt: skip
    if len(next(iter(claim.stored().values()))) > _MAX_RECORD_BYTES:
        raise BadRequestError(f"env, labels and annotations: expected at most {_MAX_RECORD_BYTES} bytes together")
    return claim


def require_runtime(catalog: RuntimeCatalog, claim: Claim, *, others: tuple[str, ...] = ("default",)) -> Runtime:
    """The code interpreter that a claim's warm pool names, in its own namespace, else in these `others`."""
    for namespace in (claim.namespace, *others):
        runtime = catalog.get(RuntimeKey(namespace, claim.pool))
        if runtime is not None:
            return runtime
    served = ", ".join(each.key.name for each in catalog.all() if each.key.kind is Kind.CODE_INTERPRETER)
    raise NotFoundError(
        f'sandboxwarmpools.{CLAIM_GROUP} "{claim.pool[:253]}" not found: no code interpreter has this name;'
        f" there are {served[:500] or 'none'}"
    )


def require_name(text: Any, what: str) -> str:
    """A field that is a name by the rules of Kubernetes. Raises BadRequestError."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise BadRequestError(f"{what}: expected a name of Kubernetes, got {repr(text)[:64]}")
    return text


def seconds_until(text: str, now: float) -> float:
    """Seconds to a time of RFC 3339, which must not be past."""
    try:
        at = datetime.fromisoformat(text[:64])
        seconds = at.timestamp() - now
    except (ValueError, OverflowError):
        raise BadRequestError(f"spec.lifecycle.shutdownTime: expected RFC 3339, got {text[:64]!r}") from None
    if seconds <= 0:
        raise BadRequestError(f"spec.lifecycle.shutdownTime: {text[:64]} is past")
    return seconds


def _object(body: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequestError(f"{where}{name}: expected an object")
    return value


def _read_env(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > _MAX_ENV:
        raise BadRequestError(f"spec.env: expected a list of at most {_MAX_ENV} entries")
    env: dict[str, str] = {}
    for each in value:
        name = each.get("name") if isinstance(each, dict) else None
        text = each.get("value", "") if isinstance(each, dict) else None
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name) or not isinstance(text, str) or "\0" in text:
            raise BadRequestError(f"spec.env: expected name and value, got {repr(each)[:64]}")
        env[name] = text
    return env


def _read_texts(metadata: Mapping[str, Any], name: str) -> dict[str, str]:
    value = metadata.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MAX_LABELS:
        raise BadRequestError(f"metadata.{name}: expected an object of at most {_MAX_LABELS} entries")
    for key, text in value.items():
        if not isinstance(text, str) or len(key) > 317 or len(text) > _MAX_VALUE_CHARS:
            raise BadRequestError(f"metadata.{name}.{key[:64]}: expected text of at most {_MAX_VALUE_CHARS} characters")
    return value

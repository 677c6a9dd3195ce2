"""Keys, tenants, their limits and what they used."""

from __future__ import annotations

from gateway.api.openapi.schemas.parts import (
    COUNT,
    DURATION,
    EGRESS,
    MOMENT,
    NUMBER,
    TEXT,
    Schema,
    array_of,
    nullable,
    obj,
    ref,
)
from gateway.core.identity import KEY_ROLES

_ROLE: Schema = {"enum": [str(role) for role in KEY_ROLES]}
_KEY: dict[str, Schema] = {
    "id": TEXT,
    "role": _ROLE,
    "tenant": TEXT,
    "name": TEXT,
    "user": TEXT,
    "runtimes": array_of(TEXT),
    "createdAt": MOMENT,
    "expiresAt": nullable(MOMENT),
    "lastUsedAt": nullable(MOMENT),
}
_QUANTITY: Schema = {
    "description": "A number, or a quantity such as 500m or 64Gi.",
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "examples": ["64Gi"]}],
}
_LIMITS: Schema = {
    **obj(
        sessions=COUNT, sandboxes=COUNT, vcpu=_QUANTITY, memory=_QUANTITY, gpus=COUNT, hibernatedSessions=COUNT,
        storedBytes=_QUANTITY,
        requestsPerSecond={"type": "number", "minimum": 0.001},
        requestBurst={"type": "integer", "minimum": 1},
        createsPerMinute={"type": "number", "minimum": 0.001},
        maxDuration=DURATION,
        runtimes=array_of(TEXT),
        publicPorts={"type": "boolean", "description": "false: no session opens a port to anybody."},
        egress=EGRESS,
    ),
    "description": "What is absent is not limited.",
}  # fmt: skip
_USED = (
    "sandboxSeconds idleSeconds hibernatedSeconds warmPoolSeconds cpuSeconds memoryByteSeconds egressBytes requests "
    "networkSentBytes networkReceivedBytes "
    "startsWarm startsCold startsWake startsWakeCold vcpuSeconds memoryLimitByteSeconds gpuSeconds storedByteHours"
)

TENANTS: dict[str, Schema] = {
    "NewKey": obj(
        "role",
        role=_ROLE,
        tenant=TEXT,
        name=TEXT,
        user=TEXT,
        runtimes=array_of(TEXT),
        expires=DURATION,
    ),
    "Key": obj("id role tenant createdAt", **_KEY),
    "NewKeyAnswer": obj(
        "key e2bKey id role tenant createdAt",
        key=TEXT,
        e2bKey={**TEXT, "description": "The same key, spelled as E2B's SDKs take it."},
        **_KEY,
    ),
    "Keys": obj("keys", keys=array_of(ref("Key"))),
    "Rotation": obj(overlap=DURATION),
    "Limits": _LIMITS,
    "NewTenant": obj(limits=ref("Limits")),
    "Tenant": obj("name limits used", name=TEXT, limits=ref("Limits"), used={
        "description": "What its sessions hold; empty while nothing of that is limited.",
        "type": "object", "additionalProperties": NUMBER,
    }),
    "Tenants": obj("tenants", tenants=array_of(ref("Tenant"))),
    "Caller": obj(
        "subject tenant role",
        subject=TEXT,
        tenant=TEXT,
        user=TEXT,
        role=TEXT,
        runtimes=array_of(TEXT),
        expiresAt=nullable(MOMENT),
    ),
    "Usage": obj(
        "from to usage",
        **{"from": MOMENT, "to": MOMENT, "currency": TEXT},
        usage=array_of(
            obj(
                _USED,
                **dict.fromkeys(("tenant", "runtime", "size", "session", "day", "hour"), TEXT),
                **dict.fromkeys(_USED.split(), NUMBER),
                **dict.fromkeys(("cost", "costWithoutHibernation", "idleCost", "warmPoolCost"), NUMBER),
            )
        ),
    ),
}  # fmt: skip

"""Sessions, what happens in them, and the native API's errors."""

from __future__ import annotations

from gateway.api.openapi.schemas.parts import (
    COUNT,
    DURATION,
    EGRESS,
    METADATA,
    MOMENT,
    NUMBER,
    RUNTIME_NAME,
    TEXT,
    Schema,
    array_of,
    nullable,
    obj,
    ref,
)

_AMOUNT: Schema = {
    "description": "A number, or text such as 500m or 2Gi.",
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["2Gi"]}],
}

SESSIONS: dict[str, Schema] = {
    "Error": obj("error code", error=TEXT, code=TEXT),
    "SandboxError": obj(
        "error", error=TEXT, code={"description": "A status, or a word.", "type": ["integer", "string"]}
    ),
    "Message": obj("message", message=TEXT),
    "NewSession": obj(
        runtime=RUNTIME_NAME, ttl=DURATION, idleTimeout=DURATION, metadata=METADATA, egress=nullable(EGRESS),
        publicPorts=nullable(array_of({"type": "integer", "minimum": 1, "maximum": 65535})),
    ),
    "SessionChange": obj(
        ttl=nullable(DURATION), idleTimeout=DURATION, metadata=METADATA,
        resources=nullable(obj(
            cpu=nullable(_AMOUNT), memory=nullable(_AMOUNT), processes=nullable({"type": "integer", "minimum": 8}),
        )),
    ),
    "Session": obj(
        "id runtime state createdAt lastActiveAt expiresAt idleTimeout metadata",
        id=TEXT,
        runtime=obj("namespace name kind", namespace=TEXT, name=TEXT, kind=TEXT),
        tenant=TEXT,
        state={"enum": ["creating", "active", "hibernating", "hibernated", "waking", "lost", "terminated"]},
        start=nullable(TEXT),
        createdAt=MOMENT,
        lastActiveAt={**MOMENT, "description": "of a session that has ended: when it ended"},
        expiresAt=MOMENT,
        idleTimeout=NUMBER,
        sandboxId=nullable(TEXT),
        reason=TEXT,
        metadata=METADATA,
        egress=nullable(EGRESS),
        publicPorts=array_of({"type": "integer"}),
        resources=nullable(obj(cpu=NUMBER, memory=COUNT, processes=COUNT)),
    ),
    "Sessions": obj("sessions next", sessions=array_of(ref("Session")), next=nullable(TEXT)),
    "Event": obj(
        "id event at runtime details",
        id=TEXT, event=TEXT, at=MOMENT, runtime=TEXT, session=TEXT, tenant=TEXT, details={"type": "object"},
    ),
    "Events": obj("events lost next", events=array_of(ref("Event")), lost=COUNT, next=TEXT),
    "SessionLogs": obj("events", events=array_of(ref("Event"))),
    "SessionMetrics": obj(
        "session state since sandbox requests egressBytes sandboxSeconds hibernatedSeconds cpuSeconds starts",
        session=TEXT,
        state=TEXT,
        since={**MOMENT, "description": "The start of this gateway, from which requests, seconds and starts count."},
        sandbox=nullable(
            obj(
                "cpuSeconds cores cpuLimit memoryBytes memoryLimit processes processesLimit diskBytes diskLimit",
                cpuSeconds=nullable({"type": "number"}),
                cores=nullable({"type": "number"}),
                cpuLimit=nullable({"type": "number"}),
                memoryBytes=nullable({"type": "number"}),
                memoryLimit=nullable(COUNT),
                processes=nullable(COUNT),
                processesLimit=nullable(COUNT),
                diskBytes=nullable(COUNT),
                diskLimit=nullable(COUNT),
            )
        ),
        requests=COUNT,
        egressBytes=COUNT,
        sandboxSeconds={"type": "number"},
        hibernatedSeconds={"type": "number"},
        cpuSeconds={"type": "number"},
        starts=obj("warm cold wake wake-cold", warm=COUNT, cold=COUNT, wake=COUNT, **{"wake-cold": COUNT}),
    ),
    "SessionAudit": obj(
        "events complete",
        events=array_of(
            obj(
                "at line action actor status code runtime requestId detail",
                at=MOMENT,
                line={**COUNT, "description": "Its `seq` in the trail."},
                action=TEXT,
                actor=obj("", subject=TEXT, tenant=TEXT, role=TEXT, keyId=TEXT, address=TEXT),
                status={**COUNT, "description": "Of the answer; 0 where there was none."},
                code=TEXT,
                runtime=TEXT,
                requestId=TEXT,
                detail={"type": "object"},
            )
        ),
        complete={"type": "boolean", "description": "False: there are older lines, or they were not read."},
    ),
    "ConsoleSession": obj("token expiresAt", token=TEXT, expiresAt=MOMENT),
    "NewSessionToken": obj(ttl=DURATION, paths=array_of(TEXT), ports=array_of({"type": "integer"})),
    "SessionToken": obj("token expiresAt", token=TEXT, expiresAt=MOMENT),
    "SessionEgress": obj(
        "allowed connections bytesSent bytesReceived leftOut log",
        allowed=obj("runtime", runtime=EGRESS, session=nullable(EGRESS), tenant=nullable(EGRESS)),
        connections=obj("open", open=COUNT, closed=COUNT, refused=COUNT, failed=COUNT, cut=COUNT),
        bytesSent=COUNT,
        bytesReceived=COUNT,
        leftOut={**COUNT, "description": "Connections that came too fast for a line each."},
        log=array_of(
            obj(
                "at outcome protocol host port",
                at=MOMENT,
                outcome={"enum": ["open", "closed", "refused", "failed", "cut"]},
                protocol={"enum": ["connect", "http", "socks5"]},
                host=TEXT,
                port=COUNT,
                address=TEXT,
                rule={"type": "string", "description": "The entry that allows it."},
                reason=TEXT,
                setting={"type": "string", "description": "What would allow it."},
                bytesSent=COUNT,
                bytesReceived=COUNT,
                seconds=NUMBER,
                requests={**COUNT, "description": "Requests that were seen and passed on, where TLS is ended."},
                cached={**COUNT, "description": "Of these, answered from the package cache."},
                secrets={"type": "string", "description": "Names of the secrets that they got, by commas."},
            )
        ),
    ),
    "Status": obj("status", status=TEXT),
    "NotReady": obj("status", status=TEXT, reasons=array_of(TEXT), error=TEXT),
    "Runtimes": obj(
        "runtimes",
        runtimes=array_of(
            obj("namespace name kind pool", pool={"type": "object"}, manifest={"type": ["object", "null"]}),
        ),
    ),
    "NewSandbox": obj("namespace name", namespace=TEXT, name=TEXT, ttl=DURATION, metadata=METADATA),
    "Sandbox": obj(
        "kind sessionId sandboxId sandboxName entryPoints",
        kind={"enum": ["Sandbox", "SandboxClaim"]},
        sessionId=TEXT,
        sandboxId=TEXT,
        sandboxName=TEXT,
        entryPoints=array_of(obj("path protocol endpoint", path=TEXT, protocol=TEXT, endpoint=TEXT)),
    ),
}  # fmt: skip

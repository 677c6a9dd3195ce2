"""Agents, their revisions, rollouts, schedules and tasks."""

from __future__ import annotations

from gateway.api.openapi.schemas.parts import (
    COUNT,
    DURATION,
    FLAG,
    MOMENT,
    NUMBER,
    TEXT,
    Schema,
    array_of,
    nullable,
    obj,
    ref,
)

AGENTS: dict[str, Schema] = {
    "NewAgent": obj(
        "name", name=TEXT, namespace=TEXT, owner=TEXT, spec={"type": "object"}, manifest={"type": "object"},
        strategy=ref("AgentStrategy"), reason=TEXT, bundle=TEXT, environment=TEXT,
    ),
    "AgentChange": obj(
        spec={"type": "object", "description": "A JSON merge patch (RFC 7396)."}, strategy=ref("AgentStrategy"),
        reason=TEXT, bundle=TEXT, environment=TEXT,
    ),
    "AgentStrategy": obj(
        canary=obj(weight={"type": "number", "minimum": 0, "maximum": 100}, header=TEXT, value=TEXT),
        window=DURATION, startTimeout=DURATION, maxErrorRate=NUMBER, minRequests={"type": "integer", "minimum": 1},
    ),
    "NewFlatAgent": obj(
        "name", name=TEXT, namespace=TEXT, image=TEXT, command=array_of(TEXT), args=array_of(TEXT),
        env={"type": "object", "additionalProperties": TEXT}, port=COUNT, cpu_request=COUNT, cpu_limit=COUNT,
        memory_request=COUNT, memory_limit=COUNT, gpu_count=COUNT,
        scheduling_policy={"enum": ["spread", "pack", "balanced"]}, owner=TEXT, expose_service=FLAG, replicas=COUNT,
        labels={"type": "object", "additionalProperties": TEXT},
    ),
    "Agent": obj(
        "namespace name owner phase managedBy path", namespace=TEXT, name=TEXT, owner=TEXT,
        phase={"enum": ["Pending", "Running", "Updating", "Stopped", "Failed"]},
        revision=nullable(COUNT), managedBy={"enum": ["api", "manifest"]}, path=TEXT,
        spec={"type": "object"}, status={"type": "object"},
    ),
    "Agents": obj("agents next", agents=array_of(ref("Agent")), next=nullable(TEXT)),
    "AgentTask": obj(
        "id namespace agent state attempts createdAt",
        id=TEXT, namespace=TEXT, agent=TEXT, path=TEXT, session=nullable(TEXT),
        state={"enum": ["queued", "running", "succeeded", "failed", "dead", "cancelled"]},
        createdAt=NUMBER, createdBy=TEXT, startedAt=nullable(NUMBER), finishedAt=nullable(NUMBER),
        attempts=COUNT, maxAttempts=COUNT, nextAttemptAt=nullable(NUMBER), cancelRequested=FLAG,
        error=nullable(TEXT), schedule=nullable(TEXT), progress=obj(bytes=COUNT, events=COUNT, last=TEXT),
        result=nullable({"type": "object"}), webhook=nullable({"type": "object"}),
    ),
    "AgentTasks": obj("tasks next", tasks=array_of(ref("AgentTask")), next=nullable(TEXT)),
    "AgentSchedules": obj("schedules", schedules=array_of(obj(
        "name cron timezone path next last lastTask lastOutcome", name=TEXT, cron=TEXT, timezone=TEXT, path=TEXT,
        next=nullable(NUMBER), last=nullable(NUMBER), lastTask=nullable(TEXT), lastOutcome=nullable(TEXT),
    ))),
    "WebhookSecret": obj("secret", secret=TEXT),
    "AgentRevisions": obj("revisions", revisions=array_of(obj(
        "revision createdAt createdBy diff", revision=COUNT, createdAt=MOMENT, createdBy=TEXT, reason=TEXT,
        spec={"type": "object"}, diff=array_of(obj("field", field=TEXT)),
    ))),
    "AgentRollout": obj(
        "stable served draining rollout events", stable=COUNT, served=array_of(COUNT), draining=array_of(COUNT),
        rollout=nullable(
            obj("revision previous phase paused", revision=COUNT, previous=COUNT, phase=TEXT, paused=FLAG)
        ),
        events=array_of(obj("at revision text", at=MOMENT, revision=COUNT, text=TEXT)),
        moved=array_of(TEXT), kept=array_of(obj("session reason", session=TEXT, reason=TEXT)),
    ),
    "AgentBundle": obj("digest bytes", digest=TEXT, bytes=COUNT),
    "AgentEnvironment": obj(
        "digest cached seconds", digest=TEXT, cached={"type": "boolean"}, seconds={"type": "number"}
    ),
    "NewAgentEnvironment": obj("requirements", requirements=TEXT),
    "AgentRolloutAction": obj(
        "action", action={"enum": ["undo", "pause", "resume", "promote", "move"]}, to={"type": "integer", "minimum": 1},
        discardFiles=FLAG,
    ),
}  # fmt: skip

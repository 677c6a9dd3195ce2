"""Schemas of bodies, named as in the document. Clients can rely on these fields; more may be added."""

from __future__ import annotations

from typing import Any

from gateway.core.identity import KEY_ROLES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
DURATION: Schema = {
    "description": "Seconds, or text such as 90s, 15m or 8h.",
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["15m"]}],
}
METADATA: Schema = {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 64}
RUNTIME_NAME: Schema = {
    "description": "namespace/name, or name in the namespace default.",
    "type": "string",
    "examples": ["default/my-interpreter"],
}


EGRESS: Schema = {
    "description": "What may be reached: entries as in spec.wakegate.egress (docs/egress.md).",
    "type": "array",
    "maxItems": 256,
    "items": {"anyOf": [{"type": "string", "examples": ["pypi"]}, {"type": "object"}]},
}


def ref(name: str) -> Schema:
    """A reference to one of SCHEMAS by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(required: str = "", /, **properties: Schema) -> Schema:
    """An object; `required`: names of fields, separated by spaces."""
    # Without additionalProperties: false, since fields may be added to an answer without a new version of the API.
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required.split()} if required else schema


def array_of(items: Schema) -> Schema:
    """An array of any length, with all items of one schema."""
    return {"type": "array", "items": items}


_AMOUNT: Schema = {
    "description": "A number, or text such as 500m or 2Gi.",
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["2Gi"]}],
}


def nullable(schema: Schema) -> Schema:
    """The schema, or null: the field is always present, as OpenAI's clients expect."""
    return {"anyOf": [schema, {"type": "null"}]}


EVENTS: Schema = {**obj(event=TEXT, data=TEXT, id=TEXT), "description": "Server-sent events, each with these fields."}
_LISTED_FILE = obj("name size modified mode is_dir", name=TEXT, name_encoded=TEXT, size=COUNT, is_dir=FLAG)
_E2B_LISTED: dict[str, Schema] = {
    "sandboxID": TEXT,
    "templateID": TEXT,
    "alias": TEXT,
    "clientID": TEXT,
    "envdVersion": TEXT,
    "startedAt": MOMENT,
    "endAt": MOMENT,
    "state": {"enum": ["running", "paused"]},
    "cpuCount": COUNT,
    "memoryMB": COUNT,
    "diskSizeMB": COUNT,
    "metadata": METADATA,
}
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
_CALL = obj(
    "id function",
    id={"type": "string", "minLength": 1, "maxLength": 256},
    type={"const": "function"},
    function=obj("name arguments", name=TEXT, arguments={"type": "string", "description": "JSON."}),
)
_ITEM = obj("type call_id name arguments", type={"const": "function_call"}, call_id=TEXT, name=TEXT, arguments=TEXT)
_BLOCK = obj("type id name input", type={"const": "tool_use"}, id=TEXT, name=TEXT, input={"type": "object"})
_COMMON_FIELDS: dict[str, Schema] = {
    "session_id": {"type": "string", "description": "The session to run in; a new one is made if absent."},
    "runtime": RUNTIME_NAME,
    "stream": {"type": "boolean", "description": "Answer progress as server-sent events."},
}
_STREAM_FIELDS: dict[str, Schema] = {
    "stream": {"type": "boolean", "description": "Answer server-sent events as it happens."},
    "background": {"type": "boolean", "description": "With stream: it continues when the client disconnects."},
}
_PAGE = "object data first_id last_id has_more"

SCHEMAS: dict[str, Schema] = {
    "Error": obj("error code", error=TEXT, code=TEXT),
    "SandboxError": obj(
        "error", error=TEXT, code={"description": "A status, or a word.", "type": ["integer", "string"]}
    ),
    "Message": obj("message", message=TEXT),
    "E2BError": obj("code message", code=COUNT, message=TEXT, error_code=TEXT),
    "E2BNewSandbox": obj(
        templateID=TEXT,
        timeout={"type": "number", "minimum": 0},
        metadata=METADATA,
        envVars={"type": "object", "additionalProperties": TEXT},
        autoPause=FLAG,
        autoResume=obj(enabled=FLAG),
        allow_internet_access=FLAG,
    ),
    "E2BTimeout": obj(timeout={"type": "number", "minimum": 0}, duration={"type": "number", "minimum": 0}),
    "E2BSandbox": obj(
        "sandboxID templateID clientID envdVersion",
        sandboxID=TEXT,
        templateID=TEXT,
        alias=TEXT,
        clientID=TEXT,
        envdVersion=TEXT,
        envdAccessToken=TEXT,
        trafficAccessToken=TEXT,
        domain=nullable(TEXT),
    ),
    "E2BListedSandbox": obj("sandboxID templateID clientID startedAt endAt state envdVersion", **_E2B_LISTED),
    "E2BSandboxDetail": obj(
        "sandboxID templateID clientID startedAt endAt state envdVersion",
        **_E2B_LISTED,
        domain=nullable(TEXT),
        lifecycle=obj(autoResume=FLAG, onTimeout={"enum": ["pause", "kill"]}),
        allowInternetAccess=FLAG,
    ),
    "E2BLogs": obj("logs", logs=array_of(obj("timestamp message level", timestamp=MOMENT, message=TEXT, level=TEXT))),
    "OpenAIError": obj(
        "error",
        error=obj("message type param code", message=TEXT, type=TEXT, param=nullable(TEXT), code=nullable(TEXT)),
    ),
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
    "NewSessionToken": obj(ttl=DURATION, paths=array_of(TEXT), ports=array_of({"type": "integer"})),
    "SessionToken": obj("token expiresAt", token=TEXT, expiresAt=MOMENT),
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
    "Sessions": obj("sessions next", sessions=array_of(ref("Session")), next=nullable(TEXT)),
    "Runtimes": obj("runtimes", runtimes=array_of(obj("namespace name kind pool", pool={"type": "object"}))),
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
        "action", action={"enum": ["undo", "pause", "resume", "promote", "move"]}, to={"type": "integer", "minimum": 1}
    ),
    "Status": obj("status", status=TEXT),
    "NotReady": obj("status", status=TEXT, reasons=array_of(TEXT), error=TEXT),
    "NewSandbox": obj("namespace name", namespace=TEXT, name=TEXT, ttl=DURATION, metadata=METADATA),
    "Sandbox": obj(
        "kind sessionId sandboxId sandboxName entryPoints",
        kind={"enum": ["Sandbox", "SandboxClaim"]},
        sessionId=TEXT,
        sandboxId=TEXT,
        sandboxName=TEXT,
        entryPoints=array_of(obj("path protocol endpoint", path=TEXT, protocol=TEXT, endpoint=TEXT)),
    ),
    "Tools": obj("tools", tools=array_of({"type": "object"})),
    "ToolCalls": {
        "anyOf": [
            obj("tool_calls", role=TEXT, tool_calls=array_of(_CALL), **_COMMON_FIELDS),
            obj("output", output=array_of(_ITEM), **_COMMON_FIELDS),
            obj("content", role={"const": "assistant"}, content=array_of(_BLOCK), **_COMMON_FIELDS),
            array_of(_CALL),
            array_of(_ITEM),
        ]
    },
    "ToolAnswers": obj(
        "session_id",
        session_id=nullable(TEXT),
        messages=array_of(obj("role tool_call_id content", role={"const": "tool"}, tool_call_id=TEXT, content=TEXT)),
        output=array_of(obj("type call_id output", type={"const": "function_call_output"}, call_id=TEXT)),
        content=array_of(obj("type tool_use_id content", type={"const": "tool_result"}, tool_use_id=TEXT)),
        replayed={**array_of(TEXT), "description": "Ids of calls that an earlier attempt at this message ran."},
        files=array_of(obj("tool_call_id url path mime_type bytes", url=TEXT, path=TEXT, mime_type=TEXT, bytes=COUNT)),
    ),
    "NewContainer": obj(
        "name",
        name={"type": "string", "minLength": 1, "maxLength": 512},
        expires_after=obj(
            "anchor minutes",
            anchor={"const": "last_active_at"},
            minutes={"type": "integer", "minimum": 1, "maximum": 10080},
        ),
        memory_limit={"enum": ["1g", "4g", "16g", "64g"]},
        network_policy=obj("type", type={"const": "disabled"}),
    ),
    "Container": obj(
        "id object created_at status expires_after last_active_at name",
        id=TEXT,
        object={"const": "container"},
        created_at=COUNT,
        status={"enum": ["running", "expired"]},
        expires_after=obj("anchor minutes", anchor=TEXT, minutes=COUNT),
        last_active_at=COUNT,
        memory_limit=nullable(TEXT),
        network_policy=obj("type", type=TEXT),
        name=TEXT,
    ),
    "Containers": obj(
        _PAGE, object={"const": "list"}, data=array_of(ref("Container")),
        first_id=nullable(TEXT), last_id=nullable(TEXT), has_more=FLAG,
    ),
    "ContainerFile": obj(
        "id object container_id created_at bytes path source",
        id=TEXT,
        object={"const": "container.file"},
        container_id=TEXT,
        created_at={"type": "integer"},
        bytes=COUNT,
        path=TEXT,
        source={"enum": ["user", "assistant"]},
    ),
    "ContainerFiles": obj(
        _PAGE, object={"const": "list"}, data=array_of(ref("ContainerFile")),
        first_id=nullable(TEXT), last_id=nullable(TEXT), has_more=FLAG,
    ),
    "Deleted": obj("id object deleted", id=TEXT, object=TEXT, deleted={"const": True}),
    "Upload": obj("file", file={"type": "string", "contentMediaType": "application/octet-stream"}),
    "MCPMessage": obj("jsonrpc", jsonrpc={"const": "2.0"}),
    "Execute": obj(
        "command",
        command={"type": "array", "items": TEXT, "minItems": 1},
        timeout={"type": "string", "examples": ["30s"]},
        working_dir=TEXT,
        env={"type": "object", "additionalProperties": TEXT},
        **_STREAM_FIELDS,
    ),
    "Executed": obj(
        "stdout stderr exit_code duration", stdout=TEXT, stderr=TEXT, exit_code={"type": "integer"}, duration=NUMBER
    ),
    "Run": obj(
        code={**TEXT, "description": "A program; or `command`."},
        command={"anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1}]},
        language={"enum": ["python", "bash", "javascript"]},
        files={
            "description": "By path: text, or bytes in base64.",
            "type": "object",
            "maxProperties": 64,
            "additionalProperties": {"anyOf": [TEXT, obj("base64", base64=TEXT)]},
        },
        outputs={**array_of(TEXT), "description": "Files to answer.", "maxItems": 64},
        timeout=DURATION,
        runtime=RUNTIME_NAME,
        results={**FLAG, "description": "Run in a code context: values and pictures are answered as well."},
    ),
    "RunAnswer": obj(
        "stdout stderr",
        stdout=TEXT,
        stderr=TEXT,
        exit_code=nullable({"type": "integer"}),
        duration=NUMBER,
        results=array_of({"type": "object"}),
        error=nullable({"type": "object"}),
        timed_out=FLAG,
        files={"type": "object", "additionalProperties": nullable(obj("base64", base64=TEXT))},
    ),
    "AgentScopeArguments": {"type": "object"},
    "AgentScopeAnswer": {"type": "object", "required": ["data"]},
    "AgentScopeError": obj("detail", detail=TEXT),
    "OpenTerminalError": obj("detail error", detail=TEXT, error=TEXT),
    "AgentSandboxError": obj("detail message", detail=TEXT, message=TEXT),
    "KubernetesStatus": obj(
        "kind status message reason code",
        kind=TEXT, apiVersion=TEXT, metadata={"type": "object"}, status=TEXT, message=TEXT, reason=TEXT,
        code={"type": "integer"},
    ),
    "JupyterError": obj("message", message=TEXT, reason=nullable(TEXT)),
    "JupyterVersion": obj("version", version=TEXT),
    "JupyterSpecs": obj("default kernelspecs", default=TEXT, kernelspecs={"type": "object"}),
    "JupyterNew": obj(name=nullable(TEXT), path=nullable(TEXT), kernel={"type": "object"}, type=TEXT),
    "JupyterKernel": obj(
        "id name execution_state", id=TEXT, name=TEXT, last_activity=TEXT, execution_state=TEXT, connections=COUNT
    ),
    "JupyterSession": obj("id kernel", id=TEXT, path=TEXT, name=TEXT, type=TEXT, kernel=ref("JupyterKernel")),
    "DifyRun": obj(
        "language code", language={"enum": ["python3", "nodejs"]}, code=TEXT, preload=TEXT, enable_network=FLAG
    ),
    "DifyRan": obj(
        "code message data", code={"type": "integer"}, message=TEXT, data=obj("stdout error", stdout=TEXT, error=TEXT)
    ),
    "DifyAnswer": obj("code message data", code={"type": "integer"}, message=TEXT, data={"type": "object"}),
    "DifyError": obj("code message", code={"type": "integer"}, message=TEXT, data={"type": "null"}),
    "RunCode": obj(
        "code",
        code=TEXT,
        language={"enum": ["python", "bash"]},
        context_id=TEXT,
        timeout=DURATION,
        silent={"type": "boolean"},
        comms={"type": "boolean"},
        **_STREAM_FIELDS,
    ),
    "CodeResult": obj(
        "stdout stderr results error",
        stdout=TEXT,
        stderr=TEXT,
        results=array_of({"type": "object"}),
        error=nullable(obj("name value traceback", name=TEXT, value=TEXT, traceback=array_of(TEXT))),
        execution_count=nullable({"type": "integer"}),
        duration=NUMBER,
    ),
    "Files": obj("files", files=array_of(_LISTED_FILE)),
    "Written": obj("path size mode modified", path=TEXT, size=COUNT, mode=TEXT, modified=TEXT),
}  # fmt: skip

"""Shapes of bodies, named as in the document. They say what a client may rely on; further fields may come."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
ANY: Schema = {}
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


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def obj(required: str = "", /, **properties: Schema) -> Schema:
    """An object; `required` are names between blanks."""
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required.split()} if required else schema


def listed(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def maybe(schema: Schema) -> Schema:
    """Or null."""
    return {"anyOf": [schema, {"type": "null"}]}


EVENTS: Schema = {**obj(event=TEXT, data=TEXT, id=TEXT), "description": "Server-sent events, each with these fields."}
_CALL = obj(
    "id function",
    id={"type": "string", "minLength": 1, "maxLength": 256},
    type={"const": "function"},
    function=obj("name arguments", name=TEXT, arguments={"type": "string", "description": "JSON."}),
)
_ITEM = obj("type call_id name arguments", type={"const": "function_call"}, call_id=TEXT, name=TEXT, arguments=TEXT)
_BLOCK = obj("type id name input", type={"const": "tool_use"}, id=TEXT, name=TEXT, input={"type": "object"})
_BESIDE: dict[str, Schema] = {
    "session_id": {"type": "string", "description": "The session to run in; a new one is made if absent."},
    "runtime": RUNTIME_NAME,
    "stream": {"type": "boolean", "description": "Answer progress as server-sent events."},
}
_FOLLOWED: dict[str, Schema] = {
    "stream": {"type": "boolean", "description": "Answer server-sent events as it happens."},
    "background": {"type": "boolean", "description": "With stream: it goes on when the client leaves."},
}
_PAGE = "object data first_id last_id has_more"

SCHEMAS: dict[str, Schema] = {
    "Error": obj("error code", error=TEXT, code=TEXT),
    "SandboxError": obj(
        "error", error=TEXT, code={"description": "A status, or a word.", "type": ["integer", "string"]}
    ),
    "Message": obj("message", message=TEXT),
    "OpenAIError": obj(
        "error", error=obj("message type param code", message=TEXT, type=TEXT, param=maybe(TEXT), code=maybe(TEXT))
    ),
    "NewSession": obj("runtime", runtime=RUNTIME_NAME, ttl=DURATION, idleTimeout=DURATION, metadata=METADATA),
    "SessionChange": obj(ttl=maybe(DURATION), idleTimeout=DURATION, metadata=METADATA),
    "Session": obj(
        "id runtime state createdAt lastActiveAt expiresAt idleTimeout metadata",
        id=TEXT,
        runtime=obj("namespace name kind", namespace=TEXT, name=TEXT, kind=TEXT),
        state={"enum": ["creating", "active", "hibernating", "hibernated", "waking", "lost", "terminated"]},
        start=maybe(TEXT),
        createdAt=MOMENT,
        lastActiveAt={**MOMENT, "description": "of a session that has ended: when it ended"},
        expiresAt=MOMENT,
        idleTimeout=NUMBER,
        sandboxId=maybe(TEXT),
        reason=TEXT,
        metadata=METADATA,
    ),
    "Sessions": obj("sessions next", sessions=listed(ref("Session")), next=maybe(TEXT)),
    "Runtimes": obj("runtimes", runtimes=listed(obj("namespace name kind pool", pool={"type": "object"}))),
    "Status": obj("status", status=TEXT),
    "NotReady": obj("status", status=TEXT, reasons=listed(TEXT), error=TEXT),
    "NewSandbox": obj("namespace name", namespace=TEXT, name=TEXT, ttl=DURATION, metadata=METADATA),
    "Sandbox": obj(
        "kind sessionId sandboxId sandboxName entryPoints",
        kind={"enum": ["Sandbox", "SandboxClaim"]},
        sessionId=TEXT,
        sandboxId=TEXT,
        sandboxName=TEXT,
        entryPoints=listed(obj("path protocol endpoint", path=TEXT, protocol=TEXT, endpoint=TEXT)),
    ),
    "Tools": obj("tools", tools=listed({"type": "object"})),
    "ToolCalls": {
        "anyOf": [
            obj("tool_calls", role=TEXT, tool_calls=listed(_CALL), **_BESIDE),
            obj("output", output=listed(_ITEM), **_BESIDE),
            obj("content", role={"const": "assistant"}, content=listed(_BLOCK), **_BESIDE),
            listed(_CALL),
            listed(_ITEM),
        ]
    },
    "ToolAnswers": obj(
        "session_id",
        session_id=maybe(TEXT),
        messages=listed(obj("role tool_call_id content", role={"const": "tool"}, tool_call_id=TEXT, content=TEXT)),
        output=listed(obj("type call_id output", type={"const": "function_call_output"}, call_id=TEXT)),
        content=listed(obj("type tool_use_id content", type={"const": "tool_result"}, tool_use_id=TEXT)),
        files=listed(obj("tool_call_id url path mime_type bytes", url=TEXT, path=TEXT, mime_type=TEXT, bytes=COUNT)),
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
        memory_limit=maybe(TEXT),
        network_policy=obj("type", type=TEXT),
        name=TEXT,
    ),
    "Containers": obj(
        _PAGE, object={"const": "list"}, data=listed(ref("Container")), first_id=maybe(TEXT), last_id=maybe(TEXT),
        has_more=FLAG,
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
        _PAGE, object={"const": "list"}, data=listed(ref("ContainerFile")), first_id=maybe(TEXT), last_id=maybe(TEXT),
        has_more=FLAG,
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
        **_FOLLOWED,
    ),
    "Executed": obj(
        "stdout stderr exit_code duration", stdout=TEXT, stderr=TEXT, exit_code={"type": "integer"}, duration=NUMBER
    ),
    "RunCode": obj(
        "code",
        code=TEXT,
        language={"enum": ["python", "bash"]},
        context_id=TEXT,
        timeout=DURATION,
        **_FOLLOWED,
    ),
    "CodeResult": obj(
        "stdout stderr results error",
        stdout=TEXT,
        stderr=TEXT,
        results=listed({"type": "object"}),
        error=maybe(obj("name value traceback", name=TEXT, value=TEXT, traceback=listed(TEXT))),
        execution_count=maybe({"type": "integer"}),
        duration=NUMBER,
    ),
    "Files": obj("files", files=listed(obj("name size modified mode is_dir", name=TEXT, size=COUNT, is_dir=FLAG))),
    "Written": obj("path size mode modified", path=TEXT, size=COUNT, mode=TEXT, modified=TEXT),
}  # fmt: skip

"""What is for models: their tool calls, MCP, and OpenAI's containers."""

from __future__ import annotations

from gateway.api.openapi.schemas.parts import COUNT, FLAG, RUNTIME_NAME, TEXT, Schema, array_of, nullable, obj, ref

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
_PAGE = "object data first_id last_id has_more"

MODELS: dict[str, Schema] = {
    "OpenAIError": obj(
        "error",
        error=obj("message type param code", message=TEXT, type=TEXT, param=nullable(TEXT), code=nullable(TEXT)),
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
    "MCPMessage": obj("jsonrpc", jsonrpc={"const": "2.0"}),
}  # fmt: skip

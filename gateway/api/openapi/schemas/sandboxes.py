"""What runs in a sandbox: commands, code, files."""

from __future__ import annotations

from gateway.api.openapi.schemas.parts import (
    COUNT,
    DURATION,
    FLAG,
    NUMBER,
    RUNTIME_NAME,
    TEXT,
    Schema,
    array_of,
    nullable,
    obj,
)

_LISTED_FILE = obj("name size modified mode is_dir", name=TEXT, name_encoded=TEXT, size=COUNT, is_dir=FLAG)
_STREAM_FIELDS: dict[str, Schema] = {
    "stream": {"type": "boolean", "description": "Answer server-sent events as it happens."},
    "background": {"type": "boolean", "description": "With stream: it continues when the client disconnects."},
}

SANDBOXES: dict[str, Schema] = {
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
    "Upload": obj("file", file={"type": "string", "contentMediaType": "application/octet-stream"}),
}  # fmt: skip

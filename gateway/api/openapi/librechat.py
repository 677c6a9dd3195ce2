"""Operations of LibreChat's code API, as LibreChat and @librechat/agents ask for them."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.openapi.common import RUNTIME
from gateway.api.openapi.document import Answer, Operation, Parameter
from gateway.api.openapi.schemas import TEXT, Schema

_BASE = "/librechat"
_OBJECT: Mapping[int, Answer] = {200: Answer("Done.", {"type": "object"})}
_FORM: Schema = {
    "type": "object", "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"}, "kind": {"enum": ["user", "agent", "skill"]}, "id": TEXT,
        "entity_id": TEXT,
    },
}  # fmt: skip
_OWNER = (
    Parameter("kind", "Whose it is: user, agent or skill. Not looked at: an id is enough."),
    Parameter("id", "The user, agent or skill."),
)
_PROGRAM: Schema = {
    "type": "object",
    "required": ["lang", "code"],
    "properties": {
        "lang": {"enum": ["py", "bash", "js"]}, "code": TEXT, "args": {"type": "array", "items": TEXT},
        "session_id": TEXT, "files": {"type": "array", "items": {"type": "object"}},
    },
}  # fmt: skip


def _operation(
    method: str,
    path: str,
    summary: str,
    answers: Mapping[int, Answer],
    *more: Parameter,
    body: Schema | None = None,
    body_type: str = "application/json",
) -> Operation:
    return Operation(method, _BASE + path, "librechat", summary, answers, more, body=body, body_type=body_type)


_MULTIPART = "multipart/form-data"
LIBRECHAT: Mapping[str, Operation] = {
    "librechat_exec": _operation("POST", "/exec", "Run a program among its files.", _OBJECT, RUNTIME, body=_PROGRAM),
    "librechat_exec_programmatic":
        _operation("POST", "/exec/programmatic", "Refused: a program that calls tools.", _OBJECT,
                   body={"type": "object"}),
    "librechat_upload":
        _operation("POST", "/upload", "Store a file in a storage session of its own.", _OBJECT, RUNTIME, body=_FORM,
                   body_type=_MULTIPART),
    "librechat_upload_batch":
        _operation("POST", "/upload/batch", "Store files in one storage session.", _OBJECT, RUNTIME, body=_FORM,
                   body_type=_MULTIPART),
    "librechat_list_files":
        _operation("GET", "/files/{session_id}", "The files of a storage session.",
                   {200: Answer("All.", {"type": "array", "items": {"type": "object"}})}, *_OWNER),
    "librechat_delete_file":
        _operation("DELETE", "/files/{session_id}/{file_id}", "Delete a file.", _OBJECT, *_OWNER),
    "librechat_get_object":
        _operation("GET", "/sessions/{session_id}/objects/{file_id}", "What a file is called, and its age.", _OBJECT,
                   *_OWNER),
    "librechat_download":
        _operation("GET", "/download/{session_id}/{file_id}", "A file's bytes.", {200: Answer("They.", None, "*/*")},
                   *_OWNER),
}  # fmt: skip

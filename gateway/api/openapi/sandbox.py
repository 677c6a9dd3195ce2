"""What picod answers through the gateway, as far as a document can say it; docs/picod-api.md has the rest.

These paths are the sandbox's: any path with a session header goes there, so other programs may answer others.
"""

from __future__ import annotations

from gateway.api.openapi.document import IDEMPOTENCY_KEY, Answer, Operation, Parameter
from gateway.api.openapi.schemas import EVENTS, TEXT, Schema, ref

_SESSION = Parameter("x-session-id", "The session whose sandbox this is for.", where="header", required=True)
_ONCE = Parameter(IDEMPOTENCY_KEY, "With the same one again: answered, not run again.", where="header")
_DONE = {"type": "object"}
_EVENTS = Answer("With stream: what happens, as it happens.", EVENTS, "text/event-stream")
_ANYTHING = Answer("What the sandbox answers.", None, "*/*")


def _op(
    method: str,
    path: str,
    summary: str,
    answer: Schema | None = None,
    *parameters: Parameter,
    status: int = 200,
    body: Schema | None = None,
    body_type: str = "application/json",
) -> Operation:
    done = Answer("Done.", answer) if answer is not None else Answer("Done.")
    return Operation(
        method, path, "sandbox", summary, {status: done}, (_SESSION, *parameters), body, body_type, "SandboxError"
    )


_FOLDER = Parameter("path", "A folder of the workspace.", required=True)
_RECURSIVE = Parameter("recursive", "A directory with all that is in it.", {"enum": ["true", "false"]})
_MODE = Parameter("mode", "Permission bits, octal.")

SANDBOX: tuple[Operation, ...] = (
    Operation("POST", "/api/execute", "sandbox", "Run a command to its end.",
              {200: Answer("How it went.", ref("Executed"))}, (_SESSION, _ONCE), ref("Execute"), error="SandboxError",
              more=(_EVENTS,)),
    Operation("POST", "/api/run_code", "sandbox", "Run code in a context that keeps its state.",
              {200: Answer("What came of it.", ref("CodeResult"))}, (_SESSION, _ONCE), ref("RunCode"),
              error="SandboxError", more=(_EVENTS,)),
    _op("GET", "/api/runs", "List runs that can be followed.", _DONE),
    Operation("GET", "/api/runs/{run_id}", "sandbox", "Follow a run: its events, after Last-Event-ID.",
              {200: Answer("Events.", EVENTS, "text/event-stream")}, (_SESSION,), error="SandboxError"),
    _op("DELETE", "/api/runs/{run_id}", "End a run.", None, status=204),
    _op("GET", "/api/contexts", "List code contexts.", _DONE),
    _op("POST", "/api/contexts", "Make a code context.", _DONE, status=201, body=_DONE),
    _op("DELETE", "/api/contexts/{context_id}", "End a code context.", None, status=204),
    _op("POST", "/api/contexts/{context_id}/interrupt", "Interrupt what it runs.", _DONE),
    _op("POST", "/api/contexts/{context_id}/restart", "Begin it anew.", _DONE),
    _op("GET", "/api/files", "List a folder.", ref("Files"), _FOLDER),
    _op("POST", "/api/files", "Write a file: JSON with base64, or a form.", _DONE, body=_DONE),
    Operation("GET", "/api/files/{path}", "sandbox", "Read a file, or a part of it.",
              {200: _ANYTHING, 206: _ANYTHING, 304: Answer("As it was."), 416: Answer("Beyond its end.")}, (_SESSION,),
              error="SandboxError"),
    _op("PUT", "/api/files/{path}", "Write a file of any size.", ref("Written"), _MODE, _ONCE, body={},
        body_type="application/octet-stream"),
    _op("DELETE", "/api/files/{path}", "Delete a file or a directory.", None, _RECURSIVE, status=204),
    _op("GET", "/api/fs/stat", "Look at a file.", _DONE, _FOLDER),
    _op("GET", "/api/fs/tree", "All below a directory, in pages.", _DONE, Parameter("path", "Below this one.")),
    _op("POST", "/api/fs/mkdir", "Make a directory.", _DONE, body=_DONE),
    _op("POST", "/api/fs/move", "Move or rename, in one step.", _DONE, body=_DONE),
    Operation("GET", "/api/fs/watch", "sandbox", "What changes below a directory, as it happens; it does not end.",
              {200: Answer("Events.", EVENTS, "text/event-stream")}, (_SESSION, _FOLDER, _RECURSIVE),
              error="SandboxError"),
    Operation("GET", "/api/fs/archive", "sandbox", "A directory as one archive.", {200: _ANYTHING},
              (_SESSION, _FOLDER, Parameter("format", "Which kind.", {"enum": ["tar", "tar.gz", "tar.zst", "zip"]})),
              error="SandboxError"),
    _op("PUT", "/api/fs/archive", "Unpack an archive, all of it or nothing.", _DONE, _FOLDER, body={},
        body_type="application/octet-stream"),
    _op("GET", "/api/processes", "List background processes.", _DONE),
    _op("POST", "/api/processes", "Start one.", _DONE, status=201, body=_DONE),
    _op("GET", "/api/processes/{process_id}", "Look at one.", _DONE),
    _op("DELETE", "/api/processes/{process_id}", "End one with its whole tree.", None, status=204),
    _op("GET", "/api/processes/{process_id}/logs", "Its output, once or as it comes.", _DONE),
    _op("GET", "/api/processes/{process_id}/wait", "Wait for its end.", _DONE),
    _op("POST", "/api/processes/{process_id}/stdin", "Write to its input.", _DONE, body={},
        body_type="application/octet-stream"),
    _op("POST", "/api/processes/{process_id}/signal", "Send a signal.", _DONE, body=_DONE),
    _op("GET", "/api/terminals", "List terminals.", _DONE),
    _op("DELETE", "/api/terminals/{terminal_id}", "End a terminal.", None, status=204),
    _op("GET", "/api/ports", "Which ports are listened on.", _DONE),
)  # fmt: skip

# Paths that lead to whatever listens, with any method: GET stands for all.
THROUGH: tuple[Operation, ...] = (
    Operation("GET", "/v1/namespaces/{namespace}/code-interpreters/{name}/invocations/{path}", "agentcube",
              "Anything in a session's sandbox; without a session header one is made.", {200: _ANYTHING},
              (Parameter("x-agentcube-session-id", "The session.", TEXT, "header"),)),
    Operation("GET", "/v1/namespaces/{namespace}/agent-runtimes/{name}/invocations/{path}", "agentcube",
              "Anything of a session's agent; without a session header one is made.", {200: _ANYTHING},
              (Parameter("x-agentcube-session-id", "The session.", TEXT, "header"),)),
    Operation("GET", "/v1/sessions/{session_id}/ports/{port}/{path}", "sandbox",
              "A server that code started in the sandbox.",
              {200: _ANYTHING, 403: Answer("Not this port.", ref("Error"))}),
)  # fmt: skip

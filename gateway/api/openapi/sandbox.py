"""picod's API as seen through the gateway, as far as OpenAPI can describe it; docs/picod-api.md has the rest.

Requests with a session header go to the sandbox whatever their path, so a sandbox may have more paths than these.
"""

from __future__ import annotations

from gateway.api.openapi.document import IDEMPOTENCY_KEY, Answer, Operation, Parameter
from gateway.api.openapi.schemas import EVENTS, TEXT, Schema, ref

_SESSION = Parameter("x-session-id", "The session whose sandbox gets the request.", where="header", required=True)
_IDEMPOTENCY_KEY = Parameter(
    IDEMPOTENCY_KEY, "A retry with the same key is answered but not run again.", where="header"
)
_OBJECT = {"type": "object"}
_EVENTS = Answer("With stream: events as they happen.", EVENTS, "text/event-stream")
_ANYTHING = Answer("The sandbox's answer.", None, "*/*")


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
    # The error's shape is picod's own: the gateway passes its answers on unchanged.
    return Operation(
        method, path, "sandbox", summary, {status: done}, (_SESSION, *parameters), body, body_type, "SandboxError"
    )


_FOLDER = Parameter("path", "A folder of the workspace.", required=True)
_RECURSIVE = Parameter("recursive", "A directory with all its contents.", {"enum": ["true", "false"]})
_MODE = Parameter("mode", "Permission bits, octal.")

SANDBOX: tuple[Operation, ...] = (
    Operation("POST", "/api/execute", "sandbox", "Run a command and wait for it.",
              {200: Answer("Its output and exit status.", ref("Executed"))},
              (_SESSION, _IDEMPOTENCY_KEY), ref("Execute"), error="SandboxError", more=(_EVENTS,)),
    Operation("POST", "/api/run_code", "sandbox", "Run code in a context that keeps its state.",
              {200: Answer("Its output and results.", ref("CodeResult"))}, (_SESSION, _IDEMPOTENCY_KEY), ref("RunCode"),
              error="SandboxError", more=(_EVENTS,)),
    _op("GET", "/api/runs", "List runs that can be followed.", _OBJECT),
    Operation("GET", "/api/runs/{run_id}", "sandbox", "Follow a run: its events, after Last-Event-ID.",
              {200: Answer("Events.", EVENTS, "text/event-stream")}, (_SESSION,), error="SandboxError"),
    _op("DELETE", "/api/runs/{run_id}", "End a run.", None, status=204),
    _op("GET", "/api/contexts", "List code contexts.", _OBJECT),
    _op("POST", "/api/contexts", "Create a code context.", _OBJECT, status=201, body=_OBJECT),
    _op("DELETE", "/api/contexts/{context_id}", "End a code context.", None, status=204),
    _op("POST", "/api/contexts/{context_id}/interrupt", "Interrupt the code that it runs.", _OBJECT),
    _op("POST", "/api/contexts/{context_id}/restart", "Restart it.", _OBJECT),
    _op("GET", "/api/files", "List a folder.", ref("Files"), _FOLDER),
    _op("POST", "/api/files", "Write a file: JSON with base64, or a form.", _OBJECT, body=_OBJECT),
    Operation("GET", "/api/files/{path}", "sandbox", "Read a file, or a part of it.",
              {200: _ANYTHING, 206: _ANYTHING, 304: Answer("Not modified."),
               416: Answer("The range is beyond its end.")}, (_SESSION,),
              error="SandboxError"),
    _op("PUT", "/api/files/{path}", "Write a file of any size.", ref("Written"), _MODE, _IDEMPOTENCY_KEY, body={},
        body_type="application/octet-stream"),
    _op("DELETE", "/api/files/{path}", "Delete a file or a directory.", None, _RECURSIVE, status=204),
    _op("GET", "/api/fs/stat", "Get a file's metadata.", _OBJECT, _FOLDER),
    _op("GET", "/api/fs/tree", "List all files below a directory, in pages.", _OBJECT,
        Parameter("path", "The directory.")),
    _op("POST", "/api/fs/mkdir", "Create a directory.", _OBJECT, body=_OBJECT),
    _op("POST", "/api/fs/move", "Move or rename atomically.", _OBJECT, body=_OBJECT),
    Operation("GET", "/api/fs/watch", "sandbox", "Stream changes below a directory; the stream does not end.",
              {200: Answer("Events.", EVENTS, "text/event-stream")}, (_SESSION, _FOLDER, _RECURSIVE),
              error="SandboxError"),
    Operation("GET", "/api/fs/archive", "sandbox", "Download a directory as an archive.", {200: _ANYTHING},
              (_SESSION, _FOLDER,
               Parameter("format", "The archive's format.", {"enum": ["tar", "tar.gz", "tar.zst", "zip"]})),
              error="SandboxError"),
    _op("PUT", "/api/fs/archive", "Unpack an archive atomically.", _OBJECT, _FOLDER, body={},
        body_type="application/octet-stream"),
    _op("GET", "/api/processes", "List background processes.", _OBJECT),
    _op("POST", "/api/processes", "Start a background process.", _OBJECT, status=201, body=_OBJECT),
    _op("GET", "/api/processes/{process_id}", "Get a background process.", _OBJECT),
    _op("DELETE", "/api/processes/{process_id}", "End it and all its descendants.", None, status=204),
    _op("GET", "/api/processes/{process_id}/logs", "Get or follow its output.", _OBJECT),
    _op("GET", "/api/processes/{process_id}/wait", "Wait until it has ended.", _OBJECT),
    _op("POST", "/api/processes/{process_id}/stdin", "Write to its standard input.", _OBJECT, body={},
        body_type="application/octet-stream"),
    _op("POST", "/api/processes/{process_id}/signal", "Send a signal.", _OBJECT, body=_OBJECT),
    Operation("POST", "/api/processes/stream", "sandbox", "Start a process and stream its output as bytes.",
              {200: Answer("Events.", EVENTS, "text/event-stream")}, (_SESSION,), _OBJECT, error="SandboxError"),
    Operation("GET", "/api/processes/{process_id}/stream", "sandbox", "Stream its output from now on.",
              {200: Answer("Events.", EVENTS, "text/event-stream")}, (_SESSION,), error="SandboxError"),
    _op("POST", "/api/processes/{process_id}/resize", "Set the size of its terminal.", _OBJECT, body=_OBJECT),
    _op("GET", "/api/terminals", "List terminals.", _OBJECT),
    _op("DELETE", "/api/terminals/{terminal_id}", "End a terminal.", None, status=204),
    _op("GET", "/api/ports", "List the ports that servers listen on.", _OBJECT),
)  # fmt: skip

# Paths of arbitrary servers in a sandbox. They take any method; GET is documented in place of all.
PASS_THROUGH: tuple[Operation, ...] = (
    Operation("GET", "/v1/namespaces/{namespace}/code-interpreters/{name}/invocations/{path}", "agentcube",
              "Any request to a session's sandbox; without a session header a session is created.", {200: _ANYTHING},
              (Parameter("x-agentcube-session-id", "The session.", TEXT, "header"),)),
    Operation("GET", "/v1/namespaces/{namespace}/agent-runtimes/{name}/invocations/{path}", "agentcube",
              "Any request to a session's agent; without a session header a session is created.", {200: _ANYTHING},
              (Parameter("x-agentcube-session-id", "The session.", TEXT, "header"),)),
    Operation("GET", "/v1/sessions/{session_id}/ports/{port}/{path}", "sandbox",
              "A server that code started in the sandbox.",
              {200: _ANYTHING, 403: Answer("This port is not exposed.", ref("Error"))}),
)  # fmt: skip

"""The route table: each operation of the control surfaces by name, in the order of the document.

`api/app.py` makes the router from it and `document.py` makes /openapi.json, so neither can have a path that the other
lacks.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.openapi.document import Answer, Operation, Parameter
from gateway.api.openapi.schemas import EVENTS, RUNTIME_NAME, ref
from gateway.core.model import Kind

SESSION = Parameter("x-session-id", "The session to use.", where="header")
RUNTIME = Parameter("x-wakegate-runtime", "The runtime of a new session.", RUNTIME_NAME, "header")
_LIMIT = {"type": "integer", "minimum": 1, "maximum": 100}
_PAGE = (
    Parameter("after", "`next` of the previous page, or the id of a session."),
    Parameter("limit", "How many at most, 20 if absent.", _LIMIT),
    Parameter("order", "By the time of creation.", {"enum": ["asc", "desc"]}),
)
_TEXT = {"type": "string"}


def _ok(schema: str, description: str = "Done.") -> dict[int, Answer]:
    return {200: Answer(description, ref(schema))}


NATIVE: Mapping[str, Operation] = {
    "create_session":
        Operation("POST", "/v1/sessions", "sessions", "Create a session.", {201: Answer("Created.", ref("Session"))},
              body=ref("NewSession")),
    "list_sessions":
        Operation("GET", "/v1/sessions", "sessions", "List sessions, newest first.", _ok("Sessions"), (
        Parameter("state", "Only those in this state, or all; without it those that have not ended."),
        Parameter("metadata.KEY", "Only those whose metadata has this value under KEY."),
        Parameter("runtime", "Only those of this runtime.", RUNTIME_NAME),
        Parameter("after", "The last id of the previous page."),
        Parameter("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    ), sandbox=False),
    "get_session":
        Operation("GET", "/v1/sessions/{session_id}", "sessions", "Get a session.", _ok("Session")),
    "update_session":
        Operation("PATCH", "/v1/sessions/{session_id}", "sessions", "Change its ttl, idle timeout or metadata.",
              _ok("Session"), body=ref("SessionChange")),
    "delete_session":
        Operation("DELETE", "/v1/sessions/{session_id}", "sessions", "End a session.", {204: Answer("Ended.")}),
    "hibernate_session":
        Operation("POST", "/v1/sessions/{session_id}/hibernate", "sessions", "Hibernate a session now.",
                  _ok("Session")),
    "wake_session":
        Operation("POST", "/v1/sessions/{session_id}/wake", "sessions", "Wake a session now.", _ok("Session")),
    "get_session_egress":
        Operation("GET", "/v1/sessions/{session_id}/egress", "sessions", "What it may reach, and what it reached.",
                  _ok("SessionEgress"), (Parameter("limit", "Lines of the log, the newest first; 100 if absent.",
                                                   {"type": "integer", "minimum": 1, "maximum": 500}),)),
    "watch_events":
        Operation("GET", "/v1/events", "sessions", "What becomes of sessions and pools, from this gateway: a page, or "
                  "with `Accept: text/event-stream` a stream.", _ok("Events"), (
        Parameter("session", "Only of this session."),
        Parameter("runtime", "Only of this runtime.", RUNTIME_NAME),
        Parameter("kind", "Only of these.", {"enum": ["session", "pool"]}),
        Parameter("after", "The id of an event, or `next`; a stream also takes Last-Event-ID."),
    ), sandbox=False, more=(Answer("Events; each id is an `after`.", EVENTS, "text/event-stream"),)),
    "get_session_logs":
        Operation("GET", "/v1/sessions/{session_id}/logs", "sessions", "Its starts, sleeps, wakes and losses, as far "
                  "as this gateway has seen them.", _ok("SessionLogs")),
    "list_runtimes":
        Operation("GET", "/v1/runtimes", "runtimes", "List runtimes and their warm pools.", _ok("Runtimes"),
                  sandbox=False),
    "explain_autoscaler":
        Operation("GET", "/v1/autoscaler", "runtimes", "Explain the size of each warm pool.",
              {200: Answer("By runtime.", {"type": "object"})}, sandbox=False),
    "autoscaler_what_if":
        Operation("GET", "/v1/autoscaler/{runtime}/what-if", "runtimes",
                  "What other targets, prices and fixed sizes would have cost a warm pool.",
              {200: Answer("Per hour, of the claims that its shadow pools remember.", {"type": "object"})}, (
        Parameter("namespace", "Of the runtime; `default` if absent."),
        Parameter("kind", "Of the runtime.", {"enum": [kind.value for kind in Kind]}),
    ), sandbox=False),
    "export_claim_history":
        Operation("GET", "/v1/autoscaler/history", "runtimes", "Export recorded claims, a line of JSON per runtime.",
              {200: Answer("`{runtime, bucket, counts: [[second, claims], ...]}`, oldest first.", _TEXT,
                           "application/x-ndjson")}, (
        Parameter("runtime", "Only of this runtime.", RUNTIME_NAME),
        Parameter("bucket", "Seconds per count: 1 (the last hours) or 60 (two weeks; if absent).", {"enum": [1, 60]}),
    ), sandbox=False),
}  # fmt: skip

_NAMESPACE = Parameter("namespace", "The agent's, if it is not that of the caller's tenant.")
_AGENT_FILTERS = (
    Parameter("phase", "Only those in this phase.",
              {"enum": ["Pending", "Running", "Updating", "Stopped", "Failed"]}),
    Parameter("owner", "Only those of this tenant."),
    Parameter("namespace", "Only those in it."),
    Parameter("after", "`next` of the previous page."),
    Parameter("limit", "How many at most; 100 if absent.", {"type": "integer", "minimum": 1, "maximum": 500}),
)  # fmt: skip


def _agent(method: str, path: str, summary: str, schema: str = "Agent", body: str = "",
           parameters: tuple[Parameter, ...] = (_NAMESPACE,), status: int = 200) -> Operation:  # fmt: skip
    answers = {status: Answer("Done.", ref(schema))} if schema else {204: Answer("Deleted.")}
    return Operation(method, path, "agents", summary, answers, parameters, ref(body) if body else None, sandbox=False)


AGENTS: Mapping[str, Operation] = {
    "create_agent":
        _agent("POST", "/v1/agents", "Create an agent.", body="NewAgent", parameters=(), status=201),
    "list_agents":
        _agent("GET", "/v1/agents", "List agents, by namespace and name.", "Agents", parameters=_AGENT_FILTERS),
    "get_agent":
        _agent("GET", "/v1/agents/{name}", "Get an agent with its status and metrics."),
    "update_agent":
        _agent("PATCH", "/v1/agents/{name}", "Change an agent: a new revision, which is rolled out.",
               body="AgentChange"),
    "delete_agent":
        _agent("DELETE", "/v1/agents/{name}", "Delete an agent and end its sessions.", ""),
    "stop_agent":
        _agent("POST", "/v1/agents/{name}/stop", "Stop an agent: its sessions end, and it costs nothing."),
    "start_agent":
        _agent("POST", "/v1/agents/{name}/start", "Start an agent that was stopped."),
    "list_agent_revisions":
        _agent("GET", "/v1/agents/{name}/revisions", "List an agent's revisions with what each changed.",
               "AgentRevisions"),
    "get_agent_rollout":
        _agent("GET", "/v1/agents/{name}/rollout", "The change under way, and what happened before.", "AgentRollout"),
    "change_agent_rollout":
        _agent("POST", "/v1/agents/{name}/rollout", "Undo, pause, resume or promote a change.", "AgentRollout",
               body="AgentRolloutAction"),
    "create_agent_bundle":
        Operation("POST", "/v1/agent-bundles", "agents", "Upload an agent's files, a tar archive, plain or gzip.",
              {201: Answer("Here.", ref("AgentBundle"))}, body={"type": "string", "format": "binary"},
              body_type="application/octet-stream", sandbox=False),
    "flat_create_agent":
        _agent("POST", "/api/v1/agents", "Create an agent from flat fields.", body="NewFlatAgent", parameters=(),
               status=201),
    "flat_list_agents":
        _agent("GET", "/api/v1/agents", "As /v1/agents.", "Agents", parameters=_AGENT_FILTERS),
    "flat_get_agent":
        _agent("GET", "/api/v1/agents/{name}", "As /v1/agents/{name}."),
    "flat_delete_agent":
        _agent("DELETE", "/api/v1/agents/{name}", "As /v1/agents/{name}.", ""),
    "flat_stop_agent":
        _agent("POST", "/api/v1/agents/{name}/stop", "As /v1/agents/{name}/stop."),
    "flat_start_agent":
        _agent("POST", "/api/v1/agents/{name}/start", "As /v1/agents/{name}/start."),
}  # fmt: skip

USAGE: Mapping[str, Operation] = {
    "get_usage":
        Operation("GET", "/v1/usage", "usage", "What tenants have used, and what it costs.", _ok("Usage"), (
        Parameter("from", "RFC 3339, or seconds since 1970; rounded down to the hour. A day before `to` if absent."),
        Parameter("to", "The same, rounded up; now if absent."),
        Parameter("group_by", "Some of tenant, runtime, size, session, day, hour, comma-separated; tenant if absent."),
        Parameter("tenant", "Only of this tenant."),
        Parameter("format", "json if absent.", {"enum": ["json", "csv"]}),
    ), sandbox=False, more=(Answer("The rows of `usage`, with a header line.", _TEXT, "text/csv"),)),
}  # fmt: skip

KEYS: Mapping[str, Operation] = {
    "create_session_token":
        Operation("POST", "/v1/sessions/{session_id}/tokens", "keys", "Create a token that is valid for one session.",
                  {201: Answer("Made.", ref("SessionToken"))}, body=ref("NewSessionToken"), sandbox=False),
    "create_key":
        Operation("POST", "/v1/keys", "keys", "Create an API key. No later answer shows it again.",
                  {201: Answer("Made.", ref("NewKeyAnswer"))}, body=ref("NewKey"), sandbox=False),
    "list_keys":
        Operation("GET", "/v1/keys", "keys", "List API keys, the oldest first.", _ok("Keys"),
                  (Parameter("tenant", "Only those of this tenant."),), sandbox=False),
    "revoke_key":
        Operation("DELETE", "/v1/keys/{key_id}", "keys", "Revoke an API key, everywhere within two seconds.",
                  {204: Answer("Revoked.")}, sandbox=False),
    "rotate_key":
        Operation("POST", "/v1/keys/{key_id}/rotate", "keys", "Create a key with the same rights and end the old one.",
                  {201: Answer("Made.", ref("NewKeyAnswer"))}, body=ref("Rotation"), sandbox=False),
    "get_caller":
        Operation("GET", "/v1/caller", "keys", "Get the caller's identity.", _ok("Caller"), sandbox=False),
}  # fmt: skip

TENANTS: Mapping[str, Operation] = {
    "list_tenants":
        Operation("GET", "/v1/tenants", "tenants", "List tenants with their limits and what they use.",
                  _ok("Tenants"), sandbox=False),
    "get_own_tenant":
        Operation("GET", "/v1/tenants/self", "tenants", "The caller's own tenant.", _ok("Tenant"), sandbox=False),
    "get_tenant":
        Operation("GET", "/v1/tenants/{tenant}", "tenants", "Get a tenant's limits and what it uses.", _ok("Tenant"),
                  sandbox=False),
    "put_tenant":
        Operation("PUT", "/v1/tenants/{tenant}", "tenants", "Set a tenant's limits: all of them, at every gateway "
                  "within two seconds.", {**_ok("Tenant"), 201: Answer("Made.", ref("Tenant"))}, body=ref("NewTenant"),
                  sandbox=False),
    "delete_tenant":
        Operation("DELETE", "/v1/tenants/{tenant}", "tenants", "Revoke a tenant's keys and refuse its tokens.",
                  {204: Answer("Deleted.")},
                  (Parameter("sessions", "What happens to its sessions; keep: they end by their own timeouts.",
                             {"enum": ["keep", "end"]}),), sandbox=False),
}  # fmt: skip

CONSOLE: Mapping[str, Operation] = {
    "create_console_session":
        Operation("POST", "/v1/console/session", "keys", "Log in to the console with an API key: answers a token, and "
                  "sets the cookie that it is worth something with.", {201: Answer("Made.", ref("ConsoleSession"))},
                  sandbox=False),
    "delete_console_session":
        Operation("DELETE", "/v1/console/session", "keys", "Log out of the console: the cookie is taken back.",
                  {204: Answer("Done.")}, sandbox=False),
}  # fmt: skip

HEALTH: Mapping[str, Operation] = {
    "check_liveness":
        Operation("GET", "/healthz", "health", "Whether this process is alive.", _ok("Status"), sandbox=False),
    "check_readiness":
        Operation("GET", "/readyz", "health", "Whether this gateway is ready, with the reasons if not.",
              {200: Answer("Ready.", ref("Status")), 503: Answer("Not ready.", ref("NotReady"))}, error="",
              sandbox=False),
    "render_metrics":
        Operation("GET", "/metrics", "health", "Metrics in Prometheus' text format.",
              {200: Answer("All metrics.", _TEXT, "text/plain")}, sandbox=False),
    "get_openapi":
        Operation("GET", "/openapi.json", "health", "This document.", {200: Answer("OpenAPI 3.1.", {"type": "object"})},
              error="", sandbox=False),
    "check_agentcube_health":
        Operation("GET", "/health", "health", "AgentCube's health check.", _ok("Status"), error="", sandbox=False),
    "check_agentcube_liveness":
        Operation("GET", "/health/live", "health", "AgentCube's liveness check.", _ok("Status"), error="",
                  sandbox=False),
    "check_agentcube_readiness":
        Operation("GET", "/health/ready", "health",
              "AgentCube's readiness check; a later outage of the store does not fail it.",
              {200: Answer("Ready.", ref("Status")), 503: Answer("Not ready.", ref("NotReady"))}, error="",
              sandbox=False),
}  # fmt: skip


def _agentcube(kind: Kind) -> dict[str, Operation]:
    name, path = kind.singular.replace("-", "_"), f"/v1/{kind.singular}"
    create = Operation(
        "POST",
        path,
        "agentcube",
        f"Create a session of a {kind.singular}.",
        _ok("Sandbox"),
        body=ref("NewSandbox"),
        error="Message",
    )
    delete = Operation(
        "DELETE", path + "/sessions/{session_id}", "agentcube", "End a session.", _ok("Message"), error="Message"
    )
    return {f"create_{name}": create, f"delete_{name}": delete}  # fmt: skip


AGENTCUBE: Mapping[str, Operation] = {**_agentcube(Kind.CODE_INTERPRETER), **_agentcube(Kind.AGENT_RUNTIME)}

TOOLS: Mapping[str, Operation] = {
    "list_tools":
        Operation("GET", "/v1/tools", "tools", "List the tools to give to a model.", _ok("Tools"), (
        Parameter("format", "The model API whose form the list has.",
                  {"enum": ["chat", "responses", "anthropic", "mcp"]}),
        Parameter("runtime", "The runtime whose tools to list.", RUNTIME_NAME), SESSION, RUNTIME,
    ), error="OpenAIError"),
    "run_tool_calls":
        Operation("POST", "/v1/tool_calls", "tools", "Run a model's tool calls; the answers are messages to append.",
              _ok("ToolAnswers"), (SESSION, RUNTIME, Parameter(
                  "idempotency-key", "Without a session: a retry with the same key uses the session created first.",
                  {"type": "string", "minLength": 16, "maxLength": 256}, "header",
              )), body=ref("ToolCalls"), error="OpenAIError",
              more=(Answer("Progress.", EVENTS, "text/event-stream"),)),
    "run_once":
        Operation("POST", "/v1/run", "tools", "Run one program in a sandbox of its own, which then ends.",
                  _ok("RunAnswer", "It ran; also where it failed or its time was over."), (RUNTIME,),
                  body=ref("Run")),
    "post_mcp_message":
        Operation("POST", "/mcp", "tools", "The tools over MCP (streamable HTTP).",
              {200: Answer("The answer.", ref("MCPMessage")), 202: Answer("Accepted."),
               406: Answer("Accept lacks a content type of the answer.", ref("MCPMessage")),
               415: Answer("The body is not JSON.", ref("MCPMessage")),
               403: Answer("The web page's origin is not allowed.", ref("MCPMessage"))},
              (SESSION, RUNTIME, Parameter("runtime", "Of the session that initialize creates.", RUNTIME_NAME)),
              body=ref("MCPMessage"), error="MCPMessage", more=(Answer("Answers.", EVENTS, "text/event-stream"),)),
    "end_mcp_session":
        Operation("DELETE", "/mcp", "tools", "End an MCP session.",
              {204: Answer("Ended."), 403: Answer("The web page's origin is not allowed.", ref("MCPMessage"))},
              (Parameter("mcp-session-id", "The session to end.", where="header", required=True),),
              error="MCPMessage"),
}  # fmt: skip

_FILES = "/v1/containers/{container_id}/files"
_BYTES = Answer("The bytes.", None, "application/octet-stream")
CONTAINERS: Mapping[str, Operation] = {
    "create_container":
        Operation("POST", "/v1/containers", "containers", "Create a container.", _ok("Container"), (RUNTIME,),
              body=ref("NewContainer"), error="OpenAIError"),
    "list_containers":
        Operation("GET", "/v1/containers", "containers", "List containers.", _ok("Containers"),
              (*_PAGE, Parameter("name", "Only those of this name.")), error="OpenAIError", sandbox=False),
    "get_container":
        Operation("GET", "/v1/containers/{container_id}", "containers", "Get a container.", _ok("Container"),
              error="OpenAIError"),
    "delete_container":
        Operation("DELETE", "/v1/containers/{container_id}", "containers", "End a container.", _ok("Deleted"),
              error="OpenAIError"),
    "create_container_file":
        Operation("POST", _FILES, "containers", "Upload a file.", _ok("ContainerFile"), body=ref("Upload"),
              body_type="multipart/form-data", error="OpenAIError"),
    "list_container_files":
        Operation("GET", _FILES, "containers", "List files.", _ok("ContainerFiles"), _PAGE, error="OpenAIError"),
    "get_container_file":
        Operation("GET", _FILES + "/{file_id}", "containers", "Get a file's metadata.", _ok("ContainerFile"),
                  error="OpenAIError"),
    "delete_container_file":
        Operation("DELETE", _FILES + "/{file_id}", "containers", "Delete a file.", _ok("Deleted"), error="OpenAIError"),
    "get_container_file_content":
        Operation("GET", _FILES + "/{file_id}/content", "containers", "Read a file.",
              {200: _BYTES, 206: _BYTES, 304: Answer("Not modified."), 416: Answer("The range is beyond its end.")},
              error="OpenAIError", more=(Answer("", None, "*/*"),)),
}  # fmt: skip

_E2B = "/sandboxes/{sandbox_id}"
_E2B_PAGE = (
    Parameter("metadata", "Pairs key=value joined by &, each percent-encoded."),
    Parameter("state", "running, paused or both, joined by a comma."),
    Parameter("limit", "How many at most.", _LIMIT),
    Parameter("nextToken", "x-next-token of the page before."),
)


def _e2b(
    method: str,
    path: str,
    summary: str,
    answers: Mapping[int, Answer],
    *more: Parameter,
    body: str = "",
    sandbox: bool = True,
) -> Operation:
    return Operation(
        method, path, "e2b", summary, answers, more, body=ref(body) if body else None, error="E2BError", sandbox=sandbox
    )


_SANDBOX = ref("E2BSandbox")
_NONE = {501: Answer("Wakegate has no such thing.", ref("E2BError"))}
_LISTED = {200: Answer("Newest first.", {"type": "array", "items": ref("E2BListedSandbox")})}
_CONNECTED = {200: Answer("It was running.", _SANDBOX), 201: Answer("It was paused.", _SANDBOX)}
E2B: Mapping[str, Operation] = {
    "e2b_create_sandbox":
        _e2b("POST", "/v2/sandboxes", "Create a sandbox.", {201: Answer("Created.", _SANDBOX)}, body="E2BNewSandbox"),
    "e2b_create_sandbox_v1":
        _e2b("POST", "/sandboxes", "Create a sandbox (older clients).", {201: Answer("Created.", _SANDBOX)},
             body="E2BNewSandbox"),
    "e2b_list_sandboxes":
        _e2b("GET", "/v2/sandboxes", "List sandboxes.", _LISTED, *_E2B_PAGE, sandbox=False),
    "e2b_list_sandboxes_v1":
        _e2b("GET", "/sandboxes", "List sandboxes (older clients).", _LISTED, *_E2B_PAGE, sandbox=False),
    "e2b_get_sandbox":
        _e2b("GET", _E2B, "Get a sandbox.", _ok("E2BSandboxDetail")),
    "e2b_kill_sandbox":
        _e2b("DELETE", _E2B, "End a sandbox.", {204: Answer("Ended.")}),
    "e2b_connect_sandbox":
        _e2b("POST", "/v2" + _E2B + "/connect", "Wake a sandbox, and extend its timeout.", _CONNECTED,
             body="E2BTimeout"),
    "e2b_connect_sandbox_v1":
        _e2b("POST", _E2B + "/connect", "Wake a sandbox (older clients).", _CONNECTED, body="E2BTimeout"),
    "e2b_resume_sandbox":
        _e2b("POST", _E2B + "/resume", "Wake a sandbox (oldest clients).", _CONNECTED, body="E2BTimeout"),
    "e2b_pause_sandbox":
        _e2b("POST", _E2B + "/pause", "Hibernate a sandbox.", {204: Answer("Paused.")}),
    "e2b_set_timeout":
        _e2b("POST", _E2B + "/timeout", "Set the time that is left.", {204: Answer("Set.")}, body="E2BTimeout"),
    "e2b_refresh_sandbox":
        _e2b("POST", _E2B + "/refreshes", "Extend the time that is left.", {204: Answer("Extended.")},
             body="E2BTimeout"),
    "e2b_get_sandbox_metrics":
        _e2b("GET", _E2B + "/metrics", "What it uses; empty so far.",
             {200: Answer("Samples.", {"type": "array", "items": {"type": "object"}})}),
    "e2b_get_sandbox_logs":
        _e2b("GET", "/v2" + _E2B + "/logs", "Its log.", _ok("E2BLogs")),
    "e2b_fork_sandbox":
        _e2b("POST", _E2B + "/fork", "Not supported.", _NONE),
    "e2b_snapshot_sandbox":
        _e2b("POST", _E2B + "/snapshots", "Not supported.", _NONE),
    "e2b_update_network":
        _e2b("PUT", _E2B + "/network", "Not supported.", _NONE),
}  # fmt: skip

# In the query: with a header that names a runtime, a path without a session is one of a new sandbox.
_RUNTIME_ASKED = Parameter("runtime", "The runtime of the kernel's session.", RUNTIME_NAME)
_KERNELS, _NOTEBOOKS = "/jupyter/api/kernels", "/jupyter/api/sessions"


def _jupyter(
    method: str, path: str, summary: str, answers: Mapping[int, Answer], *, body: bool = False, sandbox: bool = True
) -> Operation:
    return Operation(
        method, path, "jupyter", summary, answers, (_RUNTIME_ASKED,) if body else (),
        body=ref("JupyterNew") if body else None, error="JupyterError", sandbox=sandbox,
    )  # fmt: skip


def _array(schema: str) -> dict[int, Answer]:
    return {200: Answer("All of them.", {"type": "array", "items": ref(schema)})}


_ENDED = {204: Answer("Done.")}
JUPYTER: Mapping[str, Operation] = {
    "jupyter_version":
        _jupyter("GET", "/jupyter/api", "The version of Jupyter Server whose API this is.", _ok("JupyterVersion"),
                 sandbox=False),
    "jupyter_list_kernelspecs":
        _jupyter("GET", "/jupyter/api/kernelspecs", "The kernels that can be started.", _ok("JupyterSpecs"),
                 sandbox=False),
    "jupyter_list_kernels":
        _jupyter("GET", _KERNELS, "List kernels.", _array("JupyterKernel"), sandbox=False),
    "jupyter_create_kernel":
        _jupyter("POST", _KERNELS, "Start a kernel: a session with its code context.",
                 {201: Answer("Started.", ref("JupyterKernel"))}, body=True),
    "jupyter_get_kernel":
        _jupyter("GET", _KERNELS + "/{session_id}", "Get a kernel.", _ok("JupyterKernel")),
    "jupyter_delete_kernel":
        _jupyter("DELETE", _KERNELS + "/{session_id}", "End a kernel and its session.", _ENDED),
    "jupyter_restart_kernel":
        _jupyter("POST", _KERNELS + "/{session_id}/restart", "Restart it without its variables.",
                 _ok("JupyterKernel")),
    "jupyter_interrupt_kernel":
        _jupyter("POST", _KERNELS + "/{session_id}/interrupt", "Interrupt the code that it runs.", _ENDED),
    "jupyter_list_sessions":
        _jupyter("GET", _NOTEBOOKS, "List notebooks' sessions: one for each kernel.", _array("JupyterSession"),
                 sandbox=False),
    "jupyter_create_session":
        _jupyter("POST", _NOTEBOOKS, "Start a kernel for a notebook.",
                 {201: Answer("Started.", ref("JupyterSession"))}, body=True),
    "jupyter_get_session":
        _jupyter("GET", _NOTEBOOKS + "/{session_id}", "Get a notebook's session.", _ok("JupyterSession")),
    "jupyter_delete_session":
        _jupyter("DELETE", _NOTEBOOKS + "/{session_id}", "End it with its kernel.", _ENDED),
}  # fmt: skip

_DIFY_DEPENDENCIES = "/v1/sandbox/dependencies"
DIFY: Mapping[str, Operation] = {
    "dify_run":
        Operation("POST", "/v1/sandbox/run", "dify", "Run a program in a sandbox of its own.", _ok("DifyRan"),
                  (RUNTIME,), body=ref("DifyRun"), error="DifyError"),
    "dify_list_dependencies":
        Operation("GET", _DIFY_DEPENDENCIES, "dify", "Packages that code can import.", _ok("DifyAnswer"),
                  error="DifyError", sandbox=False),
    "dify_update_dependencies":
        Operation("POST", _DIFY_DEPENDENCIES + "/update", "dify", "The same: nothing is installed.",
                  _ok("DifyAnswer"), error="DifyError", sandbox=False),
    "dify_refresh_dependencies":
        Operation("GET", _DIFY_DEPENDENCIES + "/refresh", "dify", "The same.", _ok("DifyAnswer"), error="DifyError",
                  sandbox=False),
}  # fmt: skip

# Every operation of the control surfaces by name: the router (api/app.py) and /openapi.json are both made from this.
CONTROL: Mapping[str, Operation] = {
    **NATIVE,
    **AGENTS,
    **USAGE,
    **KEYS,
    **CONSOLE,
    **TENANTS,
    **TOOLS,
    **CONTAINERS,
    **AGENTCUBE,
    **E2B,
    **DIFY,
    **JUPYTER,
    **HEALTH,
}

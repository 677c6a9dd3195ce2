"""The route table: each operation of the control surfaces by name, in the order of the document.

`api/app.py` makes the router from it and `document.py` makes /openapi.json, so neither can have a path that the other
lacks.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.api.openapi.common import RUNTIME, SESSION, ok
from gateway.api.openapi.compatible import AGENT_SANDBOX, AGENTCUBE, AGENTSCOPE, CONTAINERS, DIFY, E2B, JUPYTER
from gateway.api.openapi.document import Answer, Operation, Parameter
from gateway.api.openapi.librechat import LIBRECHAT
from gateway.api.openapi.schemas import EVENTS, RUNTIME_NAME, ref
from gateway.api.openapi.terminal import OPEN_TERMINAL
from gateway.core.model import Kind

_TEXT = {"type": "string"}
_METADATA = {
    200: Answer("The issuers.", {"type": "object"}), 404: Answer("There is no --oidc-issuer.", ref("Error")),
}  # fmt: skip

NATIVE: Mapping[str, Operation] = {
    "create_session":
        Operation("POST", "/v1/sessions", "sessions", "Create a session.", {201: Answer("Created.", ref("Session"))},
              body=ref("NewSession")),
    "list_sessions":
        Operation("GET", "/v1/sessions", "sessions", "List sessions, newest first.", ok("Sessions"), (
        Parameter("state", "Only those in this state, or all; without it those that have not ended."),
        Parameter("metadata.KEY", "Only those whose metadata has this value under KEY."),
        Parameter("runtime", "Only those of this runtime.", RUNTIME_NAME),
        Parameter("search", "Only those with all of these words in id, state, runtime (namespace/name) or metadata "
                  "(key=value), A to Z in either case. A page may then be short, even empty, before the last one."),
        Parameter("after", "`next` of the previous page, or its last id."),
        Parameter("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    ), sandbox=False),
    "get_session":
        Operation("GET", "/v1/sessions/{session_id}", "sessions", "Get a session.", ok("Session")),
    "update_session":
        Operation("PATCH", "/v1/sessions/{session_id}", "sessions", "Change its ttl, idle timeout, metadata, or "
                  "how much of the machine its sandbox may use.", ok("Session"), body=ref("SessionChange")),
    "delete_session":
        Operation("DELETE", "/v1/sessions/{session_id}", "sessions", "End a session.", {204: Answer("Ended.")}),
    "hibernate_session":
        Operation("POST", "/v1/sessions/{session_id}/hibernate", "sessions", "Hibernate a session now.",
                  ok("Session")),
    "wake_session":
        Operation("POST", "/v1/sessions/{session_id}/wake", "sessions", "Wake a session now.", ok("Session")),
    "get_session_egress":
        Operation("GET", "/v1/sessions/{session_id}/egress", "sessions", "What it may reach, and what it reached.",
                  ok("SessionEgress"), (Parameter("limit", "Lines of the log, the newest first; 100 if absent.",
                                                   {"type": "integer", "minimum": 1, "maximum": 500}),)),
    "watch_events":
        Operation("GET", "/v1/events", "sessions", "What becomes of sessions and pools, from this gateway: a page, or "
                  "with `Accept: text/event-stream` a stream.", ok("Events"), (
        Parameter("session", "Only of this session."),
        Parameter("runtime", "Only of this runtime.", RUNTIME_NAME),
        Parameter("kind", "Only of these.", {"enum": ["session", "pool"]}),
        Parameter("after", "The id of an event, or `next`; a stream also takes Last-Event-ID."),
    ), sandbox=False, more=(Answer("Events; each id is an `after`.", EVENTS, "text/event-stream"),)),
    "get_session_logs":
        Operation("GET", "/v1/sessions/{session_id}/logs", "sessions", "Its starts, sleeps, wakes and losses, as far "
                  "as this gateway has seen them.", ok("SessionLogs")),
    "get_session_metrics":
        Operation("GET", "/v1/sessions/{session_id}/metrics", "sessions", "What it uses now, and has used since its "
                  "gateway's start; for Prometheus with `Accept: text/plain`.", ok("SessionMetrics"),
                  more=(Answer("The same for Prometheus.", _TEXT, "text/plain"),)),
    "get_session_audit":
        Operation("GET", "/v1/sessions/{session_id}/audit", "sessions", "What the audit trail of its gateway has about "
                  "it, the newest first.", ok("SessionAudit"), (
        Parameter("limit", "How many lines; 100 if absent.", {"type": "integer", "minimum": 1, "maximum": 500}),)),
    "list_runtimes":
        Operation("GET", "/v1/runtimes", "runtimes", "List runtimes and their warm pools.", ok("Runtimes"), (
        Parameter("runtime", "Only this one.", RUNTIME_NAME),
        Parameter("manifest", "With their manifests, credentials masked; for admins and operators.",
                  {"type": "boolean"}),
    ), sandbox=False),
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
    "autoscaler_forecasts":
        Operation("GET", "/v1/autoscaler/{runtime}/forecasts", "runtimes",
                  "What was forecast of a warm pool, with a band, and what came: the last 240 points.",
              {200: Answer("Claims within `horizon` seconds of `at`; at most a point each 15 s.",
                           {"type": "object"})}, (
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

_TASK_FIELDS = (
    Parameter("prefer", "`respond-async` makes a task.", where="header"),
    Parameter("x-session-id", "The session; without it one is made when the task first runs.", where="header"),
    Parameter("idempotency-key", "The same key again answers with the same task.", where="header"),
    Parameter("x-wakegate-webhook", "A URL that is told of the end, signed.", where="header"),
    Parameter("x-wakegate-task-timeout", "How long one try may take.", where="header"),
    Parameter("x-wakegate-task-attempts", "How often it is tried, 1 to 20.", where="header"),
)
_TASK_FILTERS = (
    _NAMESPACE,
    Parameter("state", "Only those in it.",
              {"enum": ["queued", "running", "succeeded", "failed", "dead", "cancelled"]}),
    Parameter("before", "`next` of the previous page."),
    Parameter("limit", "How many at most, 20 if absent.", {"type": "integer", "minimum": 1, "maximum": 100}),
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
        _agent("POST", "/v1/agents/{name}/rollout", "Undo, pause or promote a change; move sessions.", "AgentRollout",
               body="AgentRolloutAction"),
    "create_agent_bundle":
        Operation("POST", "/v1/agent-bundles", "agents", "Upload an agent's files, a tar archive, plain or gzip.",
              {201: Answer("Here.", ref("AgentBundle"))}, body={"type": "string", "format": "binary"},
              body_type="application/octet-stream", sandbox=False),
    "create_agent_environment":
        Operation("POST", "/v1/agent-environments", "agents", "Install an agent's packages, once per list of them.",
              {200: Answer("They were here.", ref("AgentEnvironment")), 201: Answer("Here.", ref("AgentEnvironment"))},
              body=ref("NewAgentEnvironment"), sandbox=False),
    "invoke_agent_async":
        Operation("POST", "/v1/namespaces/{namespace}/agent-runtimes/{name}/invocations/{path}", "agents",
                  "With `Prefer: respond-async`, a task is made that runs the request later; without it, as GET.",
                  {202: Answer("A task; its path is in Location.", ref("AgentTask"))}, _TASK_FIELDS),
    "list_agent_schedules":
        _agent("GET", "/v1/agents/{name}/schedules", "When an agent is asked by itself, and what came of it last.",
               "AgentSchedules"),
    "list_agent_tasks":
        _agent("GET", "/v1/agents/{name}/tasks", "List the caller's tasks of an agent, newest first.", "AgentTasks",
               parameters=_TASK_FILTERS),
    "get_agent_task":
        _agent("GET", "/v1/agents/{name}/tasks/{task}", "Get a task, with a result of up to 64 KiB.", "AgentTask",
               parameters=(_NAMESPACE, Parameter("wait", "How long to wait for its end, such as 30s."))),
    "get_agent_task_result":
        Operation("GET", "/v1/agents/{name}/tasks/{task}/result", "agents", "What the agent answered, as it was.",
                  {200: Answer("The bytes.", None, "*/*"), 409: Answer("It has none.", ref("Error"))}, (_NAMESPACE,),
                  sandbox=False),
    "cancel_agent_task":
        _agent("POST", "/v1/agents/{name}/tasks/{task}/cancel", "Cancel a task; one that runs is stopped.",
               "AgentTask"),
    "retry_agent_task":
        _agent("POST", "/v1/agents/{name}/tasks/{task}/retry", "Try a task that is over again, such as a dead letter.",
               "AgentTask"),
    "delete_agent_task":
        _agent("DELETE", "/v1/agents/{name}/tasks/{task}", "Delete a task that is over, with its result.", ""),
    "get_webhook_secret":
        _agent("GET", "/v1/agents/{name}/webhook-secret", "With what webhooks of the tenant's tasks are signed.",
               "WebhookSecret"),
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
        Operation("GET", "/v1/usage", "usage", "What tenants have used, and what it costs.", ok("Usage"), (
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
        Operation("GET", "/v1/keys", "keys", "List API keys, the oldest first.", ok("Keys"),
                  (Parameter("tenant", "Only those of this tenant."),), sandbox=False),
    "revoke_key":
        Operation("DELETE", "/v1/keys/{key_id}", "keys", "Revoke an API key, everywhere within two seconds.",
                  {204: Answer("Revoked.")}, sandbox=False),
    "rotate_key":
        Operation("POST", "/v1/keys/{key_id}/rotate", "keys", "Create a key with the same rights and end the old one.",
                  {201: Answer("Made.", ref("NewKeyAnswer"))}, body=ref("Rotation"), sandbox=False),
    "get_caller":
        Operation("GET", "/v1/caller", "keys", "Get the caller's identity.", ok("Caller"), sandbox=False),
}  # fmt: skip

TENANTS: Mapping[str, Operation] = {
    "list_tenants":
        Operation("GET", "/v1/tenants", "tenants", "List tenants with their limits and what they use.",
                  ok("Tenants"), sandbox=False),
    "get_own_tenant":
        Operation("GET", "/v1/tenants/self", "tenants", "The caller's own tenant.", ok("Tenant"), sandbox=False),
    "get_tenant":
        Operation("GET", "/v1/tenants/{tenant}", "tenants", "Get a tenant's limits and what it uses.", ok("Tenant"),
                  sandbox=False),
    "put_tenant":
        Operation("PUT", "/v1/tenants/{tenant}", "tenants", "Set a tenant's limits: all of them, at every gateway "
                  "within two seconds.", {**ok("Tenant"), 201: Answer("Made.", ref("Tenant"))}, body=ref("NewTenant"),
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
        Operation("GET", "/healthz", "health", "Whether this process is alive.", ok("Status"), sandbox=False),
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
    "get_resource_metadata":
        Operation("GET", "/.well-known/oauth-protected-resource", "health",
                  "Where a client of the MCP server gets a token (RFC 9728).",
                  _METADATA, sandbox=False),
    "get_mcp_resource_metadata":
        Operation("GET", "/.well-known/oauth-protected-resource/mcp", "health", "The same, where they look first.",
                  _METADATA, sandbox=False),
    "check_agentcube_health":
        Operation("GET", "/health", "health", "AgentCube's health check.", ok("Status"), error="", sandbox=False),
    "check_agentcube_liveness":
        Operation("GET", "/health/live", "health", "AgentCube's liveness check.", ok("Status"), error="",
                  sandbox=False),
    "check_agentcube_readiness":
        Operation("GET", "/health/ready", "health",
              "AgentCube's readiness check; a later outage of the store does not fail it.",
              {200: Answer("Ready.", ref("Status")), 503: Answer("Not ready.", ref("NotReady"))}, error="",
              sandbox=False),
}  # fmt: skip


TOOLS: Mapping[str, Operation] = {
    "list_tools":
        Operation("GET", "/v1/tools", "tools", "List the tools to give to a model.", ok("Tools"), (
        Parameter("format", "The model API whose form the list has.",
                  {"enum": ["chat", "responses", "anthropic", "mcp"]}),
        Parameter("runtime", "The runtime whose tools to list.", RUNTIME_NAME), SESSION, RUNTIME,
    ), error="OpenAIError"),
    "run_tool_calls":
        Operation("POST", "/v1/tool_calls", "tools", "Run a model's tool calls; the answers are messages to append.",
              ok("ToolAnswers"), (SESSION, RUNTIME, Parameter(
                  "idempotency-key", "Without a session: a retry with the same key uses the session created first.",
                  {"type": "string", "minLength": 16, "maxLength": 256}, "header",
              )), body=ref("ToolCalls"), error="OpenAIError",
              more=(Answer("Progress.", EVENTS, "text/event-stream"),)),
    "run_once":
        Operation("POST", "/v1/run", "tools", "Run one program in a sandbox of its own, which then ends.",
                  ok("RunAnswer", "It ran; also where it failed or its time was over."), (RUNTIME,),
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
    **OPEN_TERMINAL,
    **LIBRECHAT,
    **AGENTSCOPE,
    **JUPYTER,
    **AGENT_SANDBOX,
    **HEALTH,
}

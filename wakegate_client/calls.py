"""One function per operation: what to send, and how to read the answer. Pure; `client` sends them.

Paths and queries are encoded here, so that a name with `/`, `?` or `..` in it can never lead to another operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import httpx

from wakegate_client.answers import read_json
from wakegate_client.types import Caller, CodeResult, Executed, Runtime, Session, Sessions, Tenant

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read. `json` wins over `content`."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    session: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Any = None
    slow: bool = False  # may take as long as what it runs

    def options(self) -> dict[str, Any]:
        """Keyword arguments of httpx' `request`."""
        # Quoted, since a field takes neither line ends nor letters beyond ASCII; an id has neither.
        headers = {**self.headers, **({"x-session-id": quoted(self.session)} if self.session else {})}
        body: dict[str, Any] = {"json": self.json} if self.json is not None else {"content": self.content}
        # The API takes an empty parameter for a wrong value, so what was not given is left out.
        params = {name: str(value) for name, value in self.params.items() if value not in (None, "")}
        return {"headers": headers, "params": params, **body}


def quoted(text: str) -> str:
    """One part of a path. Bytes of a command line that are no UTF-8 stay those bytes."""
    return quote(text, safe="", errors="surrogateescape")


def of_session(session: str, tail: str = "") -> str:
    """The path of a session of the API."""
    return f"/v1/sessions/{quoted(session)}{tail}"


def file_path(path: str) -> str:
    """The path of a file in a sandbox: each of its segments encoded."""
    return "/api/files/" + "/".join(quoted(part) for part in path.lstrip("/").split("/"))


def _of(kind: type[T], key: str = "") -> Callable[[httpx.Response], T]:
    def read(response: httpx.Response) -> T:
        document = read_json(response)
        return cast("T", document[key] if key else document)

    return read


def _nothing(_: httpx.Response) -> None:
    return None


def create_session(**fields: Any) -> Call[Session]:
    """POST /v1/sessions."""
    return Call("POST", "/v1/sessions", _of(Session), json={k: v for k, v in fields.items() if v is not None})


def list_sessions(params: Mapping[str, Any]) -> Call[Sessions]:
    """GET /v1/sessions: a page."""
    return Call("GET", "/v1/sessions", _of(Sessions), params=params)


def get_session(session: str) -> Call[Session]:
    """GET /v1/sessions/{id}."""
    return Call("GET", of_session(session), _of(Session))


def update_session(session: str, fields: Mapping[str, Any]) -> Call[Session]:
    """PATCH /v1/sessions/{id}."""
    return Call("PATCH", of_session(session), _of(Session), json=dict(fields))


def resize(session: str, fields: Mapping[str, Any]) -> Call[Session]:
    """PATCH /v1/sessions/{id} with `resources`; fields that are None stay as they are, none at all: as its runtime."""
    resources = {name: value for name, value in fields.items() if value is not None}
    return Call("PATCH", of_session(session), _of(Session), json={"resources": resources or None}, slow=True)


def end_session(session: str) -> Call[None]:
    """DELETE /v1/sessions/{id}."""
    return Call("DELETE", of_session(session), _nothing)


def hibernate(session: str) -> Call[Session]:
    """POST /v1/sessions/{id}/hibernate."""
    return Call("POST", of_session(session, "/hibernate"), _of(Session), slow=True)


def wake(session: str) -> Call[Session]:
    """POST /v1/sessions/{id}/wake."""
    return Call("POST", of_session(session, "/wake"), _of(Session), slow=True)


def session_metrics(session: str) -> Call[dict[str, Any]]:
    """GET /v1/sessions/{id}/metrics."""
    return Call("GET", of_session(session) + "/metrics", _of(dict[str, Any]))


def session_logs(session: str) -> Call[dict[str, Any]]:
    """GET /v1/sessions/{id}/logs."""
    return Call("GET", of_session(session, "/logs"), _of(dict[str, Any]))


def session_audit(session: str, limit: int = 100) -> Call[dict[str, Any]]:
    """GET /v1/sessions/{id}/audit: the newest first; a gateway without an audit trail answers 404."""
    return Call("GET", of_session(session, "/audit"), _of(dict[str, Any]), params={"limit": limit})


def execute(session: str, command: Sequence[str], fields: Mapping[str, Any]) -> Call[Executed]:
    """POST /api/execute."""
    body = {"command": list(command), **fields}
    return Call("POST", "/api/execute", _of(Executed), json=body, session=session, slow=True)


def run_code(session: str, code: str, fields: Mapping[str, Any]) -> Call[CodeResult]:
    """POST /api/run_code."""
    return Call("POST", "/api/run_code", _of(CodeResult), json={"code": code, **fields}, session=session, slow=True)


def in_sandbox(method: str, session: str, path: str, **options: Any) -> Call[dict[str, Any]]:
    """Any other request of picod's API that answers a JSON object."""
    return Call(method, path, _of(dict[str, Any]), session=session, **options)


def read_file(session: str, path: str) -> Call[bytes]:
    """GET /api/files/{path}."""
    return Call("GET", file_path(path), lambda response: response.content, session=session, slow=True)


def write_file(session: str, path: str, content: Any) -> Call[dict[str, Any]]:
    """PUT /api/files/{path}; `content`: bytes, or an iterable of them."""
    return in_sandbox("PUT", session, file_path(path), content=content, slow=True)


def runtimes(params: Mapping[str, Any] | None = None) -> Call[list[Runtime]]:
    """GET /v1/runtimes; `runtime`: only that, `manifest`: with it, for who runs the gateway."""
    return Call("GET", "/v1/runtimes", _of(list[Runtime], "runtimes"), params=params or {})


def autoscaler() -> Call[dict[str, Any]]:
    """GET /v1/autoscaler."""
    return Call("GET", "/v1/autoscaler", _of(dict[str, Any]))


def usage(params: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """GET /v1/usage."""
    return Call("GET", "/v1/usage", _of(dict[str, Any]), params=params)


def caller() -> Call[Caller]:
    """GET /v1/caller."""
    return Call("GET", "/v1/caller", _of(Caller))


def tenants() -> Call[list[Tenant]]:
    """GET /v1/tenants."""
    return Call("GET", "/v1/tenants", _of(list[Tenant], "tenants"))


def get_tenant(name: str) -> Call[Tenant]:
    """GET /v1/tenants/{name}; `self` is the caller's own."""
    return Call("GET", f"/v1/tenants/{quoted(name)}", _of(Tenant))


def put_tenant(name: str, limits: Mapping[str, Any]) -> Call[Tenant]:
    """PUT /v1/tenants/{name}."""
    return Call("PUT", f"/v1/tenants/{quoted(name)}", _of(Tenant), json={"limits": dict(limits)})


def delete_tenant(name: str, sessions: str) -> Call[None]:
    """DELETE /v1/tenants/{name}; `sessions`: keep or end."""
    return Call("DELETE", f"/v1/tenants/{quoted(name)}", _nothing, params={"sessions": sessions})


def create_key(fields: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """POST /v1/keys: the answer alone has the key."""
    return Call("POST", "/v1/keys", _of(dict[str, Any]), json=dict(fields))


def list_keys(tenant: str = "") -> Call[list[dict[str, Any]]]:
    """GET /v1/keys; of one tenant, or of all."""
    return Call("GET", "/v1/keys", _of(list[dict[str, Any]], "keys"), params={"tenant": tenant})


def revoke_key(key: str) -> Call[None]:
    """DELETE /v1/keys/{id}."""
    return Call("DELETE", f"/v1/keys/{quoted(key)}", _nothing)


def rotate_key(key: str, fields: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """POST /v1/keys/{id}/rotate; `overlap`: how long the old one goes on."""
    return Call("POST", f"/v1/keys/{quoted(key)}/rotate", _of(dict[str, Any]), json=dict(fields))


def of_agent(name: str, tail: str = "") -> str:
    """The path of an agent of the API."""
    return f"/v1/agents/{quoted(name)}{tail}"


def get_agent(name: str, namespace: str = "") -> Call[dict[str, Any]]:
    """GET /v1/agents/{name}; its `path` is where it is invoked. `namespace`: the caller's own if empty."""
    return Call("GET", of_agent(name), _of(dict[str, Any]), params={"namespace": namespace})


def list_agents(params: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """GET /v1/agents: a page, by name. Filters as in docs/agents.md."""
    return Call("GET", "/v1/agents", _of(dict[str, Any]), params=params)


def stop_agent(name: str, namespace: str = "") -> Call[dict[str, Any]]:
    """POST /v1/agents/{name}/stop: its sessions end, and it refuses requests."""
    return Call("POST", of_agent(name, "/stop"), _of(dict[str, Any]), params={"namespace": namespace}, slow=True)


def start_agent(name: str, namespace: str = "") -> Call[dict[str, Any]]:
    """POST /v1/agents/{name}/start."""
    return Call("POST", of_agent(name, "/start"), _of(dict[str, Any]), params={"namespace": namespace})


def delete_agent(name: str, namespace: str = "") -> Call[None]:
    """DELETE /v1/agents/{name}; its sessions end."""
    return Call("DELETE", of_agent(name), _nothing, params={"namespace": namespace}, slow=True)


def invoke_async(path: str, content: Any, headers: Mapping[str, str], session: str = "") -> Call[dict[str, Any]]:
    """POST on an agent's path with `Prefer: respond-async`: answers a task. `headers` as docs/agents.md has them."""
    fields = {**headers, "prefer": "respond-async"}
    return Call("POST", path, _of(dict[str, Any]), content=content, headers=fields, session=session)


def list_tasks(agent: str, params: Mapping[str, Any]) -> Call[dict[str, Any]]:
    """GET /v1/agents/{name}/tasks: a page, the newest first."""
    return Call("GET", of_agent(agent, "/tasks"), _of(dict[str, Any]), params=params)


def list_schedules(agent: str, namespace: str = "") -> Call[dict[str, Any]]:
    """GET /v1/agents/{name}/schedules: when it is asked by itself, and what came of it last."""
    return Call("GET", of_agent(agent, "/schedules"), _of(dict[str, Any]), params={"namespace": namespace})


def _task(method: str, agent: str, task: str, namespace: str, tail: str = "", **params: Any) -> Call[dict[str, Any]]:
    path = of_agent(agent, f"/tasks/{quoted(task)}{tail}")
    return Call(method, path, _of(dict[str, Any]), params={"namespace": namespace, **params}, slow=True)


def get_task(agent: str, task: str, namespace: str = "", wait: str = "") -> Call[dict[str, Any]]:
    """GET /v1/agents/{name}/tasks/{task}; `wait`: for its end, at most so long, such as 30s."""
    return _task("GET", agent, task, namespace, wait=wait)


def task_result(agent: str, task: str, namespace: str = "") -> Call[bytes]:
    """GET /v1/agents/{name}/tasks/{task}/result: what the agent answered."""
    path = of_agent(agent, f"/tasks/{quoted(task)}/result")
    return Call("GET", path, lambda response: response.content, params={"namespace": namespace}, slow=True)


def cancel_task(agent: str, task: str, namespace: str = "") -> Call[dict[str, Any]]:
    """POST /v1/agents/{name}/tasks/{task}/cancel."""
    return _task("POST", agent, task, namespace, "/cancel")


def retry_task(agent: str, task: str, namespace: str = "") -> Call[dict[str, Any]]:
    """POST /v1/agents/{name}/tasks/{task}/retry."""
    return _task("POST", agent, task, namespace, "/retry")

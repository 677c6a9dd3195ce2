"""One function per operation: what to send, and how to read the answer. Pure; `client` sends them.

Paths and queries are encoded here, so that a name with `/`, `?` or `..` in it can never lead to another operation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote

import httpx

from wakegate_client.types import Caller, CodeResult, Executed, Runtime, Session, Sessions, Tenant

T = TypeVar("T")
MAX_EVENT_CHARS = 32 << 20  # of one server-sent event: a picture of 16 MiB in base64, and some
_JSON = "application/json"


class APIError(Exception):
    """The gateway, or a sandbox, refused. `status` is HTTP's, `code` the API's word for it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class UnreachableError(Exception):
    """There was no answer, or it broke off."""


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event. `data` is the parsed JSON, or the text where it is none."""

    name: str
    data: Any
    id: str = ""


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
        headers = {**self.headers, **({"x-session-id": self.session} if self.session else {})}
        body: dict[str, Any] = {"json": self.json} if self.json is not None else {"content": self.content}
        # The API takes an empty parameter for a wrong value, so what was not given is left out.
        params = {name: str(value) for name, value in self.params.items() if value not in (None, "")}
        return {"headers": headers, "params": params, **body}


def check(response: httpx.Response) -> None:
    """Raise APIError for an answer (read to its end) that is none of success."""
    if response.is_success:
        return
    # Whatever stands in front of the gateway may have answered, with a page of HTML: then its first words are the
    # message.
    code, message = "", response.text[:2000]
    try:
        document = response.json()
        if isinstance(document, dict):
            code = str(document.get("code", ""))
            message = str(document.get("error") or document.get("message") or "")
    except ValueError:
        pass
    raise APIError(response.status_code, code, message or f"the answer's status is {response.status_code}")


def read_json(response: httpx.Response) -> Any:
    """The JSON of an answer. Raises UnreachableError for another: something else answers at this address."""
    try:
        return response.json()
    except ValueError:
        raise UnreachableError(f"{response.url.host}:{response.url.port} does not answer as Wakegate does") from None


class EventReader:
    """Reads server-sent events (WHATWG HTML 9.2.6) from lines of text."""

    def __init__(self) -> None:
        self._name, self._id, self._data, self._size = "", "", list[str](), 0

    def feed(self, line: str) -> Iterator[Event]:
        """The event that an empty line ends. Raises UnreachableError for one of more than MAX_EVENT_CHARS."""
        if not line:
            if self._data:
                yield Event(self._name or "message", _parsed("\n".join(self._data)), self._id)
            self._name, self._data, self._size = "", [], 0
            return
        name, _, value = line.partition(":")
        # One space only, as the standard has it: a line of code that is indented keeps the rest.
        value = value.removeprefix(" ")
        # Without a bound a sandbox that answers one endless line would fill the memory of whoever reads its output.
        self._size += len(value)
        if self._size > MAX_EVENT_CHARS:
            raise UnreachableError("an event of the answer is too large")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def of_session(session: str, tail: str = "") -> str:
    """The path of a session of the API."""
    return f"/v1/sessions/{quote(session, safe='')}{tail}"


def file_path(path: str) -> str:
    """The path of a file in a sandbox: each of its segments encoded."""
    return "/api/files/" + "/".join(quote(part, safe="") for part in path.lstrip("/").split("/"))


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


def runtimes() -> Call[list[Runtime]]:
    """GET /v1/runtimes."""
    return Call("GET", "/v1/runtimes", _of(list[Runtime], "runtimes"))


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
    return Call("GET", f"/v1/tenants/{quote(name, safe='')}", _of(Tenant))


def put_tenant(name: str, limits: Mapping[str, Any]) -> Call[Tenant]:
    """PUT /v1/tenants/{name}."""
    return Call("PUT", f"/v1/tenants/{quote(name, safe='')}", _of(Tenant), json={"limits": dict(limits)})


def delete_tenant(name: str, sessions: str) -> Call[None]:
    """DELETE /v1/tenants/{name}; `sessions`: keep or end."""
    return Call("DELETE", f"/v1/tenants/{quote(name, safe='')}", _nothing, params={"sessions": sessions})


def of_agent(name: str, tail: str = "") -> str:
    """The path of an agent of the API."""
    return f"/v1/agents/{quote(name, safe='')}{tail}"


def get_agent(name: str, namespace: str = "") -> Call[dict[str, Any]]:
    """GET /v1/agents/{name}; its `path` is where it is invoked. `namespace`: the caller's own if empty."""
    return Call("GET", of_agent(name), _of(dict[str, Any]), params={"namespace": namespace})


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
    path = of_agent(agent, f"/tasks/{quote(task, safe='')}{tail}")
    return Call(method, path, _of(dict[str, Any]), params={"namespace": namespace, **params}, slow=True)


def get_task(agent: str, task: str, namespace: str = "", wait: str = "") -> Call[dict[str, Any]]:
    """GET /v1/agents/{name}/tasks/{task}; `wait`: for its end, at most so long, such as 30s."""
    return _task("GET", agent, task, namespace, wait=wait)


def task_result(agent: str, task: str, namespace: str = "") -> Call[bytes]:
    """GET /v1/agents/{name}/tasks/{task}/result: what the agent answered."""
    path = of_agent(agent, f"/tasks/{quote(task, safe='')}/result")
    return Call("GET", path, lambda response: response.content, params={"namespace": namespace}, slow=True)


def cancel_task(agent: str, task: str, namespace: str = "") -> Call[dict[str, Any]]:
    """POST /v1/agents/{name}/tasks/{task}/cancel."""
    return _task("POST", agent, task, namespace, "/cancel")


def retry_task(agent: str, task: str, namespace: str = "") -> Call[dict[str, Any]]:
    """POST /v1/agents/{name}/tasks/{task}/retry."""
    return _task("POST", agent, task, namespace, "/retry")

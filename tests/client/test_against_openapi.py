"""The client says what /openapi.json says: its paths, its bodies, and the fields of its answers."""

from __future__ import annotations

import re
from typing import Any, NotRequired, get_args, get_origin, get_type_hints

import pytest

from gateway.api.openapi.document import make_document
from gateway.api.openapi.sandbox import SANDBOX
from gateway.api.openapi.schemas import SCHEMAS
from gateway.api.openapi.table import CONTROL
from wakegate_client import calls, types
from wakegate_client.calls import Call

DOCUMENT = make_document((*CONTROL.values(), *SANDBOX))
CALLS: dict[str, Call[Any]] = {
    "create_session": calls.create_session(runtime="default/x", ttl="1h", idleTimeout="5m", metadata={}),
    "list_sessions": calls.list_sessions({"state": "all", "runtime": "x", "after": "s", "limit": 3}),
    "get_session": calls.get_session("s"),
    "update_session": calls.update_session("s", {"ttl": "1h"}),
    "end_session": calls.end_session("s"),
    "hibernate": calls.hibernate("s"),
    "wake": calls.wake("s"),
    "resize": calls.resize("s", {"cpu": 2, "memory": "2Gi", "processes": None}),
    "session_metrics": calls.session_metrics("s"),
    "session_logs": calls.session_logs("s"),
    "session_audit": calls.session_audit("s", 5),
    "execute": calls.execute("s", ["true"], {"timeout": "5s"}),
    "run_code": calls.run_code("s", "1", {"language": "python"}),
    "read_file": calls.read_file("s", "x"),
    "write_file": calls.write_file("s", "x", b""),
    "runtimes": calls.runtimes({"runtime": "x", "manifest": "true"}),
    "autoscaler": calls.autoscaler(),
    "usage": calls.usage({"from": "0", "to": "1", "group_by": "tenant", "tenant": "x"}),
    "caller": calls.caller(),
    "tenants": calls.tenants(),
    "get_tenant": calls.get_tenant("x"),
    "put_tenant": calls.put_tenant("x", {"sessions": 1}),
    "delete_tenant": calls.delete_tenant("x", "end"),
    "create_key": calls.create_key({"role": "member", "tenant": "x", "name": "n", "expires": 60}),
    "list_keys": calls.list_keys("x"),
    "revoke_key": calls.revoke_key("k"),
    "rotate_key": calls.rotate_key("k", {"overlap": 60}),
    "get_agent": calls.get_agent("x", "y"),
    "list_agents": calls.list_agents({"namespace": "x", "phase": "ready", "after": "a", "limit": 3}),
    "stop_agent": calls.stop_agent("x", "y"),
    "start_agent": calls.start_agent("x", "y"),
    "delete_agent": calls.delete_agent("x", "y"),
    "invoke_async": calls.invoke_async("/v1/namespaces/x/agent-runtimes/y/invocations/z", b"", {}, "s"),
    "list_tasks": calls.list_tasks("x", {"namespace": "y", "state": "dead", "before": "1", "limit": 3}),
    "get_task": calls.get_task("x", "t", "y", "5s"),
    "task_result": calls.task_result("x", "t", "y"),
    "cancel_task": calls.cancel_task("x", "t", "y"),
    "list_schedules": calls.list_schedules("a", "ns"),
    "retry_task": calls.retry_task("x", "t", "y"),
}
NO_OPERATIONS = {"check", "quoted", "read_json", "of_session", "of_agent", "file_path", "in_sandbox"}


def operation_of(call: Call[Any]) -> dict[str, Any]:
    """What the document says of a call's method and path."""
    found = [
        item[call.method.lower()]
        for path, item in DOCUMENT["paths"].items()
        if re.fullmatch(re.sub(r"\{[a-z_]+\}", "[^/]+", path), call.path) and call.method.lower() in item
    ]
    assert found, f"{call.method} {call.path} is not in the document"
    return dict(found[0])


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_every_function_of_calls_is_compared_here() -> None:
    """One that is added has to be added to CALLS."""
    named = {
        name
        for name, value in vars(calls).items()
        if callable(value) and getattr(value, "__module__", "") == calls.__name__ and name[0].islower()
    }
    assert named - NO_OPERATIONS == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_call_is_an_operation_with_its_fields_and_parameters(name: str) -> None:
    """The method, the path, what is in the query, what is in the body."""
    call = CALLS[name]
    operation = operation_of(call)
    known = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"}
    assert call.params.keys() <= known
    if call.json is not None:
        body = resolved(operation["requestBody"]["content"]["application/json"]["schema"])
        assert call.json.keys() <= body["properties"].keys()
    if call.session:
        assert any(each["name"] == "x-session-id" for each in operation["parameters"])


@pytest.mark.parametrize("name", ["Session", "Sessions", "Executed", "CodeResult", "Tenant", "Caller"])
def test_type_has_the_fields_of_its_schema(name: str) -> None:
    """Every field of the type is in the schema, and what the schema requires is not optional in the type."""
    schema = SCHEMAS[name]
    hints = get_type_hints(getattr(types, name), include_extras=True)
    assert hints.keys() <= schema["properties"].keys()
    required = {field for field, hint in hints.items() if get_origin(hint) is not NotRequired}
    assert required == set(schema["required"])
    for field, hint in hints.items():
        inner = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        allows_null = type(None) in get_args(inner)
        assert allows_null == ({"type": "null"} in schema["properties"][field].get("anyOf", ())), field


def test_name_with_slashes_leads_to_no_other_operation() -> None:
    """It is encoded, in a session's id and in a file's path; dots are the gateway's to judge."""
    assert calls.get_session("../keys?x").path == "/v1/sessions/..%2Fkeys%3Fx"
    assert calls.read_file("s", "a b/%2e?#").path == "/api/files/a%20b/%252e%3F%23"

"""The OpenAPI document: it names every path there is, and what it says is what is answered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.api.openapi.document import make_document
from gateway.api.openapi.sandbox import PASS_THROUGH, SANDBOX
from gateway.api.openapi.table import CONTROL
from gateway.testing import ScriptedProvider, scripted_gateway
from picod.routes import ANY, ROUTES
from tests.support.serve import Server, serve

DOCUMENT = make_document((*CONTROL.values(), *SANDBOX, *PASS_THROUGH))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# What the gateway does with a sandbox on its own account, and what is no plain request.
ENDLESS = {
    "/api/fs/watch",
    "/api/processes/stream",
    "/api/processes/{process_id}/stream",
}  # would be waited for in vain
# Of E2B's, what is not supported: 501 is the right answer, and schemathesis takes it for a crash.
UNSUPPORTED = {f"/sandboxes/{{sandbox_id}}/{verb}" for verb in ("fork", "snapshots", "network")}
INTERNAL = {
    "/health", "/api/suspend", "/api/resume", "/api/snapshot", "/api/snapshot/fingerprint", "/api/activity",
    "/api/ports/", "/api/terminal", "/api/egress",
}  # fmt: skip


def test_openapi_names_every_path_of_the_gateway(tmp_path: Path) -> None:
    """Each route and method once, and none that is not there."""
    gateway = scripted_gateway(tmp_path, ScriptedProvider())
    served = [
        (method, route.path.replace(":path}", "}"))  # the rest of a path, slashes included, is a name like any other
        for route in gateway.surfaces.routes
        for method in route.methods or ()
        if method != "HEAD"
    ]
    assert sorted(each.key for each in CONTROL.values()) == sorted(served)


def test_openapi_names_every_path_of_the_sandbox() -> None:
    """Each of picod's that a client calls; a path that takes all below it is named by what is below."""
    for each in SANDBOX:
        path = re.sub(r"\{.*", "", each.path).encode()
        assert any(route.path == path and (route.methods == ANY or each.method in route.methods) for route in ROUTES), (
            each
        )
    named = {re.sub(r"\{.*", "", each.path) for each in SANDBOX}
    missing = {route.path.decode() for route in ROUTES} - INTERNAL - named
    assert not missing, "describe them in gateway/api/openapi/sandbox.py"


def test_openapi_schemas_are_json_schema() -> None:
    """All of them, and every reference leads somewhere."""
    for name, schema in DOCUMENT["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        for found in re.findall(r"#/components/schemas/(\w+)", str(schema)):
            assert found in DOCUMENT["components"]["schemas"], name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("wg") / "state", "--max-sandboxes", "6") as served:
        yield served


class Sender:
    """Sends made-up requests, half of them about a session that is there, and ends the sessions that they make."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.kept = server.session()
        self.http = requests.Session()

    def send(self, case: Any, real: bool) -> None:
        if self.server.client.get(f"/v1/sessions/{self.kept}").json().get("state") == "terminated":
            self.kept = self.server.session()
        if real:
            for name in ("session_id", "container_id"):
                if name in (case.path_parameters or {}):
                    case.path_parameters[name] = self.kept
            for name in ("x-session-id", "mcp-session-id", "x-agentcube-session-id"):
                if name in (case.headers or {}):
                    case.headers[name] = self.kept
        response = case.call(base_url=self.server.url, session=self.http, timeout=60)
        made = response.headers.get("x-session-id") or response.headers.get("X-Session-Id")
        made = made[0] if isinstance(made, list) else made
        if made and made != self.kept:
            self.server.client.delete(f"/v1/sessions/{made}")
        case.validate_response(response, checks=CHECKS)


@pytest.fixture(scope="module")
def sender(server: Server) -> Sender:
    """Sends requests on one session of the gateway."""
    return Sender(server)


def operations() -> list[Any]:
    """All operations of the document, except those that never end."""
    schema: Any = schemathesis.openapi.from_dict(DOCUMENT)
    found = [each.ok() for each in schema.get_all_operations()]
    return [each for each in found if each.path not in ENDLESS | UNSUPPORTED]


def try_out(operation: Any, sender: Sender, examples: int) -> None:
    """Send so many requests made up from an operation."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(), real=st.booleans())
    def run(case: Any, real: bool) -> None:
        sender.send(case, real)

    run()


@pytest.mark.parametrize("operation", operations(), ids=lambda each: f"{each.method.upper()} {each.path}")
def test_answers_match_the_openapi_document(operation: Any, sender: Sender) -> None:
    """No server error, no status, type or shape of answer that the document does not declare."""
    try_out(operation, sender, 3)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("operation", operations(), ids=lambda each: f"{each.method.upper()} {each.path}")
def test_many_answers_match_the_openapi_document(operation: Any, sender: Sender) -> None:
    """The same with many more requests."""
    try_out(operation, sender, 60)

"""Errors as answers: one shape per surface, and nothing of the gateway's host in them."""

from __future__ import annotations

import orjson
import pytest

from gateway.api.errors import ErrorShape, ParamError, error_document
from gateway.core.errors import BadRequestError, SandboxStartError, StoreUnavailableError, public_message
from gateway.routing.responses import error_body


@pytest.mark.parametrize("shape", list(ErrorShape))
def test_error_has_the_shape_of_its_surface(shape: ErrorShape) -> None:
    """As its clients read it."""
    expected = {
        ErrorShape.NATIVE: {"error": "x: no", "code": "BAD_REQUEST"},
        ErrorShape.AGENTCUBE: {"message": "x: no"},
        ErrorShape.OPENAI: {
            "error": {"message": "x: no", "type": "invalid_request_error", "param": "x", "code": "bad_request"}
        },
        ErrorShape.E2B: {"code": 400, "message": "x: no", "error_code": "bad_request"},
        ErrorShape.JUPYTER: {"message": "x: no", "reason": "BAD_REQUEST"},
        ErrorShape.AGENTSCOPE: {"detail": "x: no"},
        ErrorShape.OPEN_TERMINAL: {"detail": "x: no", "error": "x: no"},
        ErrorShape.AGENT_SANDBOX: {"detail": "x: no", "message": "x: no"},
        ErrorShape.KUBERNETES: {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": "x: no",
            "reason": "BadRequest",
            "code": 400,
        },
        ErrorShape.DIFY: {"code": -400, "message": "x: no", "data": None},
        ErrorShape.MCP: {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "x: no"}},
    }
    assert error_document(ParamError("x", "no"), shape) == expected[shape]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("cannot open '/var/lib/wakegate/sessions.db': full", "cannot open '<path>': full"),
        ("bwrap: /root/x/bin/bwrap: no such file", "bwrap: <path>: no such file"),
        ("the store file:///srv/snapshots/a is away", "the store <path> is away"),
        ("gateway b at http://10.0.0.1:8080/v1/x is away", "gateway b at http://10.0.0.1:8080/v1/x is away"),
        ("/workspace/data.csv is a folder; GET /v1/sessions/a", "/workspace/data.csv is a folder; GET /v1/sessions/a"),
        ('File "/app/x.py", line 3; /opt/agent/y.py', 'File "/app/x.py", line 3; /opt/agent/y.py'),
        ("/opt/wakegate/keys and /apps/x", "<path> and <path>"),
        ("1/2 of them, and/or none", "1/2 of them, and/or none"),
    ],
)
def test_gateway_error_names_no_path_of_the_host(message: str, shown: str) -> None:
    """On every surface and the data path; what the client sent is repeated as it is."""
    error = StoreUnavailableError(message)
    assert public_message(error) == shown
    assert orjson.loads(error_body(error))["error"] == shown
    for shape in ErrorShape:
        assert orjson.dumps(shown) in orjson.dumps(error_document(error, shape))
    assert public_message(BadRequestError(message)) == message


def test_hiding_paths_takes_linear_time() -> None:
    """Whatever a sandbox made of an error's text; a quadratic expression would take minutes."""
    for text in ("/a" * 500_000, "/" * 1_000_000, " /a" * 300_000, "file://" * 150_000, "'/a/" * 250_000):
        public_message(SandboxStartError(text))

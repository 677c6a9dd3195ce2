"""Where a request wants to go, from its path and its session headers alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.api.openapi.table import CONTROL
from gateway.core.errors import BadRequestError
from gateway.core.model import Kind, RuntimeKey, SessionId
from gateway.routing.target import (
    FLAT_AGENTS,
    LIBRECHAT,
    OPEN_TERMINAL,
    RESERVED_PATHS,
    RESERVED_V1,
    NotProxied,
    Target,
    is_control,
    parse,
)

PLANE = b"/v1/namespaces/default/code-interpreters/my-interpreter/invocations"
WIRE = st.binary(max_size=400)
pieces = st.sampled_from([
    b"/v1", b"/namespaces", b"/", b"//", b"default", b"/code-interpreters", b"/agent-runtimes", b"/x", b"/invocations",
    b"%2F", b"..", b"\xff", b"sessions", b"/healthz", b"?", b"%00",
])  # fmt: skip
paths = WIRE | st.lists(pieces, max_size=12).map(b"".join) | WIRE.map(lambda tail: PLANE + b"/" + tail)


@given(raw=paths, session=st.none() | WIRE, runtime=st.none() | WIRE)
@example(raw=PLANE + b"/", session=b"", runtime=None)
@example(raw=b"/a", session=b"a\n", runtime=b"/")
@example(raw=b"/a", session=b"a" * 129, runtime=b"a//b")
def test_parse_answers_any_bytes_with_a_target_or_a_bad_request(
    raw: bytes, session: bytes | None, runtime: bytes | None
) -> None:
    """Nothing that a client sends makes it raise anything else, and what it lets through is well-formed."""
    try:
        target = parse(raw, session, runtime)
    except BadRequestError:
        return
    if isinstance(target, Target):
        assert target.path.startswith(b"/") or not raw.startswith(b"/")
        assert target.session_id is None or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", target.session_id)
        for key in [target.runtime] if target.runtime else []:
            assert re.fullmatch(r"[a-z0-9][-a-z0-9.]*", key.namespace)
            assert re.fullmatch(r"[a-z0-9][-a-z0-9.]*", key.name)


@given(tail=WIRE)
@example(tail=b"a%2Fb/../c//d%00;e=\xff")
@example(tail=b"v1/namespaces/other/code-interpreters/x/invocations/")
def test_parse_keeps_the_path_byte_for_byte(tail: bytes) -> None:
    """Nothing is decoded, merged or resolved: the sandbox sees what the client sent, in both forms."""
    target = parse(PLANE + b"/" + tail, b"s1", None)
    assert isinstance(target, Target)
    assert (target.path, target.session_id) == (b"/" + tail, "s1")
    plain = parse(b"/files/" + tail, b"s1", None)
    assert isinstance(plain, Target)
    assert plain.path == b"/files/" + tail


@pytest.mark.parametrize("kind", Kind)
def test_parse_reads_the_runtime_from_the_path(kind: Kind) -> None:
    """Each kind has its own segment; without a session header a new session is meant."""
    target = parse(f"/v1/namespaces/team-a/{kind.segment}/calc.v2/invocations/x".encode(), None, None)
    assert target == Target(None, RuntimeKey("team-a", "calc.v2", kind), b"/x")


@pytest.mark.parametrize(
    ("path", "outcome"),
    [
        (PLANE, NotProxied.ADD_SLASH),
        (PLANE + b"zzz/x", NotProxied.NO_ROUTE),
        (b"/v1/namespaces/default/code-interpreterz/x/invocations/", NotProxied.NO_ROUTE),
        (b"/v1/namespaces/default/code-interpreters/x", NotProxied.NO_ROUTE),
        (b"/v1/namespaces/", NotProxied.NO_ROUTE),
        (b"/v1/sessions", NotProxied.CONTROL),
        (b"/v1/sessions/s1", NotProxied.CONTROL),
        (b"/v1/sessions/s1/ports", NotProxied.CONTROL),
        (b"/v1/sessions/s1/portz/8000/", NotProxied.CONTROL),
        (b"/v1/sessions/s1/ports/8000", NotProxied.ADD_SLASH),
        (b"//v1/code-interpreter", NotProxied.CONTROL),
        (b"/healthz", NotProxied.CONTROL),
        (b"/readyz", NotProxied.CONTROL),
    ],
)
def test_parse_leaves_other_paths_to_the_control_surfaces(path: bytes, outcome: NotProxied) -> None:
    """Prefixes match at segment borders, and a session header does not take a control path away."""
    assert parse(path, b"s1", None) is outcome


def test_every_operation_of_the_gateway_has_a_reserved_name() -> None:
    """So that a session header cannot take its requests away; and no name is reserved without need."""
    # Not other products': their clients never send a session header, and a server in a sandbox may well have /sandboxes
    # or /api/kernels.
    paths = {
        each.path.encode()
        for each in CONTROL.values()
        if each.tag not in ("agent-sandbox", "agentscope", "e2b", "jupyter")
    }
    assert all(is_control(path) and is_control(b"/" + path) for path in paths)
    flat = {path for path in paths if path.startswith((FLAT_AGENTS, OPEN_TERMINAL, LIBRECHAT))}
    assert {path for path in paths - flat if not path.startswith(b"/v1/")} == RESERVED_PATHS
    assert {path.split(b"/")[2] for path in paths if path.startswith(b"/v1/")} | {b"namespaces"} == RESERVED_V1


@pytest.mark.parametrize(
    "path",
    [b"/v1/chat/completions", b"/v1/models", b"/v1", b"/v1/", b"/v1/sessionsx", b"//x", b"//", b"//v1/chat",
     b"/api/execute", b"/api/v1/agentsx", b"/open-terminalx", b"/x//v1/sessions"],
)  # fmt: skip
def test_parse_leaves_all_other_names_to_the_sandbox(path: bytes) -> None:
    """Where a session or a runtime is named, whatever the path looks like; it goes on as it came."""
    assert parse(path, b"s1", None) == Target(SessionId("s1"), None, path)
    assert parse(path, None, b"calc") == Target(None, RuntimeKey("default", "calc"), path)


@pytest.mark.parametrize("path", [b"/health", b"/healthzz", b"/v1", b"/v10/x", b"/readyz/", b"/api/execute", b"/"])
def test_parse_sends_a_path_without_session_or_runtime_nowhere(path: bytes) -> None:
    """Plain HTTP needs one of the two headers."""
    assert parse(path, None, None) is NotProxied.CONTROL


@given(tail=WIRE)
@example(tail=b"a%2Fb/../c//d%00;e=\xff")
def test_parse_leads_a_port_of_a_session_to_picods_bridge(tail: bytes) -> None:
    """The session is in the path; what follows the port is kept byte for byte."""
    target = parse(b"/v1/sessions/s1/ports/8000/" + tail, None, None)
    assert target == Target(SessionId("s1"), None, b"/api/ports/8000/" + tail)
    assert parse(b"/v1/sessions/s1/ports/8000/" + tail, b"s1", None) == target


def test_parse_leads_a_sessions_terminal_to_picod() -> None:
    """That path alone; what is below it is the control surfaces'."""
    assert parse(b"/v1/sessions/s1/terminal", None, None) == Target(SessionId("s1"), None, b"/api/terminal")
    assert parse(b"/v1/sessions/s1/terminal/x", b"s1", None) is NotProxied.CONTROL


@pytest.mark.parametrize(
    ("path", "session", "match"),
    [
        (b"/v1/sessions/s1/ports/8000/", b"s2", "names another session"),
        (b"/v1/sessions/s1/ports/0/", None, "malformed port"),
        (b"/v1/sessions/s1/ports/65536/", None, "malformed port"),
        (b"/v1/sessions/s1/ports//", None, "malformed port"),
        (b"/v1/sessions/s1/ports/+80/", None, "malformed port"),
        (b"/v1/sessions/-s1/ports/80/", None, "malformed session id"),
    ],
)
def test_parse_refuses_invalid_ports(path: bytes, session: bytes | None, match: str) -> None:
    """The error says what a valid port is."""
    with pytest.raises(BadRequestError, match=match):
        parse(path, session, None)


def test_parse_reads_the_runtime_header_with_and_without_namespace() -> None:
    """`name` alone is in the default namespace."""
    assert parse(b"/a", None, b"ns/calc") == Target(None, RuntimeKey("ns", "calc"), b"/a")
    assert parse(b"/a", None, b"calc") == Target(None, RuntimeKey("default", "calc"), b"/a")


@pytest.mark.parametrize("value", [b"", b"-a", b"a/../b", b"a b", b"a\n", "ä".encode(), b"a" * 129, b"../../etc"])
def test_parse_refuses_malformed_session_ids(value: bytes) -> None:
    """The message says what is wrong and what would be right."""
    with pytest.raises(BadRequestError, match=r"malformed session id .*: expected 1 to 128"):
        parse(b"/a", value, None)


@pytest.mark.parametrize("name", [b"", b"UPPER", b"-x", b"x-", b"a_b", b"%2e", b"x" * 254])
def test_parse_refuses_malformed_names(name: bytes) -> None:
    """A name in the path must be a DNS name."""
    with pytest.raises(BadRequestError, match="malformed name"):
        parse(b"/v1/namespaces/default/code-interpreters/" + name + b"/invocations/", None, None)

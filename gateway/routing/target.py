"""Where a request wants to go: pure parsing of path and session headers into a Target.

Three forms of path reach a sandbox:

    /v1/namespaces/{namespace}/{code-interpreters|agent-runtimes}/{name}/invocations/{path}   AgentCube's data plane
    /v1/sessions/{id}/ports/{port}/{path}, /v1/sessions/{id}/terminal                         by path alone (browsers)
    any other path with a session header (or x-wakegate-runtime: namespace/name)              plain HTTP

and, where --domain is set, any path under a host name of a port (port_hosts.py, `parse_port_host`).

Where --kube-router-tenants is set, any path with X-Sandbox-ID is for a Sandbox that is no session of ours
(NotProxied.SANDBOX). Everything else is for the control surfaces: requests that name neither, and the gateway's own
names (`is_control`). The path is kept as the client sent it: never decoded, never normalised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from gateway.core.errors import BadRequestError
from gateway.core.model import Kind, RuntimeKey, SessionId
from gateway.routing.port_hosts import PortHost
from picod.wire import PORTS_PATH, TERMINAL_PATH, port_prefix

SESSION_HEADERS = (b"x-session-id", b"x-agentcube-session-id")
RUNTIME_HEADER = b"x-wakegate-runtime"

_DATA_PLANE = b"/v1/namespaces/"
_SESSIONS = b"/v1/sessions/"
_PORT = re.compile(rb"[1-9][0-9]{0,4}")
# The gateway's own names, which never reach a sandbox by a header: these paths, and what is below /v1/ and these names.
RESERVED_PATHS = frozenset((
    b"/health", b"/health/live", b"/health/ready", b"/healthz", b"/readyz", b"/metrics", b"/mcp", b"/openapi.json",
    b"/.well-known/oauth-protected-resource", b"/.well-known/oauth-protected-resource/mcp",
))  # fmt: skip
FLAT_AGENTS = b"/api/v1/agents"  # and what is below
# And what is below: its X-Session-Id names a chat, and no session (api/open_terminal).
OPEN_TERMINAL = b"/open-terminal"
LIBRECHAT = b"/librechat"  # likewise
_BELOW = (FLAT_AGENTS + b"/", OPEN_TERMINAL + b"/", LIBRECHAT + b"/")
RESERVED_V1 = frozenset((
    b"agent-bundles", b"agent-environments", b"agent-runtime", b"agents", b"autoscaler", b"caller",
    b"code-interpreter", b"console", b"containers", b"events", b"keys", b"namespaces",
    b"run", b"runtimes", b"sandbox", b"sessions", b"tenants", b"tool_calls", b"tools", b"usage",
))  # fmt: skip
# Jupyter's protocol (api/jupyter). Only where no session is named: with one, these are paths of its sandbox. AutoGen
# knows a host and a port alone, so what it asks for is answered at the root as well.
_JUPYTER = (b"/jupyter/", b"/api/kernels", b"/api/kernelspecs")
_KINDS = {kind.segment.encode(): kind for kind in Kind}
_SESSION_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(rb"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class NotProxied(Enum):
    """Why a request is not for a sandbox."""

    CONTROL = "control"  # a control surface's path
    NO_ROUTE = "no route"  # below the data plane's prefix, but not of its form
    PREFLIGHT = "preflight"  # a browser's question ahead of a page's request (cors.py)
    SANDBOX = "sandbox"  # for a Sandbox of agent-sandbox's controllers (sandbox_router.py)
    ADD_SLASH = "add slash"  # .../invocations or .../ports/8000 without the slash that relative paths need


@dataclass(frozen=True, slots=True)
class Target:
    """A request that is for a sandbox.

    `session_id` None: a new session is to be made on `runtime`. `runtime` None: whatever the session's is.
    `path` is the request target's path for the sandbox, as sent, without the query.
    """

    session_id: SessionId | None
    runtime: RuntimeKey | None
    path: bytes
    passed_on: bool = False  # by another gateway, which read in the store that this one has the session
    port_host: bytes = b""  # the host, where that names the port: the server is then shown at its root


def parse(raw_path: bytes, session: bytes | None, runtime: bytes | None) -> Target | NotProxied:
    """The target of a request, given its raw path and the values of its session and runtime headers.

    Raises:
        BadRequestError: a malformed session id, namespace or name.
    """
    # Clients call the same few paths again and again. Only short ones are kept, and about 1 MB of them: sessions come
    # and go, and each has paths of its own.
    return _parse_kept(raw_path, session, runtime) if len(raw_path) < 256 else _parse(raw_path, session, runtime)


def _parse(raw_path: bytes, session: bytes | None, runtime: bytes | None) -> Target | NotProxied:
    if raw_path.startswith(_DATA_PLANE):
        parts = raw_path.split(b"/", 7)
        if len(parts) < 7 or parts[6] != b"invocations" or parts[4] not in _KINDS:
            return NotProxied.NO_ROUTE
        if len(parts) == 7:
            return NotProxied.ADD_SLASH
        named = runtime_key(parts[3], parts[5], parts[4])
        return Target(_session_id(session) if session is not None else None, named, b"/" + parts[7])
    if raw_path.startswith(_SESSIONS):
        parts = raw_path.split(b"/", 6)
        if len(parts) > 5 and parts[4] == b"ports":
            return _parse_port(parts, session, runtime)
        if len(parts) == 5 and parts[4] == b"terminal":
            return Target(_same_session(parts[3], session), _named(runtime), TERMINAL_PATH.encode())
    if is_control(raw_path) or (session is None and runtime is None):
        return NotProxied.CONTROL
    return Target(_session_id(session) if session is not None else None, _named(runtime), raw_path)


def _parse_port(parts: list[bytes], session: bytes | None, runtime: bytes | None) -> Target | NotProxied:
    """`parts` of /v1/sessions/{id}/ports/{port}, and what follows, which is the seventh."""
    if not _PORT.fullmatch(parts[5]) or int(parts[5]) > 65535:
        raise BadRequestError(f"malformed port {_shown(parts[5])}: expected a number from 1 to 65535")
    found = _same_session(parts[3], session)
    if len(parts) == 6:
        return NotProxied.ADD_SLASH
    path = b"%b%b/%b" % (PORTS_PATH.encode(), parts[5], parts[6])
    return Target(found, _named(runtime), path)


def parse_port_host(
    named: PortHost, host: bytes, raw_path: bytes, session: bytes | None, runtime: bytes | None, *, passed_on: bool
) -> Target:
    """The target of a request whose host names a port. `passed_on`: another gateway may have sent it by path as well.

    Raises BadRequestError for a session header that contradicts.
    """
    found = _same_session(named.session, session)
    prefix = port_prefix(found, int(named.port)).encode()
    if passed_on and raw_path.startswith(prefix + b"/"):
        raw_path = raw_path.removeprefix(prefix)
    path = b"%b%b%b" % (PORTS_PATH.encode(), named.port, raw_path)
    return Target(found, _named(runtime), path, passed_on=passed_on, port_host=host)


def _same_session(in_path: bytes, in_header: bytes | None) -> SessionId:
    if in_header is not None and in_header != in_path:
        raise BadRequestError("the session header names another session than the address; send one of them")
    return _session_id(in_path)


def _named(runtime: bytes | None) -> RuntimeKey | None:
    """The runtime of an x-wakegate-runtime header."""
    if runtime is None:
        return None
    namespace, slash, name = runtime.partition(b"/")
    if not slash:
        namespace, name = b"default", namespace
    return runtime_key(namespace, name, b"code-interpreters")


_parse_kept = lru_cache(maxsize=2048)(_parse)


def is_invocation(target: Target | NotProxied) -> bool:
    """Whether it is a request on an agent's invocation path: no other form names an agent."""
    return type(target) is Target and target.runtime is not None and target.runtime.kind is Kind.AGENT_RUNTIME


def is_jupyter(raw_path: bytes) -> bool:
    """Whether a request that is for the control surfaces is of Jupyter's protocol."""
    return raw_path.startswith(_JUPYTER)


def is_terminal_socket(raw_path: bytes) -> bool:
    """Whether a WebSocket is a terminal of Open Terminal's, whose first message has its key."""
    return raw_path.startswith(OPEN_TERMINAL + b"/api/terminals/")


def is_control(raw_path: bytes) -> bool:
    """Whether a path is one of the gateway's own names, also when a session header is there.

    Slashes in front count as one: AgentCube's SDK joins a base URL with a slash at its end to "//v1/...".
    """
    path = b"/" + raw_path.lstrip(b"/") if raw_path.startswith(b"//") else raw_path
    if path.startswith(b"/v1/"):
        return path[4:].partition(b"/")[0] in RESERVED_V1
    return path in RESERVED_PATHS or path == FLAT_AGENTS or path.startswith(_BELOW)


@lru_cache(maxsize=4096)
def runtime_key(namespace: bytes, name: bytes, segment: bytes) -> RuntimeKey:
    """The key named by three path segments. Raises BadRequestError."""
    for what, value in (("namespace", namespace), ("name", name)):
        if not _NAME.fullmatch(value):
            raise BadRequestError(
                f"malformed {what} {_shown(value)}: expected a DNS name (a-z, 0-9, '-' and '.', not at the ends)"
            )
    return RuntimeKey(namespace.decode(), name.decode(), _KINDS[segment])


@lru_cache(maxsize=2048)
def _session_id(value: bytes) -> SessionId:
    if not _SESSION_ID.fullmatch(value):
        raise BadRequestError(
            f"malformed session id {_shown(value)}: expected 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', no sign first"
        )
    return SessionId(value.decode())


def _shown(value: bytes) -> str:
    text = value[:64].decode("latin-1")
    return repr(text) + ("..." if len(value) > 64 else "")

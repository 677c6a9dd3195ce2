"""What a session token may reach within its session, decided from the path that a request has for the sandbox. Pure."""

from __future__ import annotations

from gateway.core.errors import PermissionDeniedError
from gateway.core.identity import Identity, Permission
from picod.wire import PORTS_PATH

_PORTS = PORTS_PATH.encode()


def require_use(identity: Identity, path: bytes) -> None:
    """Raise PermissionDeniedError unless an identity may send a request with this path into sandboxes.

    A token with paths or ports reaches these alone. Paths are compared as they are sent.
    """
    if identity.uses_all_paths:
        return
    identity.require(Permission.USE_SESSIONS)
    scope = identity.scope
    if scope is None or not (scope.paths or scope.ports):
        return
    if path.startswith(_PORTS):
        port = path[len(_PORTS) :].partition(b"/")[0]
        allowed = port.isdigit() and len(port) < 6 and int(port) in scope.ports  # int() of a long text takes long
    else:
        # With an escape or a `..` it is below no prefix: the server in the sandbox might resolve it to another path.
        plain = b"%" not in path and b".." not in path and b"\\" not in path
        allowed = plain and any(_is_below(path, each.encode()) for each in scope.paths)
    if not allowed:
        raise PermissionDeniedError("this session token is valid for other paths and ports of the session only")


def _is_below(path: bytes, prefix: bytes) -> bool:
    # At a slash: /api/files must not open /api/files-private.
    return path == prefix or path.startswith(prefix.rstrip(b"/") + b"/")

"""Egress of local sandboxes: the proxy's address in their environment, and the way its listening socket takes.

picod makes the socket in the sandbox's network namespace and hands it out, before any code of a user runs
(picod/ports/egress.py); the egress service accepts from it (gateway/egress).
"""

from __future__ import annotations

import os
import socket
from typing import Protocol

from gateway.core.model import Runtime, SandboxId
from gateway.egress.grants import of_runtime
from gateway.egress.notation import Grant
from picod import wire

PROXY = f"http://127.0.0.1:{wire.EGRESS_PORT}"
_LOCAL = "localhost,127.0.0.1,::1"
# ALL_PROXY is the HTTP one too: with a socks5h:// there, httpx raises at once unless a further package is installed.
_PROXIES = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY, "NO_PROXY": _LOCAL}
ENVIRONMENT = {
    **_PROXIES,
    **{name.lower(): value for name, value in _PROXIES.items()},
    # What is refused fails the same way however often it is tried; a connection that breaks is tried once more.
    "PIP_RETRIES": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "npm_config_proxy": PROXY,
    "npm_config_https_proxy": PROXY,
    "npm_config_noproxy": _LOCAL,
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "100",
    "npm_config_update_notifier": "false",
    "npm_config_cache": "/tmp/.npm",  # noqa: S108 - not in the workspace, which is kept
    "NODE_USE_ENV_PROXY": "1",  # Node's own fetch and http, from Node 22.21 and 24.5 on
    "GIT_TERMINAL_PROMPT": "0",  # a repository that wants a password fails at once
}


class EgressDoor(Protocol):
    """Where sockets of sandboxes go: gateway.egress.gate."""

    def open(self, sandbox: str, listener: socket.socket, grant: Grant) -> None:
        """Serve what connects to the listener, which is owned by the callee from now on."""
        ...

    def close(self, sandbox: str) -> None:
        """The sandbox ends."""
        ...


class Handover:
    """The pair of sockets over which picod hands out its listener, while a sandbox starts."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()

    def receive(self) -> socket.socket:
        """The listener. picod has sent it before it answers its health check. Raises OSError if it has not."""
        self._ours.setblocking(False)
        _, fds, _, _ = socket.recv_fds(self._ours, 1, 1)
        if not fds:
            raise OSError("picod handed out no socket for the egress proxy")
        os.set_inheritable(fds[0], False)
        return socket.socket(fileno=fds[0])

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self.theirs.close()


def open_door(door: EgressDoor, sandbox: SandboxId, runtime: Runtime, handover: Handover) -> None:
    """Give the listener of a sandbox that is healthy to the egress service. Raises OSError."""
    door.open(sandbox, handover.receive(), of_runtime(runtime))

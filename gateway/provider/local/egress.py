"""Egress of local sandboxes: the proxy's address in their environment, and the way its listening socket takes.

picod makes the socket in the sandbox's network namespace and hands it out, before any code of a user runs
(picod/ports/egress.py); the egress service accepts from it (gateway/egress).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gateway.core.model import Runtime, SandboxId
from gateway.egress.credentials import placeholder_of
from gateway.egress.environment import PROXIES, trust
from gateway.egress.grants import of_runtime
from gateway.egress.notation import Grant

BUNDLE_FILE = "ca.pem"  # in the folder of synthetic files of /etc
BUNDLE = "/run/wakegate/ca.pem"  # where sandboxes have it
# Many tools read this one unless they are told otherwise; it is replaced where the machine has it.
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class EgressServer(Protocol):
    """Where sockets of sandboxes go: gateway.egress.gate."""

    def open(self, sandbox: str, listener: socket.socket, grant: Grant) -> None:
        """Serve what connects to the listener, which is owned by the callee from now on."""
        ...

    def close(self, sandbox: str) -> None:
        """The sandbox ends: so do its connections."""
        ...

    def bundle(self, now: float) -> bytes:
        """The certificates that sandboxes trust, PEM; empty: the machine's own serve. Blocks. Raises OSError."""
        ...


def environment(runtime: Runtime, bundle: Path) -> dict[str, str]:
    """Where the proxy is, whom to trust, and the placeholders of secrets. `bundle`: on the host; it may be missing."""
    placeholders = {secret.name: placeholder_of(str(runtime.key), secret.name) for secret in runtime.secrets}
    return {**PROXIES, **(trust(BUNDLE) if bundle.exists() else {}), **placeholders}


def bundle_binds(bundle: Path, etc: Sequence[str]) -> dict[str, str]:
    """The certificates at their places inside, by path there. `etc`: what of /etc sandboxes have from the machine."""
    if not bundle.exists():
        return {}
    replaces = os.path.dirname(SYSTEM_BUNDLE) in etc and os.path.isfile(SYSTEM_BUNDLE)
    places = (BUNDLE, *((SYSTEM_BUNDLE,) if replaces and not os.path.islink(SYSTEM_BUNDLE) else ()))
    return dict.fromkeys(places, str(bundle))


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
        """Close both ends of the socket pair."""
        self._ours.close()
        self.theirs.close()


def begin(server: EgressServer, sandbox: SandboxId, runtime: Runtime, handover: Handover) -> None:
    """Give the listener of a sandbox that is healthy to the egress service. Raises OSError."""
    server.open(sandbox, handover.receive(), of_runtime(runtime))

"""Sandboxes that others manage, as routing sees them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from gateway.core.agent_sandbox import OpenedSandbox


class RoutedSandboxes(Protocol):
    """Sandboxes of the cluster that agent-sandbox's controllers manage, for the router that wakes them."""

    def tenant_of(self, namespace: str) -> str:
        """The tenant whose keys reach the Sandboxes of a namespace that is routed; empty for any other."""
        ...

    def live(self, namespace: str, name: str) -> OpenedSandbox | None:
        """The Sandbox if a request may be sent to it now; None: it has to be opened."""
        ...

    async def open(self, namespace: str, name: str, within: float) -> OpenedSandbox:
        """The Sandbox, once it is ready; one that is suspended is woken. `within`: seconds to wait for that.

        Raises NotFoundError, ActivationTimeoutError, UnavailableError.
        """
        ...

    async def changed(self, opened: OpenedSandbox, within: float) -> bool:
        """Wait until more is known of it than it was opened with. False: nothing was, within so many seconds."""
        ...

    def using(self, namespace: str, name: str) -> AbstractContextManager[None]:
        """While a request for it is held or under way: it is not suspended for being idle."""
        ...

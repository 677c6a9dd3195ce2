"""AgentRuntimes of a cluster as agents are kept in them: the seam between agents and the engine that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.core.model import Runtime


@dataclass(frozen=True, slots=True)
class AgentObject:
    """One custom resource. `note`: what a gateway wrote beside its spec; None: it is no agent of the API.

    `version` names the object as it was read, `uid` this object among all that had its name; `changed_by`: who last
    wrote its spec, if that was no gateway.
    """

    namespace: str
    name: str
    uid: str
    version: str
    spec: Mapping[str, Any]
    note: Mapping[str, Any] | None
    changed_by: str = ""

    @property
    def id(self) -> str:
        """NAMESPACE/NAME, the id of the agent that it is."""
        return f"{self.namespace}/{self.name}"


class AgentObjects(Protocol):
    """Reads and writes them, and serves what agents are made of. Every request raises UnavailableError.

    Writes raise PermissionDeniedError where the gateway's account may not, and BadRequestError for what the server
    refuses.
    """

    @property
    def namespaces(self) -> Sequence[str]:
        """The namespaces in which agents can be made."""
        ...

    def all(self) -> Sequence[AgentObject]:
        """Those that are known, from memory."""
        ...

    def find(self, namespace: str, name: str) -> AgentObject | None:
        """One that is known, from memory."""
        ...

    async def get(self, namespace: str, name: str) -> AgentObject | None:
        """As it is now; None: there is none."""
        ...

    async def create(self, namespace: str, name: str, spec: Mapping[str, Any], note: Mapping[str, Any]) -> AgentObject:
        """Make one. Raises StaleWriteError if there is one of that name."""
        ...

    async def replace(self, seen: AgentObject, spec: Mapping[str, Any], note: Mapping[str, Any]) -> AgentObject:
        """Write spec and note of one in which both are as in `seen`; else raises StaleWriteError."""
        ...

    async def delete(self, seen: AgentObject) -> None:
        """Delete this object, and no later one of its name. An absent one is no error."""
        ...

    def read(self, manifest: Mapping[str, Any]) -> Runtime:
        """The runtime that a manifest describes. Raises BadRequestError with every problem."""
        ...

    async def serve(self, runtimes: Sequence[Runtime]) -> None:
        """Serve these from now on, besides runtimes that are no agent's."""
        ...

"""What names runtimes, sessions and sandboxes, and where a sandbox listens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

SessionId = NewType("SessionId", str)
SandboxId = NewType("SandboxId", str)

# Metadata under names with this prefix is a surface's own: no client sees, sets or replaces it.
PRIVATE_METADATA = "wakegate.private."
# Epoch seconds until which a session's id would make a session again if there were no record of it (api/mcp/sessions):
# the record of one that ended is kept at least until then.
REUSABLE_UNTIL = PRIVATE_METADATA + "reusable-until"
DEFAULT_TENANT = "default"  # of sessions made without authentication, and of keys that name no other


class Kind(StrEnum):
    """What a runtime offers; the values are the Kubernetes kinds."""

    CODE_INTERPRETER = "CodeInterpreter"
    AGENT_RUNTIME = "AgentRuntime"

    @property
    def segment(self) -> str:
        """The plural in data-plane paths, e.g. `code-interpreters`."""
        return "code-interpreters" if self is Kind.CODE_INTERPRETER else "agent-runtimes"

    @property
    def singular(self) -> str:
        """The singular in control-plane paths, e.g. `code-interpreter`."""
        return "code-interpreter" if self is Kind.CODE_INTERPRETER else "agent-runtime"


@dataclass(frozen=True, slots=True, order=True)
class RuntimeKey:
    """Identifies a runtime; its text form is `code-interpreters/NAMESPACE/NAME` or `agent-runtimes/...`.

    Of an agent that has revisions each is a runtime of its own, whose text ends in `@3`; requests name the agent only.
    """

    namespace: str
    name: str
    kind: Kind = Kind.CODE_INTERPRETER
    revision: int = 0  # 0: of a runtime without revisions, or whichever a new session gets

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.kind.segment}/{self.namespace}/{self.name}{at}"

    @property
    def base(self) -> RuntimeKey:
        """The same without a revision, as requests, limits and bills name it."""
        return self if not self.revision else RuntimeKey(self.namespace, self.name, self.kind)

    @classmethod
    def parse(cls, text: str) -> RuntimeKey:
        """The inverse of str(). Raises ValueError."""
        segment, namespace, name = text.split("/")
        name, _, revision = name.partition("@")
        kind = Kind.CODE_INTERPRETER if segment == Kind.CODE_INTERPRETER.segment else Kind.AGENT_RUNTIME
        return cls(namespace, name, kind, int(revision or 0))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where picod listens: a unix socket path, or host and port."""

    uds: str | None = None
    host: str | None = None
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.uds}" if self.uds else f"{self.host}:{self.port}"

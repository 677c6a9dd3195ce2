"""Small named records beside sessions: API keys, tenants, the secret that gateways share. The seam to the stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Document:
    """One record. `value` is JSON; `version` counts writes, 0: it was never stored."""

    kind: str
    name: str
    value: Mapping[str, Any]
    version: int = 0


class DocumentStore(Protocol):
    """Documents by kind and name. Every call raises StoreUnavailableError.

    Made for kinds of at most some 10,000 small documents, which every gateway holds in memory: `revision` is cheap to
    ask each second, and `list` is read again when it has changed.
    """

    async def get(self, kind: str, name: str) -> Document | None:
        """The document as last written. None: there is none."""
        ...

    async def put(self, document: Document) -> Document:
        """Durably write it if the stored version equals `document.version` (0: it must not exist yet).

        Returns it with its new version. Raises StaleWriteError.
        """
        ...

    async def delete(self, kind: str, name: str) -> bool:
        """Forget it. Returns whether it was there."""
        ...

    async def list(self, kind: str) -> Sequence[Document]:
        """All documents of a kind, by name."""
        ...

    async def revision(self, kind: str) -> int:
        """A number that grows with each change of a kind. 0: nothing of that kind was ever written."""
        ...

"""The header lines of the request that the running code serves, for decisions below the surfaces.

A context variable and not an argument: between a surface and the choice of a canary lie layers that have no use for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

_HEADERS: ContextVar[Sequence[tuple[bytes, bytes]]] = ContextVar("wakegate_request_headers", default=())


def note_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """The rest of this task serves a request with these; names in lower case, as ASGI has them."""
    _HEADERS.set(headers)


def has_header(name: str, value: str) -> bool:
    """Whether the request has that header, with that value. `name` in lower case."""
    wanted, expected = name.encode("latin-1", "replace"), value.encode("latin-1", "replace")
    return any(name == wanted and given == expected for name, given in _HEADERS.get())

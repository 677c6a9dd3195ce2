"""The runtime that a request names, as far as the caller may see it."""

from __future__ import annotations

from gateway.core.errors import RuntimeNotFoundError
from gateway.core.identity import current
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Runtime, RuntimeKey


def choose_runtime(catalog: RuntimeCatalog, key: RuntimeKey) -> Runtime:
    """The runtime for the caller's new session; another tenant's does not exist. Raises RuntimeNotFoundError.

    Raises ConflictError for an agent that is stopped.
    """
    found = catalog.get(key)
    if found is not None and not current().sees_runtime(found):
        raise _unknown_runtime(key)
    return catalog.choose(key) or require_runtime(catalog, key)


def require_runtime(catalog: RuntimeCatalog, key: RuntimeKey) -> Runtime:
    """Look up a runtime. Raises RuntimeNotFoundError, with the text that AgentCube's API has for it."""
    runtime = catalog.get(key)
    if runtime is None:
        raise _unknown_runtime(key)
    return runtime


def _unknown_runtime(key: RuntimeKey) -> RuntimeNotFoundError:
    plural = key.kind.lower() + "s"
    return RuntimeNotFoundError(f'{plural}.agentcube.volcano.sh "{key.namespace}/{key.name}" not found')

"""Objects that several gateways write: each write names the version that was read, and is refused after another's."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.client import KubeApi, KubeError


def named(kind: str, name: str) -> dict[str, Any]:
    """The beginning of a Secret or ConfigMap that is made here."""
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "labels": {names.MANAGED: names.MANAGER}},
    }


async def get(api: KubeApi, path: str) -> dict[str, Any] | None:
    """The object; None: it is not there. Raises KubeError."""
    try:
        return await api.get(path)
    except KubeError as error:
        if error.http_status == 404:
            return None
        raise


async def wrote(write: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
    """The object as written; None: another gateway wrote first, and the caller reads again. Raises KubeError."""
    try:
        return await write
    except KubeError as error:
        if error.reason in ("Conflict", "AlreadyExists"):
            return None
        raise

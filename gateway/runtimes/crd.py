"""The CustomResourceDefinitions of both kinds, which `scripts/crds.py` writes to manifests/base/crds."""

from __future__ import annotations

from typing import Any

from gateway.core.model import Kind
from gateway.runtimes.schema import GROUP, VERSION, document_schema
from gateway.runtimes.schema_parts import EXPECTED, Schema


def crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition of a kind, ready to apply."""
    plural, lower = f"{kind.value.lower()}s", kind.value.lower()
    columns = [
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
        ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
        ("Warm", "integer", ".status.pool.warm"),
        ("Claimed", "integer", ".status.pool.claimed"),
        ("Target", "integer", ".status.pool.target"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ]
    names = {"kind": kind.value, "listKind": f"{kind.value}List", "plural": plural, "singular": lower}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        # Status has its own right and its own write: a gateway that reports conditions cannot change a spec, and its
        # writes do not raise metadata.generation.
        "subresources": {"status": {}},
        "additionalPrinterColumns": [{"name": name, "type": type_, "jsonPath": path} for name, type_, path in columns],
        "schema": {"openAPIV3Schema": _without_expectations(document_schema(kind))},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def _without_expectations(value: Any) -> Any:
    # The API server refuses a schema with keywords that it does not know.
    if isinstance(value, list):
        return [_without_expectations(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_expectations(each) for key, each in value.items() if key != EXPECTED}

"""Schemas of bodies, named as in the document. Clients can rely on these fields; more may be added.

A module per topic; `parts` has the constructors. A name that two of them had would be lost here, so a test compares.
"""

from __future__ import annotations

from gateway.api.openapi.schemas.agents import AGENTS
from gateway.api.openapi.schemas.compatible import COMPATIBLE
from gateway.api.openapi.schemas.models import MODELS
from gateway.api.openapi.schemas.parts import EVENTS, RUNTIME_NAME, TEXT, Schema, ref
from gateway.api.openapi.schemas.sandboxes import SANDBOXES
from gateway.api.openapi.schemas.sessions import SESSIONS
from gateway.api.openapi.schemas.tenants import TENANTS

__all__ = ["EVENTS", "RUNTIME_NAME", "SCHEMAS", "TEXT", "Schema", "ref"]

SCHEMAS: dict[str, Schema] = {**SESSIONS, **TENANTS, **AGENTS, **MODELS, **SANDBOXES, **COMPATIBLE}

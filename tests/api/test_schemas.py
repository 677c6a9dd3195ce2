"""The schemas of the OpenAPI document, which are a module per topic."""

from __future__ import annotations

from gateway.api.openapi.schemas import SCHEMAS
from gateway.api.openapi.schemas.agents import AGENTS
from gateway.api.openapi.schemas.compatible import COMPATIBLE
from gateway.api.openapi.schemas.models import MODELS
from gateway.api.openapi.schemas.sandboxes import SANDBOXES
from gateway.api.openapi.schemas.sessions import SESSIONS
from gateway.api.openapi.schemas.tenants import TENANTS


def test_no_two_topics_have_a_schema_of_the_same_name() -> None:
    """One would replace the other in the document."""
    topics = (AGENTS, COMPATIBLE, MODELS, SANDBOXES, SESSIONS, TENANTS)

    assert sum(map(len, topics)) == len(SCHEMAS)

"""Parameters and answers that operations of several surfaces have."""

from __future__ import annotations

from gateway.api.openapi.document import Answer, Parameter
from gateway.api.openapi.schemas import RUNTIME_NAME, ref

SESSION = Parameter("x-session-id", "The session to use.", where="header")
RUNTIME = Parameter("x-wakegate-runtime", "The runtime of a new session.", RUNTIME_NAME, "header")
LIMIT = {"type": "integer", "minimum": 1, "maximum": 100}
PAGE = (
    Parameter("after", "`next` of the previous page, or the id of a session."),
    Parameter("limit", "How many at most, 20 if absent.", LIMIT),
    Parameter("order", "By the time of creation.", {"enum": ["asc", "desc"]}),
)


def ok(schema: str, description: str = "Done.") -> dict[int, Answer]:
    """The answer 200 with an object of a schema."""
    return {200: Answer(description, ref(schema))}

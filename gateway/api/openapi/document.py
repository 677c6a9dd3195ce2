"""Makes an OpenAPI document (https://spec.openapis.org/oas/v3.1.1) from a table of operations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway import __version__
from gateway.api.openapi.schemas import SCHEMAS, TEXT, Schema, ref

JSON = "application/json"
_PATH_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_REASONS = {
    400: "The request is invalid; the message says what is wrong, and where.",
    401: "The API key or token is missing or not valid.",
    403: "The credential, its tenant's limits, or the web page's origin do not allow this.",
    404: "It does not exist, or no longer exists.",
    405: "The path does not have this method.",
    408: "The rest of the request did not arrive in time.",
    409: "The session's state, or a gateway without authentication, does not allow this.",
    413: "The request is too large.",
    422: "The Idempotency-Key was used for another request.",
    429: "A queue is full, or a limit of the tenant is reached; Retry-After says when to try again.",
    500: "Internal error; the gateway's log has the details.",
    502: "The sandbox ended, or cannot be reached.",
    503: "A service that this needs does not answer; Retry-After says when to try again.",
    504: "No sandbox was ready in time, or it exceeded the idle timeout.",
    507: "No space left in the workspace.",
}
_SECURITY_SCHEMES: Mapping[str, Schema] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key (wk_...), a session token, or a token of the OpenID Connect issuer.",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key (wk_...)."},
}
# What the server, authentication or a quota may answer before any handler runs.
_ALWAYS = (400, 401, 403, 408, 409, 413, 429, 500, 503)
IDEMPOTENCY_KEY = "idempotency-key"
_WITH_SESSION = (404, 502, 504, 507)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: JSON of a schema, another content type, or no body."""

    description: str
    schema: Schema | None = None
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the query or, with `where="header"`, a request header."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: TEXT)
    where: str = "query"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `error` names the schema of its errors; empty: no error answers are documented.

    `sandbox`: it needs a session or a sandbox, so the errors of those are documented as well. A path with a variable
    part can also answer the plain-text 404 of an unknown path.
    """

    method: str
    path: str
    tag: str
    summary: str
    answers: Mapping[int, Answer]
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    body_type: str = JSON
    error: str = "Error"
    sandbox: bool = True
    more: tuple[Answer, ...] = ()  # other content types of the first status

    @property
    def key(self) -> tuple[str, str]:
        """(method, path), unique in the document."""
        return self.method, self.path


def make_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document in JSON types; paths are in the order of `operations`."""
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wakegate",
            "version": __version__,
            "description": "Every AI-agent session its own isolated computer, behind one gateway.",
        },
        "servers": [{"url": "/", "description": "This gateway."}],
        # An operation asks for one of these, where the gateway has authentication; {}: where it has none.
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": _SECURITY_SCHEMES},
    }


def _operation(each: Operation) -> dict[str, Any]:
    document: dict[str, Any] = {
        "tags": [each.tag],
        "operationId": f"{each.method.lower()}{re.sub('[^a-zA-Z0-9]+', '_', each.path).rstrip('_')}",
        "summary": each.summary,
        "responses": _responses(each),
    }
    parameters = [
        # An empty segment would be another path.
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in _PATH_PARAMETER.findall(each.path)
    ]
    parameters += [
        {
            "name": one.name,
            "in": one.where,
            "required": one.required,
            "description": one.description,
            "schema": one.schema,
        }
        for one in each.parameters
    ]
    if parameters:
        document["parameters"] = parameters
    if each.body is not None:
        document["requestBody"] = {"required": True, "content": {each.body_type: {"schema": each.body}}}
    return document


def _responses(each: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in each.answers.items():
        responses[str(status)] = {"description": answer.description, **_content(answer)}
    first = responses[str(next(iter(each.answers)))]
    for other in each.more:
        first.setdefault("content", {}).update(_content(other)["content"])
    if each.error:
        with_key = (422,) if any(one.name == IDEMPOTENCY_KEY for one in each.parameters) else ()
        named = (404,) if _PATH_PARAMETER.search(each.path) else ()
        for status in (*_ALWAYS, *named, *(_WITH_SESSION if each.sandbox else ()), *with_key):
            error = Answer(_REASONS[status], ref(each.error))
            # What the operation documents itself is more precise, and stays.
            responses.setdefault(str(status), {"description": error.description, **_content(error)})
    # A value with a slash makes a path that no operation has, whose answer is the plain text of AgentCube's router.
    if _PATH_PARAMETER.search(each.path):
        absent = responses.setdefault("404", {"description": _REASONS[404]})
        absent.setdefault("content", {})["text/plain"] = {"schema": TEXT}
    return dict(sorted(responses.items()))


def _content(answer: Answer) -> dict[str, Any]:
    if answer.schema is None and answer.content_type == JSON:
        return {}
    return {"content": {answer.content_type: {} if answer.schema is None else {"schema": answer.schema}}}

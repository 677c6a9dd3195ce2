"""GET /openapi.json: the document, made when it is first asked for."""

from __future__ import annotations

from functools import lru_cache

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.openapi.document import make_document
from gateway.api.openapi.sandbox import SANDBOX, THROUGH
from gateway.api.openapi.table import CONTROL


def routes() -> list[Route]:
    """The one path."""
    return [Route("/openapi.json", _answer, methods=["GET"])]


@lru_cache(maxsize=1)
def _encoded() -> bytes:
    return orjson.dumps(make_document((*CONTROL, *SANDBOX, *THROUGH)))


async def _answer(_: Request) -> Response:
    return Response(_encoded(), media_type="application/json")

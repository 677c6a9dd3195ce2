"""Control requests on a session that another gateway has are that gateway's to answer: they go there as they came."""

from __future__ import annotations

import httpx
from starlette.requests import Request
from starlette.responses import Response

from gateway.core.errors import UnavailableError
from gateway.sessions.membership import ElsewhereError

_ANSWERED = ("content-type", "location", "retry-after", "x-wakegate-start", "x-wakegate-restored", "x-session-id")
_PASSED = ("accept", "idempotency-key", "mcp-session-id")  # the last says what a DELETE of /mcp is about
_RELAYED = "x-wakegate-relayed"  # how many gateways have passed it on
_MAX_HOPS = 8
_TIMEOUT_S = 60.0  # a wake over there is held like one here, by its own rule


async def relay(request: Request, elsewhere: ElsewhereError) -> Response:
    """The answer of the gateway that has the session. Raises UnavailableError when it does not give one."""
    peer = elsewhere.peer
    # Handlers decide by the store, so it is passed on again where the session has moved on meanwhile.
    hops = request.headers.get(_RELAYED, "0")
    passed = int(hops) if hops.isdecimal() and len(hops) < 3 else _MAX_HOPS
    if passed >= _MAX_HOPS:
        raise UnavailableError(f"the gateways do not agree who has this session: {elsewhere}")
    headers = {_RELAYED: str(passed + 1), "content-type": request.headers.get("content-type", "application/json")}
    headers |= {name: request.headers[name] for name in _PASSED if name in request.headers}
    headers |= _forwarding(request)
    url = httpx.URL(peer.address).copy_with(raw_path=_sent_target(request))
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            answer = await client.request(
                request.method, url, content=getattr(request.state, "body", b""), headers=headers
            )
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"gateway {peer.id} at {peer.address}, which has this session, does not answer: {error!r}", retry_after=2
        ) from error
    kept = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
    return Response(answer.content, answer.status_code, kept)


def _forwarding(request: Request) -> dict[str, str]:
    """Who asks, and the name and scheme that links in the answer need; believed where the gateways trust each other."""
    fields = {"x-forwarded-for": request.client.host if request.client else "unknown"}
    fields |= {"x-forwarded-host": request.headers["host"]} if "host" in request.headers else {}
    return fields | {"x-forwarded-proto": request.url.scheme}


def _sent_target(request: Request) -> bytes:
    """Path and query as the client sent them: decoded and encoded again, a segment with `%2F` would be two."""
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope["query_string"]
    return path + b"?" + query if query else path

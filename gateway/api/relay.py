"""Relays a control request to the gateway that owns its session, and returns that gateway's answer."""

from __future__ import annotations

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from gateway.core.errors import UnavailableError
from gateway.core.identity import current
from gateway.identity.peers import PEER_HEADER, PeerSigner
from gateway.sessions.membership import ElsewhereError

_RESPONSE_HEADERS = (
    "content-type", "location", "retry-after", "x-wakegate-start", "x-wakegate-restored", "x-session-id"
)  # fmt: skip
# Besides: what names the session of a DELETE of /mcp, and the chat and the user of a request of Open WebUI's.
_REQUEST_HEADERS = ("accept", "idempotency-key", "mcp-session-id", "x-session-id", "x-user-id")
_RELAYED = "x-wakegate-relayed"  # how many gateways have relayed it
_MAX_HOPS = 8  # a session would have to move eight times during one request
_TIMEOUT_S = 60.0  # longer than the owner holds most wakes by its own rule


async def relay(request: Request, elsewhere: ElsewhereError) -> Response:
    """Return the owner's answer. Raises UnavailableError when it does not answer."""
    peer = elsewhere.peer
    # The owner's handler reads the record again, so if the session has moved since, the request is relayed once more.
    hops = request.headers.get(_RELAYED, "0") if is_relayed(request.scope) else "0"
    hops_so_far = int(hops) if hops.isdecimal() and len(hops) < 3 else _MAX_HOPS
    if hops_so_far >= _MAX_HOPS:
        raise UnavailableError(f"the gateways do not agree on the owner of this session: {elsewhere}")
    headers = {_RELAYED: str(hops_so_far + 1), "content-type": request.headers.get("content-type", "application/json")}
    headers |= {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
    headers |= _forwarding(request)
    target = _sent_target(request)
    signer: PeerSigner = request.app.state.peers
    headers[PEER_HEADER] = signer.sign(current(), request.method, target.partition(b"?")[0]).decode()
    url = httpx.URL(peer.address).copy_with(raw_path=target)
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as client:
            answer = await client.request(
                request.method, url, content=getattr(request.state, "body", b""), headers=headers
            )
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"gateway {peer.id} at {peer.address}, which owns this session, does not answer: {error!r}", retry_after=2
        ) from error
    kept = {name: answer.headers[name] for name in _RESPONSE_HEADERS if name in answer.headers}
    return Response(answer.content, answer.status_code, kept)


def is_relayed(scope: Scope) -> bool:
    """Whether another gateway of this store, and no client, sent the request."""
    return bool(scope.get("state", {}).get("peer"))


def _forwarding(request: Request) -> dict[str, str]:
    """The client's address, and the host and scheme that links in the answer need. The owner trusts a peer's."""
    fields = {"x-forwarded-for": request.client.host if request.client else "unknown"}
    fields |= {"x-forwarded-host": request.headers["host"]} if "host" in request.headers else {}
    return fields | {"x-forwarded-proto": request.url.scheme}


def _sent_target(request: Request) -> bytes:
    """Path and query as sent: decoding and encoding them again would turn one segment with `%2F` into two."""
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope["query_string"]
    return path + b"?" + query if query else path

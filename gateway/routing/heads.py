"""The head that a sandbox is sent, and the fields that its client gets back with an answer. No I/O.

headers.py and response_headers.py read what either side sent; here it meets the route, and the times of the stages.
"""

from __future__ import annotations

from gateway.core.identity import current
from gateway.core.model import Kind, StartKind
from gateway.routing.headers import next_hop, origin_line
from gateway.routing.request_fields import Headers, Request
from gateway.routing.reservation import Reservation
from gateway.routing.response_headers import confine_cookies, read_response
from gateway.routing.responses import Scope
from gateway.routing.route import Route
from gateway.routing.target import Target
from picod.wire import PORTS_PATH, port_prefix

EMPTY_QUERY = "wakegate.empty_query"  # in a scope: the target has a "?" with nothing behind it, which ASGI drops
PORTS = PORTS_PATH.encode()
_SHOWN = {"first_byte": b"upstream"}  # Server-Timing's word for it
Stages = list[tuple[str, float]]


def request_head(scope: Scope, request: Request, route: Route, target: Target) -> bytes:
    """The head as the sandbox gets it, or the gateway that has the session.

    Raises UnavailableError for a request that went in circles between gateways.
    """
    query: bytes = scope["query_string"]
    path, host, last = target.path, route.pool.host, route.head
    if route.peer:
        path = peer_path(scope, target)
        # Signed for this method and path: what one gateway was told cannot be used for another request.
        request.lines.append(next_hop(request, route.peer.sign(current(), scope["method"], path)))
        if target.port_host:
            last = last.replace(b"host: %b\r\n" % host, b"host: %b\r\n" % target.port_host, 1)
            host = target.port_host
    # Cookies and the like, for which picod has no use and which code beside it could read.
    if request.extra and (route.peer or not is_picods(route, target)):
        request.lines += request.extra
    if request.own_origin:
        request.lines.append(origin_line(host))
    return b"%b %b%b HTTP/1.1\r\n%b%b\r\n" % (
        scope["method"].encode("ascii"),
        path,
        b"?" + query if query or EMPTY_QUERY in scope else b"",
        b"".join(request.lines),
        last,
    )


def peer_path(scope: Scope, target: Target) -> bytes:
    """The path for another gateway: as sent, or by path as well for a port that has a host of its own.

    Host goes there too, and says that the server is at its root. A gateway that is not told of the domain takes the
    request by its path, so it never reaches a control surface there.
    """
    if not target.port_host:
        raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
        return raw_path
    port, _, rest = target.path.removeprefix(PORTS).partition(b"/")
    return b"%b/%b" % (port_prefix(target.session_id or "", int(port)).encode(), rest)


def is_picods(route: Route, target: Target) -> bool:
    """Whether picod itself answers, and not an agent or a server behind one of the sandbox's ports."""
    return route.runtime.kind is Kind.CODE_INTERPRETER and not target.path.startswith(PORTS)


def sandbox_fields(headers: Headers, scope: Scope, route: Route, target: Target) -> Headers:
    """What goes on to the client of the fields that the sandbox sent: nothing that speaks for the gateway's origin.

    A service worker needs no look at its request: without Service-Worker-Allowed it gets what is below its script.
    """
    fields = read_response(headers)
    if is_picods(route, target):
        fields = [field for field in confine_cookies(fields, None) if field[0] != b"x-content-type-options"]
        fields.append((b"x-content-type-options", b"nosniff"))
        return fields
    if target.port_host:  # the host is the port's alone, so its cookies need no path of ours
        return confine_cookies(fields, b"")
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    # /v1/sessions/ID/ports/8000/app/x is /app/x for the application; what is before that is where its cookies belong.
    if target.path.startswith(PORTS):
        app_path = b"/" + target.path.removeprefix(PORTS).partition(b"/")[2]
    else:
        app_path = target.path
    return confine_cookies(fields, raw_path.removesuffix(app_path))


def response_fields(
    headers: Headers, scope: Scope, route: Route, target: Target, start: StartKind, stages: Stages
) -> Headers:
    """What goes on to the client of the sandbox's fields; whose it is, how its sandbox came to be, where time went."""
    fields = sandbox_fields(headers, scope, route, target)
    fields += route.fields
    shown = [b"%b;dur=%.3f" % (_SHOWN.get(name) or name.encode("ascii"), seconds * 1e3) for name, seconds in stages]
    fields.append((b"server-timing", b", ".join(shown)))
    fields.append((b"x-wakegate-start", start.value.encode("ascii")))
    return fields


def stages_of(began: float, reservation: Reservation | None, connected: float, first_byte: float) -> Stages:
    """The stages of a request in their order, seconds; those that such a start does not have are left out.

    `began` and `connected` on the clock of time.perf_counter.
    """
    if reservation is None:
        return [("first_byte", first_byte)]
    made = reservation.start is not StartKind.LIVE
    stages = [("queue", reservation.queue_s)]
    if made:
        stages.append(("claim", reservation.claim_s))
    if reservation.restore_s:
        stages.append(("restore", reservation.restore_s))
    # What is left of the time until it had a connection: dialling, and the loop's own delays.
    before = sum(seconds for _, seconds in stages)
    stages.append(("connect", max(0.0, connected - began - before)))
    stages.append(("first_byte", first_byte))
    return stages

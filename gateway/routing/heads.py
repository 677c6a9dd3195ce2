"""The head that a sandbox is sent, and the fields that its client gets back with an answer. No I/O.

headers.py reads what either side sent; here it meets the route, and what is known of how long each stage took.
"""

from __future__ import annotations

from gateway.core.model import StartKind
from gateway.routing.headers import Headers, Request, next_hop, origin_line, read_response
from gateway.routing.responses import Scope
from gateway.routing.route import Reservation, Route
from gateway.routing.target import Target

EMPTY_QUERY = "wakegate.empty_query"  # in a scope: the target has a "?" with nothing behind it, which ASGI drops
_SHOWN = {"first_byte": b"upstream"}  # Server-Timing's word for it
Stages = list[tuple[str, float]]


def request_head(scope: Scope, request: Request, route: Route, target: Target) -> bytes:
    """The head as the sandbox gets it, or the gateway that has the session.

    Raises UnavailableError for a request that went in circles between gateways.
    """
    query: bytes = scope["query_string"]
    path = target.path
    if route.peer:
        path = scope["raw_path"]
        request.lines.append(next_hop(request))
    if request.own_origin:
        request.lines.append(origin_line(route.pool.host))
    return b"%b %b%b HTTP/1.1\r\n%b%b\r\n" % (
        scope["method"].encode("ascii"),
        path,
        b"?" + query if query or EMPTY_QUERY in scope else b"",
        b"".join(request.lines),
        route.head,
    )


def response_fields(headers: Headers, route: Route, start: StartKind, stages: Stages) -> Headers:
    """What goes on to the client of the sandbox's fields; whose it is, how its sandbox came to be, where time went."""
    fields = read_response(headers)
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
    before = sum(seconds for _, seconds in stages)
    stages.append(("connect", max(0.0, connected - began - before)))
    stages.append(("first_byte", first_byte))
    return stages

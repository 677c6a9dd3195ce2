"""With which code and reason a client's WebSocket ends when the sandbox's side has (RFC 6455 7.4)."""

from __future__ import annotations

from websockets.exceptions import ConnectionClosed

from gateway.core.errors import SessionNotFoundError, WakegateError
from gateway.core.model import SessionState
from gateway.routing.activator import Activator
from gateway.routing.route import Route
from gateway.routing.websocket_dial import MAX_MESSAGE_BYTES

_CODES_NOT_SENT = (1005, 1006, 1015)  # RFC 6455 7.4.1: they stand for "none came", and are never on the wire
_CODES_OF_AN_END = (1001, 1012, 1014)  # of a server that ends, or is killed; the session's record knows why
_MAX_REASON_BYTES = 123  # of a close frame: 125 (RFC 6455 5.5), less the code


def sendable(code: int) -> int:
    """The code of a client that has closed, as the sandbox may be sent it."""
    return 1000 if code in _CODES_NOT_SENT else code


async def closing(closed: ConnectionClosed, activator: Activator, route: Route) -> tuple[int, str]:
    """The code and reason for the client.

    A sandbox that is taken away dies in the middle of its connections, so what came over the wire says only that it
    ended; the record says whether to connect again. Behind another gateway that one has said so already.
    """
    code, reason = as_received(closed)
    if route.closed and not route.peer and code in _CODES_OF_AN_END:
        return await _as_recorded(activator, route) or (code, reason)
    return code, reason


def as_received(closed: ConnectionClosed) -> tuple[int, str]:
    """What came over the wire, in words for the client."""
    ours, theirs = closed.sent, closed.rcvd
    if ours is not None and not closed.rcvd_then_sent and ours.code == 1009:
        return 1009, f"the sandbox sent a message of more than {MAX_MESSAGE_BYTES >> 20} MiB"
    if theirs is None:
        return 1014, "the sandbox broke the connection off"  # bad gateway; 1006 is never sent
    return 1000 if theirs.code == 1005 else theirs.code, theirs.reason


async def _as_recorded(activator: Activator, route: Route) -> tuple[int, str] | None:
    """Of a route that was closed; None where the store is away.

    1001 where a new connection gets the session back, 1000 where the session is over, 1014 where its sandbox died.
    """
    try:
        session = await activator.session_of(route)
    except SessionNotFoundError:
        return 1000, "the session has ended"
    except WakegateError:
        return None
    if session.state is SessionState.TERMINATED:
        reason = f"the session has ended: {session.reason}" if session.reason else "the session has ended"
        # Cut in bytes, and then to whole characters: a frame with half a character in it is refused as not UTF-8.
        return 1000, reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
    if session.state in (SessionState.HIBERNATING, SessionState.HIBERNATED, SessionState.WAKING):
        return 1001, "the session was hibernated; connect again to wake it"
    if session.sandbox is not None and session.sandbox.id != route.sandbox.id:
        return 1001, "the session has another sandbox now; connect again"
    return 1014, "the session's sandbox ended; connect again to get another"

"""Reading a request's body before its sandbox is known, where the body says which session it is for. Bounded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.core.errors import QueueFullError, TooLargeError
from gateway.routing.responses import Message
from gateway.routing.time_limits import ClientGoneError

MAX_BODY_BYTES = 1 << 20  # of one body, as of a task's
MAX_TOTAL_BYTES = 64 << 20  # of all that wait for their sandboxes at a time


class ReadAhead:
    """Bytes that are held of bodies, of all requests of a gateway together."""

    def __init__(self, most: int = MAX_BODY_BYTES, total: int = MAX_TOTAL_BYTES) -> None:
        self.held = 0
        self._most = most
        self._total = total

    async def read(self, receive: Callable[[], Awaitable[Message]], hold: Callable[[int], None]) -> Message:
        """The body as one message, if it begins as a JSON object; else as much as shows that it does not.

        `hold(size)` is told of each piece, which `held` counts; whoever sends the message on takes it off again.
        Raises TooLargeError, QueueFullError when too much is held already, and ClientGoneError.
        """
        body, begun = bytearray(), False
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("the client left while sending its request")
            piece: bytes = message.get("body", b"")
            more: bool = message.get("more_body", False)
            self.held += len(piece)
            hold(len(piece))
            body += piece
            if not begun and (text := piece.lstrip()):
                begun = True
                if not text.startswith(b"{"):
                    break
            if not more:
                break
            self._require_room(len(body))
        return {"type": "http.request", "body": bytes(body), "more_body": more}

    def _require_room(self, size: int) -> None:
        if size > self._most:
            raise TooLargeError(
                f"a JSON body is searched for the name of its conversation up to {self._most} bytes; "
                "name the session in the header x-session-id"
            )
        if self.held > self._total:
            raise QueueFullError(f"{self.held} bytes of requests already wait for their sandboxes; try again shortly")

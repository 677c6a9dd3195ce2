"""What the blocking and the awaited client share: the address, the key, time limits, and addresses of WebSockets."""

from __future__ import annotations

import os
from typing import Any

import httpx

from wakegate_client import calls
from wakegate_client.answers import UnreachableError
from wakegate_client.calls import Call

DEFAULT_URL = "http://127.0.0.1:8080"
# A gateway that answers at all takes a connection in milliseconds; 60 s covers a cold start in a cluster, which a
# create waits for.
_CONNECT_S, _ANSWER_S = 10.0, 60.0
# A command, a transfer or a followed log lasts as long as it lasts: the gateway ends what has hung, by limits that it
# knows.
STREAM = httpx.Timeout(None, connect=_CONNECT_S)


class Base:
    """What both have: the address, the key, and how a call becomes a request."""

    def __init__(self, url: str | None = None, key: str | None = None, *, verify: Any = True) -> None:
        """`url` and `key`: WAKEGATE_URL and WAKEGATE_API_KEY where they are None. `verify` as httpx takes it."""
        self.url = (url or os.environ.get("WAKEGATE_URL") or DEFAULT_URL).rstrip("/")
        self.key = key if key is not None else os.environ.get("WAKEGATE_API_KEY", "")
        self._options: dict[str, Any] = {
            "base_url": self.url,
            # An empty key is none: `Bearer ` alone would be refused as malformed where a gateway on loopback takes
            # anybody.
            "headers": {"authorization": f"Bearer {self.key}"} if self.key else {},
            "timeout": httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            "verify": verify,
        }

    def terminal_url(self, session: str, query: str = "") -> str:
        """The address of a session's terminal, a WebSocket; docs/picod-api.md has its frames."""
        return "ws" + self.url.removeprefix("http") + calls.of_session(session, "/terminal") + query

    def port_url(self, session: str, port: int, path: str = "") -> str:
        """The address of a server that listens in a session's sandbox."""
        return f"{self.url}{calls.of_session(session)}/ports/{port}/{path}"

    def _failed(self, error: httpx.HTTPError) -> UnreachableError:
        if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)):
            return UnreachableError(f"{self.url}: the answer broke off: {error or type(error).__name__}")
        return UnreachableError(f"{self.url}: {error or type(error).__name__}")

    @staticmethod
    def _sent(call: Call[Any]) -> dict[str, Any]:
        return {**call.options(), **({"timeout": STREAM} if call.slow else {})}

"""The signed identity that a gateway adds to a request which it passes on to another gateway of the same store.

The gateway that received the request has verified the client's key, which it does not forward. So it signs the
identity, with the request's method and path and the time, by a key that both derive from the store's secret. A request
without that signature is a client's own, whatever its header fields say of other gateways.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import orjson

from gateway.core.clock import Clock
from gateway.core.errors import UnavailableError
from gateway.core.identity import Identity, Role, SessionScope
from gateway.core.model import SessionId
from gateway.identity.shared_secret import SharedSecret

PEER_HEADER = "x-wakegate-peer"
MAX_SKEW_S = 60.0  # between two gateways' clocks, and the time on the way
_MAX_BYTES = 8192


class PeerSigner:
    """Signs and verifies. Before `open` it does neither: there is no store yet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = b""

    def open(self, secret: SharedSecret) -> None:
        """Sign and verify with a key derived from the store's secret."""
        self._key = secret.key("requests between gateways")

    def sign(self, identity: Identity, method: str, path: bytes) -> bytes:
        """The value of PEER_HEADER. `path` is the request target without a query. Raises UnavailableError."""
        if not self._key:
            raise UnavailableError("this gateway is starting; try again shortly", retry_after=1)
        payload = base64.urlsafe_b64encode(orjson.dumps({"at": self._clock.now(), "for": _document(identity)}))
        return b"%b.%b" % (payload, self._mac(payload, method, path))

    def verify(self, value: bytes, method: str, path: bytes) -> Identity | None:
        """The identity of a request that another gateway passed on; None unless one of this store signed it lately."""
        payload, _, mac = value.partition(b".")
        # The signature is checked before anything is decoded: the parser sees only what a gateway has written.
        if not self._key or len(value) > _MAX_BYTES or not hmac.compare_digest(mac, self._mac(payload, method, path)):
            return None
        signed = orjson.loads(base64.urlsafe_b64decode(payload))  # written by a gateway: the signature is verified
        return _identity(signed["for"]) if abs(self._clock.now() - signed["at"]) <= MAX_SKEW_S else None

    def _mac(self, payload: bytes, method: str, path: bytes) -> bytes:
        # None of the three can hold a line's end (base64, a token, a request target), so no two requests are signed as
        # the same bytes.
        signed = b"%b\n%b\n%b" % (payload, method.encode(), path)
        return base64.urlsafe_b64encode(hmac.new(self._key, signed, hashlib.sha256).digest())


def _document(identity: Identity) -> dict[str, Any]:
    scope = identity.scope
    return {
        "role": identity.role,
        "tenant": identity.tenant,
        "subject": identity.subject,
        "user": identity.user,
        "key": identity.key_id,
        "runtimes": sorted(identity.runtimes),
        "scope": None if scope is None else [scope.session_id, list(scope.paths), list(scope.ports)],
    }


def _identity(document: Mapping[str, Any]) -> Identity:
    scope = document["scope"]
    return Identity(
        Role(document["role"]),
        document["tenant"],
        document["subject"],
        document["user"],
        document["key"],
        frozenset(document["runtimes"]),
        None if scope is None else SessionScope(SessionId(scope[0]), tuple(scope[1]), tuple(scope[2])),
    )

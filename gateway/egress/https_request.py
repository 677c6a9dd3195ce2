"""One request of a connection whose TLS ends here: whether it may be sent, and as what the origin gets it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import h11

from gateway.egress.client import Client
from gateway.egress.credentials import Credential, fill
from gateway.egress.http_head import BadHeadError, Field, Head, end_to_end, parse_request, split_authority
from gateway.egress.policy import Target, decide

_HTTPS = 443
# Fields that would have an answer come in a form, or in parts, in which a credential in it is not seen.
_HIDING_FIELDS = frozenset((b"accept-encoding", b"range", b"if-range", b"sec-websocket-extensions"))
# TRACE answers with the request, CONNECT and PRI lead to what is no request.
_REFUSED_METHODS = frozenset(("TRACE", "CONNECT", "PRI"))


class RefusedRequestError(Exception):
    """A request that is answered here, after which the connection ends."""

    def __init__(self, status: int, code: str, text: str, setting: str = "") -> None:
        super().__init__(text)
        self.status, self.code, self.setting = status, code, setting

    def answer(self) -> bytes:
        """The whole answer, in the shape that the gateway's own errors have."""
        document = {"error": str(self), "code": self.code, **({"setting": self.setting} if self.setting else {})}
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {self.status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return f"{head}X-Wakegate-Egress: {self.code}\r\nConnection: close\r\n\r\n".encode() + body


def permitted(client: Client, target: Target, credentials: Sequence[Credential], raw: bytes) -> Head:
    """The request, if it may be sent. Raises RefusedRequestError; writes the log."""
    head = _well_formed(client, target, raw)
    verdict = decide(client.egress.layers, replace(target, visible=True, method=head.method, path=head.target))
    if not verdict.allowed:
        client.cut(verdict.reason)
        raise RefusedRequestError(403, "EGRESS_REFUSED", f"egress refused: {verdict.text}", verdict.setting)
    for each in credentials:
        # Not sent without it: the origin's 401 would look as if the credential were wrong.
        if not each.value:
            raise failed(client, f"the gateway cannot read the value of the secret {each.name}; its log says why")
    client.requested(each.name for each in credentials)
    return head


def failed(client: Client, reason: str) -> RefusedRequestError:
    """The error of a request that is allowed and cannot be sent; writes the log."""
    client.cut(reason)
    return RefusedRequestError(502, "EGRESS_FAILED", f"egress failed: {reason}")


def _well_formed(client: Client, target: Target, raw: bytes) -> Head:
    try:
        head = parse_request(raw)
        if head.method in _REFUSED_METHODS:
            raise BadHeadError(f"{head.method} is not passed on")
        if not head.target.startswith("/") and head.target != "*":
            raise BadHeadError("its target is no path")
        hosts = head.values(b"host")
        # A front end that serves many hosts goes by Host and not by the name in TLS, so that a request to another of
        # them would get past the policy ("domain fronting").
        if not hosts or split_authority(hosts[0].decode("latin-1"), _HTTPS) != (target.host, target.port):
            raise BadHeadError(f"its Host is not {target}, for which the connection was asked", 421)
    except ValueError as error:  # also BadHeadError
        client.cut(f"a request is not passed on: {error}")
        status = error.status if isinstance(error, BadHeadError) else 400
        raise RefusedRequestError(status, "BAD_REQUEST", f"egress does not pass this on: {error}") from None
    return head


def origin_request(head: Head, target: Target, credentials: tuple[Credential, ...]) -> h11.Request:
    """The request as the origin gets it: with its credentials, and without what would hide them in its answer."""
    upgrade = head.upgrade if head.upgrade.lower() == b"websocket" else b""
    shown = [field for field in head.fields if not credentials or field[0] not in _HIDING_FIELDS]
    fields, path = fill(replace(head, fields=shown), credentials)
    authority = str(Target(target.host, target.port)).removesuffix(f":{_HTTPS}").encode()
    kept: list[Field] = [(name, value) for name, value in end_to_end(fields) if name != b"host"]
    if credentials:
        kept.append((b"accept-encoding", b"identity"))
    if upgrade:
        kept += [(b"connection", b"Upgrade"), (b"upgrade", upgrade)]
    return h11.Request(method=head.method, target=path, headers=[(b"host", authority), *kept])

"""Where a request began, by the word of the proxies in front: X-Forwarded-* and Forwarded (RFC 7239). Pure.

Anybody can write these fields, so they count only where a proxy of `--trusted-proxies` sent the request, and only as
far back as trust reaches: read from the right, each trusted address vouches for the one before it. The first that is
not trusted is the client's; what stands left of it the client made up.

Where both families are there, X-Forwarded-* wins and Forwarded is not read at all. Most proxies (nginx, Envoy, Caddy,
Traefik) write X-Forwarded-* and pass a client's Forwarded through untouched, so believing it would let any client
choose its address. Rejected: taking host or scheme from one family and the address from the other, for the same reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.core.proxies import TrustedProxies, node_address

MAX_ENTRIES = 32  # of one field, counted from the right; a chain of proxies has two or three
_MAX_LINE_BYTES = 8192  # of one line of Forwarded
_UNKNOWN = "unknown"

_FOR, _HOST, _PROTO, FORWARDED = b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded"
FIELDS = frozenset((_FOR, _HOST, _PROTO, FORWARDED))

_AUTHORITY = re.compile(rb"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}  # Traefik says wss of a WebSocket
_PAIR = re.compile(rb"[ \t]*([!#-'*+.^-z|~0-9A-Z-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\",;\s]*))[ \t]*(?:([;,])|$)")
_GAP = re.compile(rb"[ \t;,]*")
_ESCAPED = re.compile(rb"\\(.)")

Claims = Mapping[bytes, Sequence[bytes]]  # field -> its lines in their order


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What is believed of a request that a trusted proxy sent.

    `client`: the client's address, or that of the last proxy that is known where that one did not know it.
    `chain`: addresses from the client's on to who sent the request to us. `host`, `scheme`: empty where nobody said.
    """

    client: str
    chain: tuple[str, ...]
    host: bytes
    scheme: str


def read_forwarded(claims: Claims, peer: str, proxies: TrustedProxies, *, passed_on: bool) -> Forwarded:
    """What to believe of `claims`, from a `peer` that is trusted; what is malformed counts as not said.

    `passed_on`: the peer is another gateway, which has put itself in no one's place, so the chain ends before it.
    """
    if _FOR in claims or _HOST in claims or _PROTO in claims:
        nodes, hosts, schemes = (_entries(claims.get(name, ())) for name in (_FOR, _HOST, _PROTO))
    else:
        elements = [each for line in claims.get(FORWARDED, ()) for each in _elements(line)][-MAX_ENTRIES:]
        nodes, hosts, schemes = (
            [element.get(name, b"") for element in elements] for name in (b"for", b"host", b"proto")
        )
    client, chain, index = peer, [] if passed_on else [peer], len(nodes)
    while index:
        index -= 1
        address = node_address(nodes[index])
        chain.append(address or _UNKNOWN)
        if address is None:
            break
        client = address
        if not proxies.trust(address):
            break
    host, scheme = (_entry_of(values, nodes, index) for values in (hosts, schemes))
    return Forwarded(
        client,
        tuple(reversed(chain or [peer])),
        host if _AUTHORITY.fullmatch(host) else b"",
        _SCHEMES.get(scheme.lower(), ""),
    )


def _entries(lines: Sequence[bytes]) -> list[bytes]:
    """The last entries of a comma-separated field, which several lines make as one would (RFC 9110 5.3)."""
    latest = b",".join(lines).rsplit(b",", MAX_ENTRIES)[-MAX_ENTRIES:]
    return [entry for each in latest if (entry := each.strip(b" \t"))]


def _entry_of(values: Sequence[bytes], nodes: Sequence[bytes], index: int) -> bytes:
    """The value that goes with the node at `index`.

    Of as many values as there are nodes, each proxy added one with the other. Else the last: the nearest proxy's word.
    """
    if not values:
        return b""
    return values[index] if len(values) == len(nodes) else values[-1]


def _elements(line: bytes) -> list[dict[bytes, bytes]]:
    """The elements of a line of Forwarded, names in lower case. Of a malformed line: one that says nothing."""
    elements: list[dict[bytes, bytes]] = []
    position, is_new = 0, True
    while position < len(line):
        found = _PAIR.match(line, position)
        if found is None or len(line) > _MAX_LINE_BYTES:
            return [{}]
        name, quoted, token, end = found.groups()
        if is_new:
            elements.append({})
        if name.lower() in elements[-1]:  # RFC 7239 4: once in an element
            return [{}]
        elements[-1][name.lower()] = token if quoted is None else _ESCAPED.sub(rb"\1", quoted)
        is_new = end != b";"
        gap = _GAP.match(line, found.end())
        assert gap is not None
        is_new = is_new or b"," in gap[0]
        position = gap.end()
    return elements

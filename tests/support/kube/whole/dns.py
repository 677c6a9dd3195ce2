"""Names of Services, for pods: a responder over UDP that answers from the API server's Services and EndpointSlices.

Usage: python -m tests.support.kube.whole.dns ADDRESS API CA, the token in the environment's TOKEN. It stands for
CoreDNS: IPv4 only, names of Services only, and what it knew last while the API server is away.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from tests.support.kube.whole.network import DNS_PORT

log = logging.getLogger(__name__)
_DOMAIN = ("svc", "cluster", "local")
_TTL_S = 5
_REFRESH_S = 0.5
_A, _NO_ERROR, _NO_NAME = 1, 0, 3
Names = Mapping[tuple[str, str], Sequence[str]]  # (name, namespace) -> addresses


def names_in(services: Sequence[Any], slices: Sequence[Any]) -> Names:
    """Addresses of each Service: its own, or without one those of the pods that are ready."""
    found: dict[tuple[str, str], list[str]] = {}
    headless = set()
    for service in services:
        key = (service["metadata"]["name"], service["metadata"]["namespace"])
        address = service["spec"].get("clusterIP", "None")
        found[key] = [] if address == "None" else [address]
        if address == "None":
            headless.add(key)
    for each in slices:
        key = (each["metadata"].get("labels", {}).get("kubernetes.io/service-name", ""), each["metadata"]["namespace"])
        if key in headless:
            for endpoint in each.get("endpoints") or ():
                if endpoint.get("conditions", {}).get("ready", True):
                    found[key] += endpoint["addresses"]
    return found


def answer(query: bytes, names: Names) -> bytes:
    """To one query. A name of a Service that has no address exists and has no record."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace").lower())
        at += 1 + query[at]
    question = query[12 : at + 5]
    kind = int.from_bytes(query[at + 1 : at + 3], "big")
    addresses = names.get((labels[0], labels[1])) if len(labels) == 5 and tuple(labels[2:]) == _DOMAIN else None
    code = _NO_NAME if addresses is None else _NO_ERROR
    records = [ipaddress.IPv4Address(each).packed for each in addresses or ()] if kind == _A else []
    head = query[:2] + (0x8580 | code).to_bytes(2, "big") + b"\0\1" + len(records).to_bytes(2, "big") + b"\0" * 4
    body = b"".join(b"\xc0\x0c\0\1\0\1" + _TTL_S.to_bytes(4, "big") + b"\0\4" + each for each in records)
    return head + question + body


class _Responder(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.names: Names = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if len(data) > 16:
            self._transport.sendto(answer(data, self.names), addr)  # type: ignore[attr-defined]


async def main(address: str, api: str, ca: str) -> None:
    """Serve until the process is ended."""
    _, responder = await asyncio.get_running_loop().create_datagram_endpoint(_Responder, (address, DNS_PORT))
    headers = {"authorization": f"Bearer {os.environ['TOKEN']}"}
    verify = ssl.create_default_context(cafile=ca)
    async with httpx.AsyncClient(base_url=api, headers=headers, verify=verify, timeout=5) as client:
        while True:
            try:
                services, slices = [
                    (await client.get(path)).raise_for_status().json()["items"]
                    for path in ("/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices")
                ]
                responder.names = names_in(services, slices)
            except (httpx.HTTPError, OSError) as error:
                log.warning("the API server is away: %r", error)
            await asyncio.sleep(_REFRESH_S)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))

"""Proxies in front of the gateway: which addresses `--trusted-proxies` names, and how they write an address."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from gateway.core.errors import SettingsError

_MAX_NODE_BYTES = 64  # "[", 39 of IPv6, "]:", a port
_NODE_PORT = re.compile(rb"(:([0-9]{1,5}|_[A-Za-z0-9._-]+))?")


class TrustedProxies:
    """The networks of proxies whose forwarding fields are believed."""

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(networks)

    def __repr__(self) -> str:
        return f"<TrustedProxies {', '.join(map(str, self._networks))}>"

    def trust(self, address: str) -> bool:
        """Whether an address is in one of them, also an IPv4 address in IPv6 form, as dual-stack sockets show it."""
        return _is_within(self._networks, address)


NO_PROXIES = TrustedProxies(())


def read_proxies(text: str) -> TrustedProxies | None:
    """The setting: networks and addresses with commas between; None where there are none. Raises SettingsError."""
    networks = []
    for each in text.split(","):
        if not (name := each.strip()):
            continue
        try:
            networks.append(_plain(ip_network(name)))
        except ValueError as error:
            raise SettingsError(
                [f"--trusted-proxies: {error}; expected addresses and networks, as in 10.0.0.7,192.168.0.0/16,fd00::/8"]
            ) from None
    return TrustedProxies(networks) if networks else None


def _plain(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """IPv4 written as IPv6 (::ffff:10.0.0.0/104) as IPv4, which is how the addresses of senders are compared."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None or network.prefixlen < 96 else IPv4Network((mapped, network.prefixlen - 96))


@lru_cache(maxsize=4096)
def node_address(node: bytes) -> str | None:
    """The address in a node of either family: bare, with a port, IPv6 in brackets. None: unknown, hidden, malformed."""
    name = node.strip(b" \t")
    if len(name) > _MAX_NODE_BYTES or b"%" in name:  # a zone has a meaning on this machine only, and may be any text
        return None
    if name.startswith(b"["):
        name, bracket, port = name[1:].partition(b"]")
        if not bracket or b":" not in name or not _NODE_PORT.fullmatch(port):
            return None
    elif name.count(b":") == 1:
        name, _, port = name.partition(b":")
        if not _NODE_PORT.fullmatch(b":" + port):
            return None
    try:
        address = ip_address(name.decode("ascii"))
    except ValueError:  # also UnicodeDecodeError
        return None
    return str((address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address)


@lru_cache(maxsize=4096)
def _is_within(networks: tuple[IPv4Network | IPv6Network, ...], address: str) -> bool:
    name = node_address(address.partition("%")[0].encode())
    return name is not None and any(ip_address(name) in network for network in networks)

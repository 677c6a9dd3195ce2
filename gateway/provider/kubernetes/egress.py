"""What sandboxes of a runtime may reach (`spec.wakegate.egress`): the NetworkPolicy, and what is kept out of it. Pure.

A user who may create runtimes must not get the node's rights: a cloud's metadata server gives the node's credentials
to every process on it. So an entry that names such an address is refused, and a wider one, such as 0.0.0.0/0
or a rule without `to`, gets the addresses as exceptions. Private networks are exceptions of a wider entry too, which
means the internet, and not the API server, the kubelets and the gateways. `--kube-trust-manifests` lifts all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from gateway.core.model import Kind, Runtime
from gateway.egress.addresses import METADATA, SITE_NETWORKS, Network
from gateway.egress.grants import by_name
from gateway.egress.rule_entries import parse_entry
from gateway.egress.rules import Rule
from gateway.provider.kubernetes import names
from gateway.provider.kubernetes.build import owner_of
from gateway.provider.kubernetes.template import own_section

Object = dict[str, Any]

# A NAT64 gateway makes the last 32 bits of these an IPv4 address.
_NAT64_BITS = int(ip_network("64:ff9b::/96").network_address)
_NAT64 = tuple(
    IPv6Network((_NAT64_BITS + int(network.network_address), 96 + network.prefixlen))
    for network in METADATA
    if isinstance(network, IPv4Network)
)
_EXCEPTIONS = (*METADATA, *_NAT64, *SITE_NETWORKS)
# IPv4-mapped blocks are refused whole: the API server takes none of them as an exception.
_REFUSED = (*METADATA, *_NAT64, ip_network("::ffff:0:0/96"))
_ANYWHERE: tuple[Object, ...] = ({"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}})


# What manifests/ label the pods of gateways with.
GATEWAY_LABELS = {"app.kubernetes.io/name": "wakegate", "app.kubernetes.io/component": "gateway"}


def make_egress(runtime: Runtime, *, trusted: bool = False, service: tuple[str, int] | None = None) -> Object | None:
    """The NetworkPolicy that lets its sandboxes reach what spec.wakegate.egress allows; None: nothing.

    An entry is `dns` (port 53 of anything in the cluster), a CIDR, or an egress rule as a NetworkPolicy has them. A
    NetworkPolicy knows no names: with one in the list, sandboxes may reach the egress service. `service`: the
    namespace of the gateways and their port for it; None: names open nothing.
    """
    entries = own_section(runtime).get("egress") or []
    labels = names.runtime_labels(runtime.key)
    direct = [rule for entry in entries for rule in _rules(entry)]
    rules = direct if trusted else [_with_exceptions(rule) for rule in direct]
    if service is not None and runtime.key.kind is Kind.CODE_INTERPRETER and by_name(runtime):
        rules = [*rules, _to_service(*service)]
    if not rules:
        return None
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": names.deployment_name(runtime.key),
            "namespace": runtime.key.namespace,
            "labels": labels,
            **({"ownerReferences": owners} if (owners := owner_of(runtime)) else {}),
        },
        "spec": {
            "podSelector": {"matchLabels": labels},
            "policyTypes": ["Egress"],
            "egress": rules,
        },
    }


def refused_egress(entries: Any, place: str) -> Iterator[str]:
    """Paths of entries that name nothing but a metadata server, or an address block that cannot be read."""
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if isinstance(entry, str):
            if entry != "dns" and not _is_permitted(entry):
                yield f"{place}[{index}]"
        elif isinstance(entry, Mapping):
            peers = entry.get("to")
            for number, peer in enumerate(peers if isinstance(peers, list) else ()):
                block = peer.get("ipBlock") if isinstance(peer, Mapping) else None
                if block is not None and not (isinstance(block, Mapping) and _may_open(block.get("cidr"))):
                    yield f"{place}[{index}].to[{number}].ipBlock"


def _to_service(namespace: str, port: int) -> Object:
    """By the pods' labels and their own port, not the Service's address: policies are asked once that is resolved."""
    peer = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": GATEWAY_LABELS},
    }
    return {"to": [peer], "ports": [{"port": port, "protocol": "TCP"}]}


def _network(cidr: Any) -> Network | None:
    """The API server takes 10.1.2.3/8 for 10.0.0.0/8. What it reads otherwise than we do (leading zeros) is None."""
    try:
        return ip_network(cidr, strict=False) if isinstance(cidr, str) else None
    except ValueError:
        return None


def _may_open(cidr: Any) -> bool:
    network = _network(cidr)
    return network is not None and not any(_covers(blocked, network) for blocked in _REFUSED)


def _covers(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and outer.supernet_of(inner)  # type: ignore[arg-type]  # of one version


def _is_permitted(entry: str) -> bool:
    try:
        rules = parse_entry(entry)
    except ValueError:
        return False
    return all(rule.network is None or _may_open(str(rule.network)) for rule in rules)


def _rules(entry: Any) -> Iterator[Object]:
    if entry == "dns":
        ports = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
        yield {"to": [{"namespaceSelector": {}}], "ports": ports}
    elif isinstance(entry, Mapping) and "host" not in entry:
        yield dict(entry)
    else:
        # Methods and paths are the egress service's to look at: with a NetworkPolicy alone they would not be.
        yield from (_block(rule) for rule in parse_entry(entry) if rule.network is not None and not rule.limited)


def _block(rule: Rule) -> Object:
    made: Object = {"to": [{"ipBlock": {"cidr": str(rule.network)}}]}
    if rule.ports != ((1, 65535),):
        made["ports"] = [{"port": low, "endPort": high, "protocol": "TCP"} for low, high in rule.ports]
    return made


def _with_exceptions(rule: Mapping[str, Any]) -> Object:
    """The rule with METADATA and SITE_NETWORKS as exceptions of each address block that contains more.

    A rule without `to` is for anywhere. Spelled out that is every pod, which some network plug-ins (Cilium) count to no
    address block, and every address.
    """
    peers = rule.get("to") or [{"namespaceSelector": {}}, *_ANYWHERE]
    return {**rule, "to": [_peer(peer) for peer in peers]}


def _peer(peer: Any) -> Any:
    block = peer.get("ipBlock") if isinstance(peer, Mapping) else None
    if not isinstance(block, Mapping) or (network := _network(block.get("cidr"))) is None:
        return peer
    given = list(block.get("except") or ())
    inside = [str(each) for each in _EXCEPTIONS if each != network and _covers(network, each)]
    added = [each for each in inside if each not in given]
    return {**peer, "ipBlock": {**block, "except": [*given, *added]}} if added else peer

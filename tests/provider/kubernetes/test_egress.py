"""No runtime opens the way to a cloud's metadata server, which gives out the credentials of the node."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from gateway.core.model import Runtime, RuntimeKey
from gateway.provider.kubernetes.egress import make_egress
from gateway.provider.kubernetes.trust import untrusted

SERVERS = (
    "169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23", "fe80::a9fe:a9fe",
    "fd20:ce::254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "64:ff9b::a9fe:a9fe",
)  # fmt: skip


def runtime(*egress: Any) -> Runtime:
    manifest = {"spec": {"template": {}, "wakegate": {"egress": list(egress)}}}
    return Runtime(RuntimeKey("default", "one"), manifest=manifest)


def reached(address: str, made: Runtime, *, trusted: bool = False) -> bool:
    """Whether an address block of the policy takes an address in, as a network plug-in reads it."""
    policy = make_egress(made, trusted=trusted)
    assert policy is not None
    found = ip_address(address)
    blocks = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule.get("to", ()) if "ipBlock" in peer]
    return any(
        found in ip_network(block["cidr"], strict=False)
        and not any(found in ip_network(each) for each in block.get("except", ()))
        for block in blocks
    )


@pytest.mark.parametrize("address", SERVERS)
def test_metadata_server_by_name_is_refused(address: str) -> None:
    """As a CIDR and in a rule; the field is named."""
    cidr = f"{address}/{ip_address(address).max_prefixlen}"
    assert untrusted(runtime("dns", cidr)) == ["spec.wakegate.egress[1]: refused without --kube-trust-manifests"]
    assert untrusted(runtime({"to": [{"podSelector": {}}, {"ipBlock": {"cidr": cidr}}]})) == [
        "spec.wakegate.egress[0].to[1].ipBlock: refused without --kube-trust-manifests"
    ]


@pytest.mark.parametrize(
    "cidr",
    [
        "169.254.0.0/16",
        "169.254.169.254/31",
        "169.254.169.254/24",
        "::ffff:169.254.169.254/128",
        "0169.254.169.254/32",
        "x",
        5,
    ],
)
def test_block_that_holds_little_else_or_cannot_be_read_is_refused(cidr: Any) -> None:
    """The API server reads some texts otherwise than we do: what is no plain CIDR opens nothing."""
    assert untrusted(runtime({"to": [{"ipBlock": {"cidr": cidr}}]}))


@pytest.mark.parametrize(
    "entry",
    [
        "0.0.0.0/0",
        "::/0",
        "169.0.0.0/8",
        "fc00::/7",
        {"ports": [{"port": 80}]},
        {},
        {"to": []},
        {"to": None},
        {"to": [{"ipBlock": {"cidr": "169.1.2.3/8", "except": ["169.1.0.0/16"]}}]},
    ],
)
def test_wider_entries_are_taken_without_the_metadata_servers(entry: Any) -> None:
    """The internet without them; exceptions of the manifest's own stay."""
    made = runtime(entry)
    assert untrusted(made) == []
    assert [address for address in SERVERS if reached(address, made)] == []


def test_wide_entry_still_reaches_the_internet() -> None:
    """Exceptions take out what they name and no more."""
    for entry in ("0.0.0.0/0", {"ports": [{"port": 443}]}):
        assert reached("93.184.216.34", runtime(entry))
        assert not reached("169.254.169.254", runtime(entry))


@pytest.mark.parametrize("address", ["10.96.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12:3456::1"])
def test_private_network_is_reached_where_it_is_named(address: str) -> None:
    """0.0.0.0/0 is the internet, without the API server and the nodes; a network within a private one is itself."""
    network = ip_network(f"{address}/{16 if '.' in address else 32}", strict=False)
    for wide in ("0.0.0.0/0", "::/0", "8.0.0.0/5", {"ports": [{"port": 443}]}):
        assert not reached(address, runtime(wide))
        assert reached(address, runtime(wide, str(network)))
    assert reached(address, runtime("0.0.0.0/0", "::/0"), trusted=True)


def test_exceptions_lie_within_their_block() -> None:
    """The API server refuses a policy with another one."""
    for entry in ("0.0.0.0/0", "::/0", "169.0.0.0/8", "10.0.0.0/8"):
        policy = make_egress(runtime(entry))
        assert policy is not None
        block = policy["spec"]["egress"][0]["to"][0]["ipBlock"]
        outer = ip_network(block["cidr"])
        for inner in map(ip_network, block.get("except", ())):
            assert inner.prefixlen > outer.prefixlen
            assert inner.network_address in outer


def test_trusted_manifest_opens_what_it_names() -> None:
    """For clusters in which only operators create runtimes."""
    assert reached("169.254.169.254", runtime("169.254.169.254/32"), trusted=True)
    policy = make_egress(runtime({"ports": [{"port": 80}]}), trusted=True)
    assert policy is not None
    assert policy["spec"]["egress"] == [{"ports": [{"port": 80}]}]

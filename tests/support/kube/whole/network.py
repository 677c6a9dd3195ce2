"""A whole cluster's addresses, and the switch to which its nodes are plugged: a bridge of this network namespace."""

from __future__ import annotations

import subprocess

SWITCH = "wgswitch"
PLANE = "10.77.0.1"  # the control plane, DNS, and whoever uses the cluster
SERVICES = "10.96.0.0/24"
PODS = "10.78.0.0/16"
DNS_PORT = 53
OUTSIDE = "198.51.100.7"  # an address of nobody's that stands for the internet
METADATA = "169.254.169.254"


def node_address(number: int) -> str:
    """Of node 1, 2, ..."""
    return f"10.77.0.{10 + number}"


def pods_of(number: int) -> str:
    """The network of a node's pods."""
    return f"10.78.{number}.0/24"


def ip(*arguments: str, inside: tuple[str, ...] = ()) -> None:
    """ip(8), here or in a node. Raises CalledProcessError."""
    subprocess.run([*inside, "ip", *arguments], check=True, capture_output=True, text=True)


def make_switch() -> None:
    """Fails if this network namespace has a way out: nothing of a cluster may reach anything else."""
    shown = subprocess.run(["ip", "-br", "link"], check=True, capture_output=True, text=True).stdout
    names = {line.split()[0].partition("@")[0] for line in shown.splitlines()}
    assert names <= {"lo", SWITCH}, f"not a network namespace of its own: {names}; use scripts/test-cluster"
    ip("link", "set", "lo", "up")
    if SWITCH in names:
        return
    ip("link", "add", SWITCH, "type", "bridge")
    ip("address", "add", f"{PLANE}/24", "dev", SWITCH)
    for other in (OUTSIDE, METADATA):
        ip("address", "add", f"{other}/32", "dev", "lo")
    ip("link", "set", SWITCH, "up")


def plug(number: int, pid: int, inside: tuple[str, ...]) -> None:
    """Join a node, whose first process that is, to the switch; and tell the switch where its pods are."""
    port = f"node{number}"
    subprocess.run(["ip", "link", "delete", port], check=False, capture_output=True)
    ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    ip("link", "set", port, "master", SWITCH, "up")
    ip("address", "add", f"{node_address(number)}/24", "dev", "eth0", inside=inside)
    ip("link", "set", "eth0", "up", inside=inside)
    ip("route", "add", "default", "via", PLANE, inside=inside)
    ip("route", "replace", pods_of(number), "via", node_address(number))


def route_services(number: int) -> None:
    """Addresses of Services are reached from here by way of that node, whose kube-proxy knows them."""
    ip("route", "replace", SERVICES, "via", node_address(number))

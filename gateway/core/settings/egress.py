"""What sandboxes reach, and from where their packages come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Egress:
    """The egress service, on either engine."""

    egress_refuse: str = setting(
        "",
        "networks that no sandbox reaches through the egress proxy whatever its runtime allows, comma-separated, such"
        " as a cluster's pods and services; loopback, link-local and metadata addresses never are",
        kind="text",
        metavar="NETWORKS",
    )
    egress_ca: Path = setting(
        Path(),
        "certificates by which hosts that sandboxes reach are verified where TLS is ended for them, besides the"
        " machine's; sandboxes trust them too, PEM",
        kind="path",
        metavar="FILE",
    )
    egress_port: int = setting(
        0,
        "in a cluster, the port on which sandboxes reach out through gateways to what spec.wakegate.egress names;"
        " 0: names in it open nothing",
        kind="int",
        low=0,
        high=65535,
    )
    egress_address: str = setting(
        "",
        "how sandboxes in a cluster reach --egress-port: a Service's name with its port, which gateways look up",
        kind="text",
        metavar="HOST:PORT",
    )
    package_cache: int = setting(
        5 << 30,
        "size of the cache of packages that sandboxes download from PyPI; 0: none, and TLS to it is not ended",
        kind="size",
        low=0,
    )
    package_index: str = setting(
        "https://pypi.org/simple",
        "where the packages of agents that are deployed from code come from, as pip's --index-url; the sandbox that"
        " installs them reaches this host alone",
        kind="text",
        metavar="URL",
    )

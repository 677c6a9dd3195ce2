"""One authority of all gateways of a cluster, in a Secret, and what pods trust, in a ConfigMap."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import SettingsError
from gateway.egress.authority import Authority, check_authority
from gateway.egress.gate import EgressGate
from gateway.provider.kubernetes import connect, names
from gateway.provider.kubernetes.client import KubeApi
from gateway.provider.kubernetes.egress_authority import SharedAuthority
from gateway.testing import ManualClock
from tests.support.kube.clusters import make_cluster
from tests.support.kube.served import enforce_roles
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL

SECRETS, CONFIGMAPS = BY_PLURAL["secrets"], BY_PLURAL["configmaps"]
YEAR_S = 365 * 86400.0


class Gateways:
    """Several, with a folder each and one clock."""

    def __init__(self, cluster: Cluster, api: KubeApi, folder: Path) -> None:
        self.cluster, self._api, self._folder = cluster, api, folder
        self.clock = ManualClock()

    async def start(self, name: str, *, more: Path | None = None) -> Authority:
        """As one that starts; what its service then ends TLS with."""
        folder = self._folder / name
        gate = EgressGate(authority=folder, trusted=more)
        await SharedAuthority(self._api, folder, self.clock, "wakegate", ["default"], gate.bundle).open()
        return Authority(folder)

    def secret(self) -> dict[str, bytes]:
        data = self.cluster.objects.get(SECRETS, "wakegate", names.AUTHORITY_SECRET)["data"]
        return {name: base64.b64decode(text) for name, text in data.items()}

    def trusted(self) -> str:
        """What pods see."""
        text: str = self.cluster.objects.get(CONFIGMAPS, "default", names.TRUST_CONFIGMAP)["data"]["ca.pem"]
        return text


@pytest.fixture
async def gateways(tmp_path: Path) -> AsyncIterator[Gateways]:
    async with make_cluster(hollow=True).running() as cluster:
        enforce_roles(cluster)
        api = await connect(cluster.kubeconfig(tmp_path))
        yield Gateways(cluster, api, tmp_path)
        await api.aclose()


async def test_gateways_that_start_at_once_have_one_authority(gateways: Gateways) -> None:
    """Whoever comes first makes it; its key is in the Secret and in files of the gateways' users alone."""
    found = await asyncio.gather(*(gateways.start(f"g{n}") for n in range(4)))
    later = await gateways.start("later")
    assert {each.pem for each in (*found, later)} == {gateways.secret()["authority.pem"]}
    check_authority(gateways.secret()["authority.pem"], gateways.secret()["authority.key"])
    trusted = gateways.trusted()
    assert later.pem.decode() in trusted
    assert "PRIVATE" not in trusted
    assert trusted.count("BEGIN CERTIFICATE") > 50, "the machine's own are in it"


async def test_renewed_authority_leaves_the_earlier_one_trusted(gateways: Gateways, tmp_path: Path) -> None:
    """In its last year the next gateway that starts makes another; others go on with the one that they have."""
    before = await gateways.start("one")
    gateways.clock.advance(3.9 * YEAR_S)
    assert (await gateways.start("two")).pem == before.pem
    gateways.clock.advance(0.2 * YEAR_S)
    after = await gateways.start("three")
    assert after.pem != before.pem
    assert (await gateways.start("one")).pem == after.pem
    for each in (before, after):
        assert each.pem.decode() in gateways.trusted()


async def test_operators_authorities_are_trusted_by_pods_too(gateways: Gateways, tmp_path: Path) -> None:
    """--egress-ca: hosts whose TLS passes prove themselves to the sandbox."""
    (tmp_path / "more.pem").write_text("# of the operator\n")
    await gateways.start("one")
    await gateways.start("two", more=tmp_path / "more.pem")
    assert "# of the operator" in gateways.trusted()


async def test_secret_that_is_no_authority_stops_the_start(gateways: Gateways) -> None:
    """With its name and what to do; nothing of it is replaced silently."""
    await gateways.start("one")
    key = {"authority.key": base64.b64encode(b"nonsense").decode()}
    gateways.cluster.objects.update(
        SECRETS, "wakegate", names.AUTHORITY_SECRET, lambda secret: {**secret, "data": {**secret["data"], **key}}
    )
    with pytest.raises(SettingsError, match="delete it, and a new one is made"):
        await gateways.start("two")
    assert gateways.secret()["authority.key"] == b"nonsense"

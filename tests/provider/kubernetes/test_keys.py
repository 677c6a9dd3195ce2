"""Signing keys that change while everything runs: Secret, ConfigMap, mounted key sets, gateways."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from gateway.provider.kubernetes import connect, names
from gateway.provider.kubernetes.signing_keys import RETIRE_S, SharedKeys
from gateway.sandbox.signing_keys import KeyRing
from gateway.testing import ManualClock
from tests.support.kube.clusters import make_cluster
from tests.support.kube.keys import ask, private_keys, token
from tests.support.kube.served import enforce_roles, flags_for, in_cluster
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

WARM = {"wakegate.io/pool": "warm"}
SECRETS, CONFIGMAPS = BY_PLURAL["secrets"], BY_PLURAL["configmaps"]


def shown(cluster: Cluster) -> set[str]:
    """The kids that pods can see."""
    text = cluster.objects.get(CONFIGMAPS, "default", names.KEYS_CONFIGMAP)["data"]["jwks.json"]
    return {key["kid"] for key in orjson.loads(text)["keys"]}


def change(cluster: Cluster, data: dict[str, str]) -> None:
    """Put other keys into the Secret, as `kubectl edit` does."""
    cluster.objects.update(SECRETS, "wakegate", names.KEYS_SECRET, lambda secret: {**secret, "data": data})


def make_pem() -> str:
    """A key of the operator's own, as it stands in a Secret."""
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return base64.b64encode(ed25519.Ed25519PrivateKey.generate().private_bytes(*form)).decode()


def test_pods_of_an_earlier_installation_are_replaced_and_never_given_out(tmp_path: Path) -> None:
    """The Secret went with the earlier installation, the pool's pods and their ConfigMap stayed."""
    with in_cluster(tmp_path) as (first, cluster):
        cluster.kubelet.sync_time = 1e6  # no node brings a running pod the new set
        wait_until(lambda: first.client.get("/readyz").status_code == 200, "the pool is full")
        left = {pod["metadata"]["uid"] for pod in cluster.call(lambda: cluster.pods(**WARM))}
        assert left
        assert first.terminate() == 0
        cluster.call(lambda: cluster.delete("secrets", "wakegate", names.KEYS_SECRET))
        with serve(tmp_path / "again", *flags_for(cluster, tmp_path)) as second:
            reply = second.run(second.session(), "echo well")
            assert (reply.status_code, reply.json()["stdout"]) == (200, "well\n")
            wait_until(
                lambda: not left & {pod["metadata"]["uid"] for pod in cluster.call(cluster.pods)},
                "the old pods are gone",
            )


def test_key_exchanged_under_load_fails_no_request(tmp_path: Path) -> None:
    """Two gateways, live sessions, a key added to the Secret and the old one taken out later: pods see the new key
    before anybody signs with it, the old one is good until it is taken out, and no request ever fails."""
    flags = ["--key-settle", "2s"]
    with in_cluster(tmp_path, *flags) as (one, cluster):
        cluster.kubelet.sync_time = 1.0
        with serve(tmp_path / "two", *flags_for(cluster, tmp_path), *flags) as two:
            sessions = [(server, server.session()) for server in (one, two)]
            pods = {pod["metadata"]["uid"]: pod["status"]["podIP"] for pod in claimed(cluster)}
            old = cluster.call(lambda: dict(private_keys(cluster)))
            (name,) = old

            def all_well() -> None:
                for server, session in sessions:
                    reply = server.run(session, "echo well")
                    assert reply.status_code == 200, reply.text

            def until(holds: Any, what: str) -> None:
                """Wait, while requests go on."""

                def look() -> bool:
                    all_well()
                    return bool(holds())

                wait_until(look, what)

            all_well()
            cluster.call(lambda: change(cluster, {**old, "mine.pem": make_pem()}))
            until(lambda: "mine" in cluster.call(lambda: shown(cluster)), "pods are shown the new key")
            assert not any(signs(server, "mine") for server, _ in sessions)
            until(lambda: all(signs(server, "mine") for server, _ in sessions), "both sign with it")
            tokens = {uid: token(name.removesuffix(".pem"), old[name], uid) for uid in pods}
            assert [ask(pods[uid], bearer) for uid, bearer in tokens.items()] == [200, 200]
            kept = cluster.call(lambda: {"mine.pem": private_keys(cluster)["mine.pem"]})
            cluster.call(lambda: change(cluster, kept))
            until(lambda: {ask(pods[uid], bearer) for uid, bearer in tokens.items()} == {401}, "old tokens are refused")
            all_well()
            assert {pod["metadata"]["uid"] for pod in claimed(cluster)} == pods.keys()


def claimed(cluster: Cluster) -> list[Any]:
    return cluster.call(lambda: cluster.pods(**{"wakegate.io/pool": "claimed"}))


def signs(server: Server, kid: str) -> bool:
    """Whether the gateway said so."""
    return f"signing key {kid} signs from now on" in server.log.read_text()


@asynccontextmanager
async def sharing(cluster: Cluster, folder: Path, clock: ManualClock) -> AsyncIterator[tuple[SharedKeys, KeyRing]]:
    """A gateway's keys, rotated after 1000 s, signing 60 s after they can be seen."""
    folder.mkdir()
    api = await connect(cluster.kubeconfig(folder))
    ring = KeyRing(folder / "keys")
    shared = SharedKeys(api, ring, folder / "keys", clock, "wakegate", ["default"], rotation=1000.0, settle=60.0)
    try:
        await shared.open()
        yield shared, ring
    finally:
        await api.aclose()


@dataclass
class Two:
    """Two gateways of one cluster, in virtual time."""

    cluster: Cluster
    clock: ManualClock
    a: SharedKeys
    ring: KeyRing
    b: SharedKeys
    other: KeyRing


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    clock = ManualClock()
    async with (
        make_cluster(hollow=True).running() as cluster,
        sharing(cluster, tmp_path / "a", clock) as (a, ring),
        sharing(cluster, tmp_path / "b", clock) as (b, other),
    ):
        enforce_roles(cluster)
        yield Two(cluster, clock, a, ring, b, other)


async def test_new_key_is_published_before_it_signs_and_the_old_one_is_dropped_last(two: Two) -> None:
    """Two gateways through the life of a key: one of them makes the next, both wait, sign with it, and drop the old."""
    cluster, clock, ring, other = two.cluster, two.clock, two.ring, two.other

    async def turns() -> list[bool]:
        return [await two.a.turn(), await two.b.turn()]

    first = ring.signer.kid
    assert other.kids == ring.kids == [first]
    clock.advance(939.0)  # the first was made as old as its settling
    assert [*await turns(), len(private_keys(cluster))] == [False, False, 1]
    clock.advance(1.0)
    assert await turns() == [False, False]
    assert other.kids == ring.kids
    assert len(ring.kids) == 2
    assert ring.signer.kid == other.signer.kid == first
    clock.advance(59.0)
    assert await turns() == [False, False]
    clock.advance(1.0)
    assert await turns() == [True, True]
    assert ring.signer.kid == other.signer.kid == ring.kids[-1] != first
    assert shown(cluster) == set(ring.kids)
    two.a._rotation = two.b._rotation = 0.0
    clock.advance(RETIRE_S)
    await turns()
    assert ring.kids == other.kids == [ring.signer.kid]
    assert (shown(cluster), len(private_keys(cluster))) == ({ring.signer.kid}, 1)


async def test_gateways_that_rotate_at_once_make_one_key(two: Two) -> None:
    """Whoever writes the Secret first has made it; the other takes that."""
    two.clock.advance(940.0)
    two.cluster.api.latency = 0.01
    await asyncio.gather(two.a.turn(), two.b.turn())
    await two.a.turn()
    assert two.cluster.api.conflicts
    assert two.ring.kids == two.other.kids
    assert len(two.ring.kids) == 2


async def test_gateway_with_an_older_secret_does_not_unpublish_a_key(two: Two) -> None:
    """It would publish the set of an older Secret: the newer one stays."""
    behind = await two.a._share(two.ring.reload)
    two.clock.advance(940.0)
    await two.b.turn()
    newer = shown(two.cluster)
    assert len(newer) == 2
    await two.a._publish(behind)
    assert shown(two.cluster) == newer

"""Which runtimes are served by the images of their pods, over the simulator and a registry on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.core.errors import SettingsError
from gateway.core.model import Kind, Runtime, RuntimeKey
from gateway.core.settings import Settings
from gateway.doctor.images import check_images
from gateway.provider.kubernetes import admission
from gateway.provider.kubernetes.admission import Verdict, images_of
from gateway.provider.kubernetes.engine import Cluster as Joined
from gateway.provider.kubernetes.status import acceptance
from tests.support.kube.clusters import make_cluster
from tests.support.kube.joined import joined
from tests.support.kube.opened import custom
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL
from tests.support.registry import Registry, public_pem, serving
from tests.support.waiting import eventually

SIGNER = ec.generate_private_key(ec.SECP256R1())
KEY, AGENT = RuntimeKey("default", "one"), RuntimeKey("default", "one", Kind.AGENT_RUNTIME)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving() as made:
        yield made


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once, in place of seconds."""
    monkeypatch.setattr(admission, "_LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(admission, "_FIRST_BACKOFF_S", 0.02)


def interpreter(image: str = "") -> Any:
    return {"warmPoolSize": 1, "template": {"image": image} if image else {}}


def agent(**pod: Any) -> Any:
    return {
        "warmPoolSize": 1,
        "targetPort": [{"port": 80, "protocol": "HTTP"}],
        "podTemplate": {"spec": {"containers": [{"name": "agent", "image": "ghcr.io/acme/agent:1"}], **pod}},
    }


def signed(folder: Path, registry: Registry) -> dict[str, Any]:
    (folder / "cosign.pub").write_bytes(public_pem(SIGNER))
    return {"image_registries": registry.name, "image_keys": (folder / "cosign.pub",)}


def conditions(cluster: Cluster, name: str, plural: str = "codeinterpreters") -> dict[str, tuple[str, str, str]]:
    status = cluster.objects.get(BY_PLURAL[plural], "default", name).get("status") or {}
    return {each["type"]: (each["status"], each["reason"], each["message"]) for each in status.get("conditions", ())}


def change(cluster: Cluster, name: str, spec: Any) -> None:
    cluster.objects.update(BY_PLURAL["codeinterpreters"], "default", name, lambda present: {**present, "spec": spec})


def images(cluster: Cluster) -> set[str]:
    """Those of all pods that there are."""
    return {image for pod in cluster.pods() for image in images_of(pod["spec"])}


async def said(one: Joined, cluster: Cluster, name: str, plural: str = "codeinterpreters") -> Any:
    await one._write_statuses(one.provider)
    return conditions(cluster, name, plural)


async def test_refused_images_start_nothing_and_stand_in_the_status(tmp_path: Path) -> None:
    """In any container of the pod that would be made; what is allowed beside them is served."""
    async with make_cluster(hollow=True).running() as cluster:
        custom(cluster, "good", interpreter("ghcr.io/acme/picod:1"))
        custom(cluster, "bad", interpreter("evil.example/picod:1"))
        custom(cluster, "bare", interpreter("picod"))
        custom(cluster, "default", interpreter())
        first = agent(initContainers=[{"name": "first", "image": "ghcr.io/acme-evil/init:1"}])
        custom(cluster, "init", first, Kind.AGENT_RUNTIME)
        custom(cluster, "fine", agent(), Kind.AGENT_RUNTIME)
        rules: dict[str, Any] = {"image_registries": "ghcr.io/acme", "picod_image": "wakegate/picod:1"}
        async with joined(cluster, tmp_path, **rules) as one:
            await eventually(lambda: len(cluster.pods()) == 2, "the allowed ones have their pods")
            assert {runtime.key.name for runtime in one.catalog.all()} == {"good", "fine"}
            assert images(cluster) == {"ghcr.io/acme/picod:1", "ghcr.io/acme/agent:1"}
            found = await said(one, cluster, "bad")
            reason = "image evil.example/picod:1: is in evil.example/picod; --image-registries allows ghcr.io/acme"
            assert found["Accepted"] == found["Ready"] == ("False", "ImageRefused", reason)
            for name, image in (("bare", "docker.io/library/picod"), ("default", "docker.io/wakegate/picod")):
                assert f"is in {image};" in conditions(cluster, name)["Accepted"][2]
            assert "ghcr.io/acme-evil/init" in conditions(cluster, "init", "agentruntimes")["Accepted"][2]
            assert conditions(cluster, "good")["Accepted"][:2] == ("True", "Accepted")


async def test_changed_runtime_with_a_refused_image_leaves_the_earlier_one(tmp_path: Path) -> None:
    """Until it is put right; one that is deleted is gone."""
    async with make_cluster(hollow=True).running() as cluster:
        custom(cluster, "one", interpreter("ghcr.io/acme/picod:1"))
        async with joined(cluster, tmp_path, image_registries="ghcr.io/acme") as one:
            change(cluster, "one", interpreter("evil.example/picod:1"))
            await eventually(lambda: (one.catalog.admission.of(KEY) or Verdict(Runtime(KEY))).refused, "it is refused")
            assert (await said(one, cluster, "one"))["Accepted"][1] == "ImageRefused"
            custom(cluster, "two", interpreter("ghcr.io/acme/other:1"))
            await eventually(lambda: len(one.catalog.all()) == 2, "a later change is served")
            assert one.catalog.all()[0].image == "ghcr.io/acme/picod:1"
            assert len(cluster.objects.all(BY_PLURAL["deployments"], "default")) == 2
            assert images(cluster) <= {"ghcr.io/acme/picod:1", "ghcr.io/acme/other:1"}
            change(cluster, "one", interpreter("ghcr.io/acme/picod:2"))
            await eventually(lambda: "ghcr.io/acme/picod:2" in images(cluster), "it is served")
            cluster.delete("codeinterpreters", "default", "one")
            await eventually(lambda: one.catalog.get(KEY) is None, "it is not served")


async def test_rule_that_comes_later_ends_the_pool_of_what_it_refuses(tmp_path: Path) -> None:
    """A gateway with the rule finds the Deployment of one without."""
    async with make_cluster(hollow=True).running() as cluster:
        custom(cluster, "one", interpreter("evil.example/picod:1"))
        async with joined(cluster, tmp_path / "a"):
            await eventually(lambda: len(cluster.pods()) == 1, "without a rule it is served")
        async with joined(cluster, tmp_path / "b", image_registries="ghcr.io"):
            await eventually(lambda: not cluster.objects.all(BY_PLURAL["deployments"], "default"), "its pool goes")
            await eventually(lambda: not cluster.pods(), "its warm pods go")


async def test_signed_image_runs_by_the_digest_that_was_signed(tmp_path: Path, registry: Registry) -> None:
    """Of the manifest, of an agent's containers, and of runtimes that name none; though the tag moves on."""
    async with make_cluster(hollow=True).running() as cluster:
        digest = registry.push("picod", "1", b"first")
        registry.sign("picod", digest, SIGNER)
        name = f"{registry.name}/picod:1"
        custom(cluster, "named", interpreter(name))
        custom(cluster, "default", interpreter())
        both = agent(containers=[{"name": "a", "image": name}], initContainers=[{"name": "b", "image": name}])
        custom(cluster, "one", both, Kind.AGENT_RUNTIME)
        async with joined(cluster, tmp_path, picod_image=name, **signed(tmp_path, registry)) as one:
            registry.push("picod", "1", b"another, which nobody signed")
            await eventually(lambda: len(cluster.pods()) == 3, "all have their pods")
            assert images(cluster) == {f"{name}@{digest}"}
            assert one.catalog.get(AGENT) is not None


async def test_unsigned_image_is_served_once_it_is_signed(tmp_path: Path, registry: Registry) -> None:
    """The gateway retries by itself; while the registry is unreachable it reports the image as unverified."""
    async with make_cluster(hollow=True).running() as cluster:
        digest = registry.push("picod", "1")
        custom(cluster, "one", interpreter(f"{registry.name}/picod:1"))
        async with joined(cluster, tmp_path, **signed(tmp_path, registry)) as one:
            found = await said(one, cluster, "one")
            assert found["Accepted"][:2] == found["Ready"][:2] == ("False", "ImageRefused")
            assert one.catalog.get(KEY) is None
            assert not cluster.pods()
            registry.away = True
            verdict = one.catalog.admission.of(KEY)
            assert verdict is not None
            await eventually(lambda: verdict.unverified, "the registry is away")
            assert (await said(one, cluster, "one"))["Accepted"][:2] == ("Unknown", "ImageUnverified")
            registry.sign("picod", digest, SIGNER)
            registry.away = False
            await eventually(lambda: len(cluster.pods()) == 1, "it is served")
            assert (await said(one, cluster, "one"))["Accepted"][:2] == ("True", "Accepted")


async def test_runtime_from_a_file_with_a_refused_image_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    """As everything else that is wrong in a file does."""
    async with make_cluster(hollow=True).running() as cluster:
        files = [Runtime(KEY, image="evil.example/picod:1")]
        with pytest.raises(SettingsError, match=r"default/one: image evil\.example/picod:1: is in"):
            async with joined(cluster, tmp_path, files, image_registries="ghcr.io"):
                pass


def test_what_was_not_looked_at_yet_is_not_accepted() -> None:
    """Nor refused."""
    assert acceptance((), Verdict(Runtime(KEY)))[:2] == ("Unknown", "ImageUnverified")
    assert acceptance(("wrong",), Verdict(Runtime(KEY)))[:2] == ("False", "InvalidSpec")


async def test_doctor_says_what_the_rules_need(tmp_path: Path, registry: Registry) -> None:
    """No rules, rules that the sandboxes' own image breaks, a registry that is away, too few signatures."""

    async def lines(**settings: Any) -> str:
        return "\n".join([str(each) async for each in check_images(Settings(**settings))])

    assert "warn  images: of any registry are allowed" in await lines()
    assert "FAIL  images: --image-registries A B: " in await lines(image_registries="A B")
    rules = signed(tmp_path, registry)
    digest = registry.push("picod", "1")
    registry.sign("picod", digest, SIGNER)
    (tmp_path / "signatures").mkdir()
    found = await lines(**rules, picod_image=f"{registry.name}/picod:1", image_signatures=tmp_path / "signatures")
    assert f"ok    images: allowed: {registry.name}, signed" in found
    assert f"ok    --picod-image: {registry.name}/picod:1@{digest} is allowed" in found
    assert f"ok    registry {registry.name}: answers with status 200" in found
    assert "warn  signatures: 0 in" in found
    found = await lines(**rules, picod_image="wakegate/picod:1")
    assert "warn  --picod-image: image wakegate/picod:1: is in docker.io/wakegate/picod" in found
    registry.port, port = 1, registry.port
    assert f"warn  registry 127.0.0.1:{registry.port}: GET" in await lines(
        **rules | {"image_registries": registry.name}
    )
    registry.port = port

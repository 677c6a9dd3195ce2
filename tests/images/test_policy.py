"""The rules for images over a real registry on loopback, with signatures made as cosign makes them."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gateway.core.errors import SettingsError, UnavailableError
from gateway.core.settings import Settings
from gateway.images import registry as registry_module
from gateway.images.policy import ImagePolicy, ImageRefusedError, make_policy
from gateway.images.signature import Signed, read_key, verify
from tests.support.registry import LOGIN, PrivateKey, Registry, bundle, digest_of, layer, payload_of, public_pem
from tests.support.registry import serving as serve_registry
from tests.support.registry import sign as sign_payload

P256 = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serve_registry() as made:
        yield made


def policy_of(folder: Path, registry: Registry, *keys: PrivateKey, **settings: Any) -> ImagePolicy:
    files = []
    for index, key in enumerate(keys):
        files.append(folder / f"{index}.pub")
        files[-1].write_bytes(public_pem(key))
    return make_policy(Settings(image_registries=registry.name, image_keys=tuple(files), **settings))


def test_without_rules_any_name_is_taken() -> None:
    """Also one that is no name: the kubelet says so."""
    policy = make_policy(Settings())
    assert (policy.active, policy.problem("No Name")) == (False, "")


def test_names_are_refused_with_the_rule_that_refuses_them() -> None:
    """No registry is asked."""
    policy = make_policy(Settings(image_registries="ghcr.io/acme, python", image_digests=True))
    digest = "@sha256:" + "0" * 64
    assert policy.problem("ghcr.io/acme/tool" + digest) == ""
    assert policy.problem("python" + digest) == ""
    assert policy.problem("evil.example/tool" + digest) == (
        f"image evil.example/tool{digest}: is in evil.example/tool; --image-registries allows ghcr.io/acme,"
        " docker.io/library/python"
    )
    assert policy.problem("python:3") == (
        "image python:3: --image-digests asks for docker.io/library/python@sha256:..., as a tag may change"
    )
    assert policy.problem("UPPER/case").startswith("image 'UPPER/case': expected a name such as")


@pytest.mark.parametrize("key", [P256, ED25519, RSA], ids=["p256", "ed25519", "rsa"])
async def test_signed_image_is_taken_by_its_digest(key: PrivateKey, tmp_path: Path, registry: Registry) -> None:
    """What was verified is what runs: a tag is followed by the digest that it stood for."""
    digest = registry.push("acme/tool", "1")
    registry.sign("acme/tool", digest, OTHER, key)
    policy = policy_of(tmp_path, registry, key)
    assert await policy.verify(f"{registry.name}/acme/tool:1") == f"{registry.name}/acme/tool:1@{digest}"
    named = f"{registry.name}/acme/tool@{digest}"
    before = len(registry.asked)
    assert await policy.verify(named) == named
    assert len(registry.asked) == before  # by digest it is remembered


async def test_unsigned_images_are_refused_with_the_reason(tmp_path: Path, registry: Registry) -> None:
    """None, another's, one of another image, a damaged one, a document of another kind."""
    digest = registry.push("acme/tool", "1")
    name = f"{registry.name}/acme/tool:1"
    policy = policy_of(tmp_path, registry, P256)
    document = payload_of(digest)
    other = payload_of(digest_of(b"other"))
    registry.blobs |= {digest_of(each): each for each in (document, other)}
    wrong_kind = payload_of(digest, "atomic container signature")
    registry.blobs[digest_of(wrong_kind)] = wrong_kind
    good = sign_payload(P256, document)
    registry.blobs["sha256:" + "1" * 64] = document  # not what it is named by
    none = "it has no signature"
    for layers, reason in (
        ([], none),
        ("nonsense", none),
        ([5, {}, {"annotations": 1}, layer("md5:1", good), layer("sha256:" + "0" * 64, good)], none),
        ([layer("sha256:" + "1" * 64, good)], none),
        ([layer(digest_of(document), sign_payload(OTHER, document))], "a signature is by none of the keys"),
        ([layer(digest_of(document), "no base64!")], "a signature is no base64"),
        ([layer(digest_of(document), "A" * 4096)], "a signature is too long"),
        ([layer(digest_of(other), sign_payload(P256, other))], "a signature is of another image"),
        ([layer(digest_of(wrong_kind), sign_payload(P256, wrong_kind))], "a signature is of another image"),
    ):
        registry.attach("acme/tool", digest, layers)
        with pytest.raises(ImageRefusedError) as refused:
            await policy.verify(name)
        said = f"image {name}@{digest}: is not signed by a key of --image-keys: {reason}"
        assert str(refused.value) == said
    registry.attach("acme/tool", digest, [layer(digest_of(document), good)])
    await policy.verify(name)  # a refusal is not remembered: it may be signed later


async def test_image_that_is_not_there_is_refused(tmp_path: Path, registry: Registry) -> None:
    """The name says which."""
    with pytest.raises(ImageRefusedError, match=r"acme/none:1: .* does not have it"):
        await policy_of(tmp_path, registry, P256).verify(f"{registry.name}/acme/none:1")


async def test_registry_that_does_not_answer_refuses_nothing(tmp_path: Path, registry: Registry) -> None:
    """That is for a later attempt to say."""
    registry.away = True
    with pytest.raises(UnavailableError, match=r"acme/tool:1: GET .* status 503"):
        await policy_of(tmp_path, registry, P256).verify(f"{registry.name}/acme/tool:1")


async def test_tokens_are_got_as_registries_ask_for_them(tmp_path: Path, registry: Registry) -> None:
    """Anonymously, or with the credentials of a config.json; blobs may be elsewhere, without the token."""
    digest = registry.push("acme/tool", "1")
    registry.sign("acme/tool", digest, P256)
    registry.realm, registry.redirect_blobs = registry.url + "/token", f"http://localhost:{registry.port}/elsewhere/"
    name = f"{registry.name}/acme/tool:1"
    assert await policy_of(tmp_path, registry, P256).verify(name)
    registry.private = True
    with pytest.raises(UnavailableError, match="no token for acme/tool: status 401"):
        await policy_of(tmp_path, registry, P256).verify(name)
    config = tmp_path / "config.json"
    for entry in ({"auth": LOGIN}, {"username": "puller", "password": "secret"}):
        config.write_text(json.dumps({"auths": {registry.name: entry}}))
        assert await policy_of(tmp_path, registry, P256, image_credentials=config).verify(name)


@pytest.mark.parametrize(
    ("realm", "token"),
    [
        ("http://127.0.0.2.example/token", "t"),  # in the clear, elsewhere
        ("file:///etc/passwd", "t"),
        ("http://user:pw@127.0.0.1/token", "t"),
        ("", "t"),
        ("OWN", 5),
        ("OWN", "a\nb"),
        ("OWN", "x" * 40000),
        ("OWN", "x" * 100000),
    ],
)
async def test_hostile_registries_lead_nowhere(realm: str, token: Any, tmp_path: Path, registry: Registry) -> None:
    """Where tokens are had, and what they are, the registry says."""
    digest = registry.push("acme/tool", "1")
    registry.sign("acme/tool", digest, P256)
    registry.realm, registry.token = realm.replace("OWN", registry.url + "/token") or "none", token
    with pytest.raises(UnavailableError):
        await policy_of(tmp_path, registry, P256).verify(f"{registry.name}/acme/tool:1")
    registry.realm = ""
    registry.redirect_blobs = "http://blobs.example/"
    with pytest.raises(UnavailableError, match="not over TLS"):
        await policy_of(tmp_path, registry, P256).verify(f"{registry.name}/acme/tool:1")
    registry.redirect_blobs = f"{registry.url}/v2/acme/tool/blobs/"
    with pytest.raises(UnavailableError, match="redirects"):
        await policy_of(tmp_path, registry, P256).verify(f"{registry.name}/acme/tool:1")


async def test_answers_are_bounded(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """In size, and in the number of signatures that are looked at."""
    digest = registry.push("acme/tool", "1")
    document = payload_of(digest)
    registry.blobs[digest_of(document)] = document
    bad, good = sign_payload(OTHER, document), sign_payload(P256, document)
    registry.attach("acme/tool", digest, [layer(digest_of(document), each) for each in [bad] * 32 + [good]])
    name = f"{registry.name}/acme/tool:1"
    with pytest.raises(ImageRefusedError):
        await policy_of(tmp_path, registry, P256).verify(name)
    assert sum("/blobs/" in each for each in registry.asked) == 32
    monkeypatch.setattr(registry_module, "MAX_MANIFEST_BYTES", 64)
    registry.push("acme/tool", "1", b"x" * 65)
    with pytest.raises(UnavailableError, match="longer than 64 bytes"):
        await policy_of(tmp_path, registry, P256).verify(name)


async def test_signatures_from_files_need_no_registry(tmp_path: Path, registry: Registry) -> None:
    """As `cosign download signature` prints them; what is no signature is left out."""
    digest = digest_of(b"image")
    folder = tmp_path / "signatures"
    (folder / "..data").mkdir(parents=True)
    policy = policy_of(tmp_path, registry, P256, image_signatures=folder)
    name = f"{registry.name}/acme/tool@{digest}"
    (folder / "a.json").write_text(f'nonsense\n[]\n{{"Payload": 5}}\n{bundle(OTHER, digest)}\n')
    with pytest.raises(ImageRefusedError):
        await policy.verify(name)
    (folder / "b.json").write_text(bundle(P256, digest_of(b"another")) + "\n" + bundle(P256, digest))
    registry.asked.clear()
    assert await policy.verify(name) == name
    assert registry.asked == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"image_registries": "ghcr.io/Acme"}, "--image-registries ghcr.io/Acme: expected a name such as"),
        ({"image_keys": (Path("/none"),)}, "--image-keys /none: cannot be read: No such file"),
        ({"image_keys": (Path("/none"),)}, "--image-keys: needs --image-registries"),
        ({"image_signatures": Path("/none")}, "--image-signatures: needs --image-keys"),
    ],
)
def test_wrong_settings_are_named(settings: Any, problem: str) -> None:
    """All at once, at the start."""
    with pytest.raises(SettingsError) as error:
        make_policy(Settings(**settings))
    assert any(each.startswith(problem) for each in error.value.problems), error.value.problems


def test_only_safe_public_keys_are_taken(tmp_path: Path) -> None:
    """No private ones, no short ones, no other curves."""
    file = tmp_path / "key"
    for pem in (
        b"", b"nonsense", public_pem(ec.generate_private_key(ec.SECP384R1())),
        public_pem(rsa.generate_private_key(65537, 1024)),
        base64.b64encode(b"x"),
    ):  # fmt: skip
        file.write_bytes(pem)
        with pytest.raises(ValueError, match="expected a"):
            read_key(file)


def test_signed_nonsense_is_no_signature(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the key's owner signed it."""
    key = P256.public_key()
    for payload in (b"", b"[]", b"{}", b'{"critical": 5}', b"[" * 5000, b'{"critical": {"image": {}, "type": 1}}'):
        with caplog.at_level(logging.DEBUG):
            assert verify("sha256:x", Signed(payload, sign_payload(P256, payload)), [key]) != ""

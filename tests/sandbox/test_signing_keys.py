"""The gateway's signing keys on disk, and tokens that picod's own verifier reads."""

from __future__ import annotations

import stat
from pathlib import Path

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gateway.core.errors import SettingsError
from gateway.core.model import SandboxId, SessionId
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from gateway.testing import ManualClock


def ring(folder: Path, algorithm: str = "EdDSA") -> KeyRing:
    made = KeyRing(folder / "keys", algorithm)
    made.open()
    return made


def published(keys: KeyRing) -> dict[str, dict[str, str]]:
    """The keys in the published key set, by key id."""
    return {key["kid"]: key for key in orjson.loads((keys.public_dir / "jwks.json").read_bytes())["keys"]}


@pytest.mark.parametrize(("algorithm", "kind"), [("EdDSA", "OKP"), ("RS256", "RSA")])
def test_token_is_verified_with_the_published_key(tmp_path: Path, algorithm: str, kind: str) -> None:
    """By a JWT library that knows the key set only: audience, subject, times and key id are in it."""
    keys, clock = ring(tmp_path, algorithm), ManualClock()
    token, renew_at = TokenIssuer(keys, clock).issue(SandboxId("sb-1"), SessionId("s-1"))
    kid = jwt.get_unverified_header(token)["kid"]
    jwk = published(keys)[kid]
    assert (jwk["kty"], jwk["alg"], jwk["use"]) == (kind, algorithm, "sig")
    claims = jwt.decode(
        token,
        jwt.PyJWK(jwk),
        [algorithm],
        audience="sb-1",
        issuer="wakegate",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert (claims["sub"], claims["aud"], claims["jti"] != "") == ("s-1", "sb-1", True)
    assert (claims["iat"], claims["exp"]) == (int(clock.now()), int(clock.now()) + 300)
    assert renew_at == clock.now() + 240
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(token, jwt.PyJWK(jwk), [algorithm], audience="sb-2", options={"verify_exp": False})


def test_private_key_is_its_owners_only(tmp_path: Path) -> None:
    """Mode 0600 in a folder of mode 0700; the public folder holds nothing private."""
    keys = ring(tmp_path)
    private = tmp_path / "keys" / "private"
    [file] = private.iterdir()
    assert (stat.S_IMODE(private.stat().st_mode), stat.S_IMODE(file.stat().st_mode)) == (0o700, 0o600)
    assert [path.name for path in keys.public_dir.iterdir()] == ["jwks.json"]
    assert all("d" not in key for key in published(keys).values())


def test_key_survives_a_restart(tmp_path: Path) -> None:
    """Tokens of before stay good."""
    assert ring(tmp_path).signer.kid == ring(tmp_path).signer.kid


def test_rotation_keeps_the_keys_whose_tokens_may_live(tmp_path: Path) -> None:
    """The newest signs, the two before it are still published, older ones are gone from disk too."""
    keys = ring(tmp_path)
    kids = [keys.signer.kid]
    for _ in range(4):
        keys.rotate()
        kids.append(keys.signer.kid)
    assert len(set(kids)) == 5
    assert set(published(keys)) == set(kids[-3:])
    assert len(list((tmp_path / "keys" / "private").iterdir())) == 3
    again = ring(tmp_path)
    assert again.signer.kid == kids[-1]
    assert published(again) == published(keys)


def test_other_algorithm_gets_a_key_of_its_own(tmp_path: Path) -> None:
    """And the old key stays published."""
    before = ring(tmp_path).signer
    after = ring(tmp_path, "RS256")
    assert (before.algorithm, after.signer.algorithm) == ("EdDSA", "RS256")
    assert set(published(after)) == {before.kid, after.signer.kid}


def test_rsa_key_of_the_operators_own_is_published_whole(tmp_path: Path) -> None:
    """Of any size, under any file name, and rotation still finds the next serial."""
    private = tmp_path / "keys" / "private"
    private.mkdir(parents=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    (private / "my-own.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    keys = ring(tmp_path, "RS256")
    assert keys.signer.kid == "my-own"
    token, _ = TokenIssuer(keys, ManualClock()).issue(SandboxId("sb"), SessionId("s"))
    jwt.decode(token, jwt.PyJWK(published(keys)["my-own"]), ["RS256"], audience="sb", options={"verify_exp": False})
    keys.rotate()


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\0\xff", "ec"]
)
def test_unreadable_key_is_named(tmp_path: Path, content: bytes | str) -> None:
    """With its file and what to do; no new key is made over it."""
    private = tmp_path / "keys" / "private"
    private.mkdir(parents=True)
    if isinstance(content, str):
        key = ec.generate_private_key(ec.SECP256R1())
        content = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    (private / "000001-x.pem").write_bytes(content)
    with pytest.raises(SettingsError, match=r"000001-x\.pem: "):
        ring(tmp_path)
    assert [path.name for path in private.iterdir()] == ["000001-x.pem"]


def test_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A file in its place is a problem in a sentence."""
    (tmp_path / "keys").write_text("x")
    with pytest.raises(SettingsError, match="keys"):
        ring(tmp_path)


def test_keys_that_change_in_the_folder_are_taken_up(tmp_path: Path) -> None:
    """A key that was put there signs and is published; a folder that was emptied, or holds rubbish, changes nothing."""
    keys, other = ring(tmp_path), KeyRing(tmp_path / "keys")
    first = keys.signer.kid
    other.open()
    other.rotate()
    keys.turn(0.0, 0.0)
    assert (keys.signer.kid, set(published(keys))) == (other.signer.kid, {first, other.signer.kid})
    before = published(keys)
    rubbish = tmp_path / "keys" / "private" / "000009-x.pem"
    rubbish.write_text("rubbish")
    with pytest.raises(SettingsError, match=r"000009-x\.pem"):
        keys.turn(0.0, 0.0)
    for file in (tmp_path / "keys" / "private").iterdir():
        file.unlink()
    with pytest.raises(SettingsError, match="no signing key"):
        keys.turn(0.0, 0.0)
    assert (keys.signer.kid, published(keys)) == (other.signer.kid, before)


def test_key_is_followed_by_the_next_at_its_age(tmp_path: Path) -> None:
    """Not before, and never with a rotation of 0."""
    keys = ring(tmp_path)
    born = (tmp_path / "keys" / "private" / f"{keys.signer.kid}.pem").stat().st_mtime
    for age, rotation, count in ((99.0, 100.0, 1), (1e9, 0.0, 1), (100.0, 100.0, 2)):
        keys.turn(born + age, rotation)
        assert len(keys.kids) == count
    assert keys.signer.kid == keys.kids[-1]


def test_new_key_signs_once_it_could_be_seen_long_enough(tmp_path: Path) -> None:
    """Until then the one before does; when that is gone, the one that is seen longest."""
    keys = ring(tmp_path)
    old = keys.signer.kid
    keys.advance(100.0, {old: 0.0}, 60.0)
    keys.rotate()
    new = keys.kids[-1]
    since = {old: 0.0, new: 100.0}
    assert [keys.advance(now, since, 60.0) for now in (100.0, 159.0)] == [False, False]
    assert keys.signer.kid == old
    assert keys.advance(160.0, since, 60.0)
    assert keys.signer.kid == new
    keys.rotate()
    keys.drop([old, new])
    assert keys.advance(161.0, since, 60.0)
    assert set(published(keys)) == {keys.signer.kid}

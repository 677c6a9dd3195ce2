"""The gateway's signing keys. The private key never leaves its folder; public keys go to sandboxes as a key set.

    STATE/keys/private/<kid>.pem   0600, newest by name is the one that signs, unless `advance` says otherwise
    STATE/keys/public/jwks.json    every public key whose tokens may still be alive

The folder may change under a running gateway. Sandboxes see the `public` folder only.
Source of the key set's form: RFC 7517, RFC 8037 (OKP), RFC 7638 (thumbprint).
"""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from gateway.core.errors import SettingsError
from picod import wire

PrivateKey = ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_KEPT_KEYS = 3


@dataclass(frozen=True)
class SigningKey:
    """One private key and how it is named in tokens."""

    kid: str
    algorithm: str
    private: PrivateKey

    def sign(self, *, audience: str, subject: str, issued_at: float, lifetime: float) -> str:
        """A token for one sandbox (`audience`) on behalf of one session (`subject`). Times in epoch seconds."""
        claims = {
            "iss": wire.ISSUER,
            "aud": audience,
            "sub": subject,
            "iat": int(issued_at),
            "exp": int(issued_at + lifetime),
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self.private, self.algorithm, headers={"kid": self.kid})


class KeyRing:
    """The keys in a folder; made on first use, rotated on demand."""

    def __init__(self, folder: Path, algorithm: str = "EdDSA") -> None:
        self._private = folder / "private"
        self.public_dir = folder / "public"
        self._algorithm = algorithm
        self._keys: list[SigningKey] = []
        self._chosen = ""  # the kid that signs; "": the newest

    def open(self) -> None:
        """Read the keys, make the first, publish the key set. Raises SettingsError for an unusable key or folder."""
        for folder, mode in ((self._private, 0o700), (self.public_dir, 0o755)):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=mode)
            except OSError as error:
                raise SettingsError([f"{folder}: cannot be made for the signing keys: {error.strerror}"]) from error
        self._keys = [self._read(path) for path in sorted(self._private.glob("*.pem"))]
        if not self._keys or self._keys[-1].algorithm != self._algorithm:
            self.rotate()
        self._publish()

    @property
    def signer(self) -> SigningKey:
        """The key that signs now."""
        return next((key for key in self._keys if key.kid == self._chosen), self._keys[-1])

    @property
    def kids(self) -> list[str]:
        """All keys' names, in their order."""
        return [key.kid for key in self._keys]

    def reload(self) -> bool:
        """Read the folder again; whether its keys differ. Raises SettingsError for one that is unusable or empty, and
        then everything stays as it was."""
        found = [self._read(path) for path in sorted(self._private.glob("*.pem"))]
        if not found:
            raise SettingsError([f"{self._private}: holds no signing key any more; the known ones go on"])
        if [_identity(key) for key in found] == [_identity(key) for key in self._keys]:
            return False
        self._keys = found
        self._publish()
        return True

    def advance(self, now: float, since: Mapping[str, float], settle: float) -> bool:
        """Choose who signs: of the keys that sandboxes could see for `settle` seconds the one that came last. Whether
        that is another one than before.

        `since`: by kid, epoch seconds from which sandboxes could see it. None that long: the one that they see longest.
        """
        # RS256 was asked for, if it was, because a foreign picod reads nothing else.
        usable = [key for key in self._keys if self._algorithm in ("EdDSA", key.algorithm)] or self._keys
        ages = sorted(((since.get(key.kid, now), key.kid) for key in usable), reverse=True)
        settled = [kid for at, kid in ages if at + settle <= now]
        before, self._chosen = self._chosen or self.signer.kid, settled[0] if settled else ages[-1][1]
        return self._chosen != before

    def turn(self, now: float, rotation: float) -> None:
        """For a folder that nobody shares: take up what changed in it, and make the next key when the newest is
        `rotation` seconds old (0: never). Raises SettingsError."""
        self.reload()
        newest = self._private / f"{self._keys[-1].kid}.pem"
        if rotation and now - newest.stat().st_mtime >= rotation:
            self.rotate()

    def drop(self, kids: Collection[str]) -> None:
        """Delete keys; their tokens are worth nothing from now on."""
        for kid in kids:
            (self._private / f"{kid}.pem").unlink(missing_ok=True)
        self.reload()

    def rotate(self) -> None:
        """Make a new signing key. Older ones stay in the key set while their tokens may be alive."""
        key: PrivateKey
        if self._algorithm == "EdDSA":
            key = ed25519.Ed25519PrivateKey.generate()
        else:
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        serial = 1 + max((int(path.stem.split("-")[0]) for path in self._private.glob("[0-9]*-*.pem")), default=0)
        path = self._private / f"{serial:06d}-{_thumbprint(key)[:16]}.pem"
        _write_atomically(path, pem, 0o600)
        self._keys.append(self._read(path))
        for old in sorted(self._private.glob("*.pem"))[:-_KEPT_KEYS]:
            old.unlink()
        self._keys = self._keys[-_KEPT_KEYS:]
        self._publish()

    def _publish(self) -> None:
        keys = [{**_public_jwk(key.private), "kid": key.kid, "alg": key.algorithm, "use": "sig"} for key in self._keys]
        _write_atomically(self.public_dir / "jwks.json", orjson.dumps({"keys": keys}), 0o644)

    def _read(self, path: Path) -> SigningKey:
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(
                [f"{path}: is not a readable private key ({error}); move it away to have a new one made"]
            ) from error
        if not isinstance(key, ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey):
            raise SettingsError([f"{path}: expected an Ed25519 or RSA key"])
        return SigningKey(path.stem, "EdDSA" if isinstance(key, ed25519.Ed25519PrivateKey) else "RS256", key)


def _identity(key: SigningKey) -> tuple[str, str]:
    return key.kid, _thumbprint(key.private)


def _public_jwk(key: PrivateKey) -> dict[str, Any]:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(raw)}
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "n": _base64url(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")),
        "e": _base64url(numbers.e.to_bytes((numbers.e.bit_length() + 7) // 8, "big")),
    }


def _thumbprint(key: PrivateKey) -> str:
    return hashlib.sha256(orjson.dumps(_public_jwk(key), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _write_atomically(path: Path, data: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)

"""The gateway's signing keys. Private keys never leave their folder; public keys go to sandboxes as a key set.

    STATE/keys/private/<kid>.pem   0600; the newest by name signs, unless `advance` selected another
    STATE/keys/public/jwks.json    every public key whose tokens may still be valid

The folder may change while the gateway runs, since replicas share keys. Sandboxes see the `public` folder only.
Sources of the key set's format: RFC 7517, RFC 8037 (OKP), RFC 7638 (thumbprint).
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
_KEPT_KEYS = 3  # tokens live for five minutes, so only two rotations within that time would need an older key


@dataclass(frozen=True)
class SigningKey:
    """A private key, its algorithm, and the key id that tokens carry."""

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
    """The signing keys in a folder: created on first use, rotated on demand."""

    def __init__(self, folder: Path, algorithm: str = "EdDSA") -> None:
        self._private = folder / "private"
        self.public_dir = folder / "public"
        self._algorithm = algorithm
        self._keys: list[SigningKey] = []
        self._selected = ""  # the kid that signs; "": the newest

    def open(self) -> None:
        """Read the keys, create the first, publish the key set. Raises SettingsError for an unusable key or folder."""
        for folder, mode in ((self._private, 0o700), (self.public_dir, 0o755)):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=mode)
            except OSError as error:
                raise SettingsError([f"{folder}: cannot be created for the signing keys: {error.strerror}"]) from error
        self._keys = [self._read(path) for path in sorted(self._private.glob("*.pem"))]
        if not self._keys or self._keys[-1].algorithm != self._algorithm:
            self.rotate()
        self._publish()

    @property
    def signer(self) -> SigningKey:
        """The key that signs new tokens: the one that `advance` selected, else the newest."""
        return next((key for key in self._keys if key.kid == self._selected), self._keys[-1])

    def find(self, kid: str) -> SigningKey | None:
        """The key with this id, of those whose tokens may still be valid."""
        return next((key for key in self._keys if key.kid == kid), None)

    @property
    def kids(self) -> list[str]:
        """The ids of all keys, oldest first."""
        return [key.kid for key in self._keys]

    def reload(self) -> bool:
        """Read the folder again. Returns whether its keys changed.

        Raises SettingsError for an unusable key or an empty folder, and keeps the keys in memory then.
        """
        found = [self._read(path) for path in sorted(self._private.glob("*.pem"))]
        if not found:
            raise SettingsError([f"{self._private}: contains no signing key; the keys in memory stay in use"])
        if [_identity(key) for key in found] == [_identity(key) for key in self._keys]:
            return False
        self._keys = found
        self._publish()
        return True

    def advance(self, now: float, since: Mapping[str, float], settle: float) -> bool:
        """Select the key that signs: the newest that sandboxes have seen for `settle` seconds. True if it changed.

        `since`: by kid, epoch seconds from which sandboxes could see the key. If none has been visible that long, the
        one that has been visible longest signs. Example: settle 180, keys A since 0 and B since 100: A signs at 200,
        B at 280.
        """
        # With RS256 only RSA keys count: it is set because the executors verify nothing else.
        usable = [key for key in self._keys if self._algorithm in ("EdDSA", key.algorithm)] or self._keys
        ages = sorted(((since.get(key.kid, now), key.kid) for key in usable), reverse=True)
        settled = [kid for at, kid in ages if at + settle <= now]
        before, self._selected = self._selected or self.signer.kid, settled[0] if settled else ages[-1][1]
        return self._selected != before

    def turn(self, now: float, rotation: float) -> None:
        """Reload the folder, and rotate when the newest key is `rotation` seconds old (0: never).

        For a folder that no other gateway shares. Raises SettingsError.
        """
        self.reload()
        newest = self._private / f"{self._keys[-1].kid}.pem"
        if rotation and now - newest.stat().st_mtime >= rotation:
            self.rotate()

    def drop(self, kids: Collection[str]) -> None:
        """Delete keys from the folder and the key set, which invalidates their tokens."""
        for kid in kids:
            (self._private / f"{kid}.pem").unlink(missing_ok=True)
        self.reload()

    def rotate(self) -> None:
        """Create a signing key. Older ones stay in the key set, up to three keys, while their tokens may be valid."""
        key: PrivateKey
        if self._algorithm == "EdDSA":
            key = ed25519.Ed25519PrivateKey.generate()
        else:
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        # Names sort by age: the serial comes first, and the thumbprint keeps two gateways' keys of one serial apart.
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
                [f"{path}: is not a readable private key ({error}); move it away, and a new one is created"]
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
    # Readers (picod, other gateways) see the old file or the new one. The mode is set before any content is written.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)

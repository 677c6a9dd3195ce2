"""Authentication: requests need a JWT that the gateway signed for this very sandbox.

A token is verified once (EdDSA or RS256, chosen by the key and not by the token) and then remembered until it
expires, so a request on a live session costs a dictionary look-up and no signature.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from picod.http.request import Request, RequestError
from picod.wire import ALGORITHMS, ISSUER, LEEWAY_S, REFUSED_HEADER

if TYPE_CHECKING:
    from jwt.algorithms import AllowedPublicKeys

_MAX_REMEMBERED = 1024
_MAX_TOKEN_CHARS = 8192
_REREAD_INTERVAL_S = 1.0  # between two reads for an unknown kid, which anybody can send
_CHECK_INTERVAL_S = 1.0  # between two checks of the file: how long a withdrawn key may stay valid


class _Key(NamedTuple):
    algorithm: str
    public: AllowedPublicKeys


class KeySet:
    """The public keys in a JWKS file, by kid."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._keys: dict[str, _Key] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._read_at = self._checked_at = float("-inf")
        self.on_change: Callable[[], None] = lambda: None

    def get(self, kid: str, now: float) -> _Key | None:
        """The key with this id; for an unknown one the file is read again, if it changed or a second has passed."""
        key = self._keys.get(kid)
        if key is None and (now - self._read_at >= _REREAD_INTERVAL_S or self._stamp != _stamp_of(self._path)):
            self.read(now)
            key = self._keys.get(kid)
        return key

    def refresh(self, now: float) -> None:
        """Read the file again if it changed, which is checked once a second.

        By stat, not inotify: a mounted ConfigMap changes by a symlink above the file.
        """
        if now - self._checked_at >= _CHECK_INTERVAL_S:
            self._checked_at = now
            if self._stamp != _stamp_of(self._path):
                self.read(now)

    def read(self, now: float) -> None:
        """Replace the keys by those of the file. If it cannot be read, the keys stay and the reason is logged."""
        self._read_at = now
        stamp = _stamp_of(self._path)
        try:
            with open(self._path, "rb") as file:
                entries = json.load(file)["keys"]
            keys = {entry["kid"]: key for entry in entries if (key := _load_key(entry)) is not None}
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"picod: keys file {self._path} cannot be used: {error!r}", file=sys.stderr)  # noqa: T201
            return
        self._stamp = stamp
        self._keys = keys
        self.on_change()


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _load_key(entry: dict[str, Any]) -> _Key | None:
    """The key of a JWKS entry, or None for a kind that is not used here: a key set may hold keys for others."""
    from jwt.algorithms import OKPAlgorithm, RSAAlgorithm
    from jwt.exceptions import InvalidKeyError

    if not isinstance(entry.get("kid"), str) or "d" in entry:
        return None  # "d" marks a private key, which must not be where sandboxes can read it: it is not used
    public = {name: value for name, value in entry.items() if isinstance(value, str)}
    try:
        if entry.get("kty") == "OKP" and entry.get("crv") == "Ed25519":
            return _Key("EdDSA", OKPAlgorithm.from_jwk(public))  # type: ignore[arg-type]  # no "d": a public key
        if entry.get("kty") == "RSA":
            return _Key("RS256", RSAAlgorithm.from_jwk(public))  # type: ignore[arg-type]
    except (InvalidKeyError, ValueError):
        pass
    return None


class UnauthorizedError(RequestError):
    """401, marked as picod's own: an application behind a port answers 401 too."""

    headers = ((REFUSED_HEADER.encode(), b"token"),)

    def __init__(self, error: str, *, detail: str) -> None:
        super().__init__(401, error, detail=detail)


class Guard:
    """Checks the token of a request, and remembers valid ones until they expire."""

    def __init__(self, keys_file: str, audience: str) -> None:
        self._keys = KeySet(keys_file)
        self._keys.on_change = self._forget
        self._audience = audience
        self._good_until: dict[str, float] = {}

    def warm(self) -> None:
        """Load the JWT library (about 60 ms) and the keys, so that the first request does not wait. Blocking."""
        import jwt  # noqa: F401

        self._keys.read(time.monotonic())

    def check(self, request: Request) -> None:
        """Raises UnauthorizedError unless the request carries one valid token."""
        values = request.headers(b"authorization")
        if not values:
            raise UnauthorizedError("Missing Authorization header", detail="Request requires JWT authentication")
        scheme, _, token = values[0].decode("latin-1").partition(" ")
        if len(values) > 1 or scheme != "Bearer" or not token or " " in token:
            raise UnauthorizedError("Invalid Authorization header format", detail="Use Bearer <token>")
        # Two clocks: how old the keys are must not depend on changes of the wall clock, which `exp` is compared with.
        self._keys.refresh(time.monotonic())
        now = time.time()
        if now < self._good_until.get(token, 0.0):
            return
        self._good_until.pop(token, None)
        try:
            good_until = self._verify(token)
        except _RefusedError as refused:
            raise UnauthorizedError("Invalid token", detail=f"JWT verification failed: {refused}") from refused
        if len(self._good_until) >= _MAX_REMEMBERED:
            del self._good_until[next(iter(self._good_until))]  # the oldest
        self._good_until[token] = good_until

    def _forget(self) -> None:
        self._good_until.clear()  # a key may have been withdrawn

    def _verify(self, token: str) -> float:
        import jwt

        if len(token) > _MAX_TOKEN_CHARS:
            raise _RefusedError("token is malformed: token is too long")
        if token.count(".") != 2:
            raise _RefusedError("token is malformed: token contains an invalid number of segments")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise _RefusedError(f"token is malformed: {error}") from error
        # The header is not verified yet: it chooses the key, which decides the algorithm. Trusting `alg` would
        # accept a token that is signed by HMAC with an RSA public key as its secret.
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise _RefusedError(
                f"token is unverifiable: error while executing keyfunc: unexpected signing method: {algorithm}"
            )
        if not isinstance(kid, str):
            raise _RefusedError("token is unverifiable: it names no key (kid)")
        key = self._keys.get(kid, time.monotonic())
        if key is None:
            raise _RefusedError(f"token is unverifiable: unknown key (kid) {kid[:80]!r}")
        if key.algorithm != algorithm:
            raise _RefusedError(f"token is unverifiable: key {kid[:80]!r} is for {key.algorithm}, not {algorithm}")
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"], "strict_aud": True},
            )
            return float(claims["exp"]) + LEEWAY_S
        except jwt.PyJWTError as error:
            raise _RefusedError(_reason(error)) from error
        except (ValueError, TypeError, OverflowError) as error:  # "exp": 1e999 and the like
            raise _RefusedError(f"token has invalid claims: {error}") from error


class _RefusedError(Exception):
    """The token is not valid; the message says why."""


def _reason(error: Exception) -> str:
    """The message of AgentCube's executor for an error of PyJWT."""
    import jwt

    match error:
        case jwt.ExpiredSignatureError():
            return "token has invalid claims: token is expired"
        case jwt.ImmatureSignatureError():
            issued = "iat" in str(error)
            return "token has invalid claims: " + ("token used before issued" if issued else "token is not valid yet")
        case jwt.InvalidAudienceError():
            return "token has invalid claims: token has invalid audience"
        case jwt.InvalidIssuerError():
            return "token has invalid claims: token has invalid issuer"
        case jwt.MissingRequiredClaimError():
            return f"token has invalid claims: token is missing required claim: {error.claim} claim is required"
        case jwt.InvalidSignatureError():
            return "token signature is invalid: verification error"
        case jwt.DecodeError():
            return f"token is malformed: {error}"
        case _:
            return f"token has invalid claims: {error}"

"""Verifies tokens of OpenID Connect issuers, Kubernetes' service accounts among them, offline with the issuers' keys.

A token is a JWT (RFC 7519) with a signature of one of `oidc_keys.ALGORITHMS` (RFC 8725 3.1). Where its header names a
key by address or brings one along (jku, x5u, jwk, x5c), that is not looked at: the issuer decides which keys it has.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from gateway.core.clock import Clock
from gateway.core.errors import SettingsError, UnauthorizedError, UnavailableError
from gateway.core.identity import Identity
from gateway.core.settings import Settings
from gateway.identity.oidc_claims import ClaimMap, check_claims, identity_of, read_claim_map
from gateway.identity.oidc_keys import ALGORITHMS, Access, IssuerKeys, PublicKey, url_problem

POD_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where a pod finds its token and its cluster's CA
_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_CLUSTER_HOST = re.compile(r"kubernetes\.default\.svc(\..+)?")
_MAX_KID_CHARS = 256
_MAX_SHOWN = 128


class OIDCVerifier:
    """Knows the tokens of some issuers (a TokenVerifier)."""

    def __init__(
        self, issuers: Sequence[IssuerKeys], audiences: frozenset[str], mapping: ClaimMap, clock: Clock
    ) -> None:
        self._issuers = {each.issuer: each for each in issuers}
        self._audiences = audiences
        self._mapping = mapping
        self._clock = clock

    def __repr__(self) -> str:
        return f"<OIDCVerifier {list(self._issuers.values())}>"

    @property
    def issuers(self) -> Sequence[IssuerKeys]:
        """The keys of each issuer, for the doctor."""
        return tuple(self._issuers.values())

    def accepts(self, token: str) -> bool:
        """Whether it has the form of a signed JWT."""
        return _FORM.fullmatch(token) is not None

    async def verify(self, token: str) -> Identity:
        """Who a token stands for.

        Raises UnauthorizedError for one that is forged, malformed, expired or of others; PermissionDeniedError for one
        without a role or a tenant here; UnavailableError while its issuer's keys cannot be fetched.
        """
        header, claims = (_read(part) for part in token.split(".")[:2])
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise UnauthorizedError(
                f"the token's algorithm is {_shown(algorithm)}; expected one of {_names(ALGORITHMS)}"
            )
        if "crit" in header:  # RFC 7515 4.1.11: whoever does not understand an extension must refuse the token
            raise UnauthorizedError("the token's header has `crit`: extensions that this gateway does not know")
        if kid is not None and (not isinstance(kid, str) or len(kid) > _MAX_KID_CHARS):
            raise UnauthorizedError(f"the token's kid is not a text of at most {_MAX_KID_CHARS} letters")
        issuer = claims.get("iss")
        keys = self._issuers.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise UnauthorizedError(f"the token's issuer is {_shown(issuer)}; expected {_names(self._issuers)}")
        # Before the key is looked up: an unusable token must not cause a request to the issuer.
        expires_at = check_claims(claims, self._audiences, self._clock.now())
        key = await keys.require(kid, algorithm)
        # Without `kid` an old key may fit although the issuer has a new one; then the keys are fetched once more.
        if not _is_signed(token, key, algorithm) and (
            kid is not None or not _is_signed(token, await keys.require(kid, algorithm, other_than=key), algorithm)
        ):
            raise UnauthorizedError("the token's signature is not its issuer's")
        return identity_of(claims, keys.issuer, self._mapping, expires_at)

    async def refresh(self) -> None:
        """Fetch the keys of every issuer. Raises UnavailableError for those that are away, after all were tried."""
        failures = []
        for each in self._issuers.values():
            try:
                await each.refresh()
            except UnavailableError as error:
                failures.append(str(error))
        if failures:
            raise UnavailableError("; ".join(failures))


def trusted_issuers(settings: Settings) -> list[str]:
    """The URLs in --oidc-issuer."""
    return [each.strip() for each in settings.oidc_issuer.split(",") if each.strip()]


def make_verifier(settings: Settings, clock: Clock, pod: Path = POD_FOLDER) -> OIDCVerifier | None:
    """A verifier of --oidc-issuer, None without one. `pod`: the folder of the service account. Raises SettingsError."""
    issuers = trusted_issuers(settings)
    if not issuers:
        if settings.oidc_jwks_url or settings.oidc_role_map:
            raise SettingsError(["--oidc-issuer: is needed with --oidc-jwks-url and --oidc-role-map"])
        return None
    problems = [f"--oidc-issuer {each}: {problem}" for each in issuers if (problem := url_problem(each))]
    if settings.oidc_jwks_url:
        if problem := url_problem(settings.oidc_jwks_url):
            problems.append(f"--oidc-jwks-url {settings.oidc_jwks_url}: {problem}")
        if len(issuers) > 1:
            problems.append("--oidc-jwks-url: goes with one --oidc-issuer; several are found by discovery")
    audiences = frozenset(each.strip() for each in settings.oidc_audience.split(",") if each.strip())
    if not audiences:
        problems.append("--oidc-audience: is needed; without it tokens made for another service would be accepted")
    mapping: ClaimMap | None = None
    try:
        mapping = read_claim_map(
            settings.oidc_tenant_claim, settings.oidc_roles_claim, settings.oidc_user_claim, settings.oidc_role_map
        )
    except SettingsError as error:
        problems += error.problems
    if problems or mapping is None:
        raise SettingsError(problems)
    keys = [IssuerKeys(each, issuer_access(each, settings, pod), clock) for each in issuers]
    return OIDCVerifier(keys, audiences, mapping, clock)


def issuer_access(issuer: str, settings: Settings, pod: Path = POD_FOLDER) -> Access:
    """How an issuer's keys are fetched. Only the cluster's own API server receives the pod's token."""
    in_cluster = _CLUSTER_HOST.fullmatch(urlsplit(issuer).hostname or "") is not None
    ca, token = settings.oidc_ca, Path()
    if in_cluster and (pod / "token").exists():
        token = pod / "token"
        if ca == Path() and (pod / "ca.crt").exists():
            ca = pod / "ca.crt"
    return Access(settings.oidc_jwks_url, ca, token)


def _is_signed(token: str, key: PublicKey, algorithm: str) -> bool:
    # With this one algorithm, which fits the key's type: a list would let the token choose (RFC 8725 2.1).
    try:
        jwt.PyJWS().decode_complete(token, key.key, algorithms=[algorithm])
    except (jwt.PyJWTError, ValueError, TypeError):
        return False
    return True


def _read(part: str) -> Mapping[str, Any]:
    try:
        value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, binascii.Error, RecursionError):  # also UnicodeDecodeError
        value = None
    if not isinstance(value, dict):
        raise UnauthorizedError("the token is malformed: its header and its claims are JSON objects in base64url")
    return value


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _shown(value: object) -> str:
    return repr(value)[:_MAX_SHOWN]

"""The keys of an issuer of OpenID Connect: discovery, the key set (RFC 7517), when to ask for it again.

Keys are fetched at the start, each REFRESH_INTERVAL_S, and when a token names one that is not known: once in
_COOLDOWN_S, however many such tokens come, since any client can make them. Known keys stay while it is away.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from gateway.core.addresses import is_loopback
from gateway.core.clock import Clock
from gateway.core.errors import UnauthorizedError, UnavailableError
from gateway.core.read_file import read_file

logger = logging.getLogger(__name__)

# Key sets are this first type (RFC 7517, section 8.5), and Kubernetes' API server answers 406 to who does not name it.
_ACCEPTED = "application/jwk-set+json, application/json"
REFRESH_INTERVAL_S = 300.0  # for how long a key that the issuer withdrew is still accepted
_COOLDOWN_S = 10.0
_FETCH_TIMEOUT_S = 5.0
_MAX_DOCUMENT_BYTES = 256 << 10  # 64 RSA keys with their certificates, 3 KiB each, are 192 KiB
_MAX_KEYS = 64
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192  # a longer one takes milliseconds to verify
_MAX_SHOWN = 64
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",)}
# No HS*, which would take a public key for a secret, and no `none`.
ALGORITHMS = frozenset((*_RSA, "ES256", "ES384", "ES512", "EdDSA"))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of an issuer, and the algorithms that it may verify."""

    kid: str
    key: Any
    algorithms: frozenset[str]


@dataclass(frozen=True, slots=True)
class Published:
    """What an issuer answered: its keys, and the Date of that answer (RFC 9110 6.6.1), empty without one."""

    keys: Sequence[PublicKey]
    date: str


@dataclass(frozen=True, slots=True)
class Access:
    """How an issuer is reached. Files are read for each fetch, since they are renewed; empty paths: none."""

    jwks_url: str = ""  # empty: from the discovery document
    ca: Path = Path()  # certificates to trust besides the usual ones
    token: Path = Path()  # a bearer token to show, as the API server of a cluster asks for


class IssuerKeys:
    """The keys of one issuer. State: those of the last fetch that succeeded, when one was tried, and its failure."""

    def __init__(self, issuer: str, access: Access, clock: Clock) -> None:
        self.issuer = issuer
        self._access = access
        self._clock = clock
        self._keys: Sequence[PublicKey] = ()
        self._tried_at = float("-inf")  # monotonic: a jump of the clock neither stops nor multiplies fetches
        self._failure = ""
        self._fetches = 0
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<IssuerKeys {self.issuer}: {len(self._keys)}{', away' if self._failure else ''}>"

    async def require(self, kid: str | None, algorithm: str, *, other_than: PublicKey | None = None) -> PublicKey:
        """The key that a token's header names. A token without `kid` has the issuer's only key of its algorithm.

        `other_than`: the key that did not fit, for a token without `kid`, which does not say that keys were rotated.

        Raises UnauthorizedError for a key that the issuer does not have; UnavailableError where that is not known now.
        """
        if (found := self._find(kid, algorithm, other_than)) is not None:
            return found
        # Requests with the same new key wait for one fetch. Whoever finds that another has fetched meanwhile, or that
        # the cooldown runs, looks into what is there and does not fetch again.
        before = self._fetches
        async with self._lock:
            wait = self._tried_at + _COOLDOWN_S - self._clock.monotonic()
            if self._fetches == before and wait <= 0:
                await self._fetch()
                wait = _COOLDOWN_S
        if (found := self._find(kid, algorithm, other_than)) is not None:
            return found
        which = "without kid" if kid is None else repr(kid[:_MAX_SHOWN])
        if self._failure:
            raise UnavailableError(
                f"the token's key {which} is not known, and {self.issuer} cannot be asked: {self._failure}",
                retry_after=wait,
            )
        if self._fetches == before:
            raise UnavailableError(
                f"the token's key {which} is not known; {self.issuer} was asked a moment ago", retry_after=wait
            )
        raise UnauthorizedError(f"the token is signed with a key {which} that {self.issuer} does not have")

    def _find(self, kid: str | None, algorithm: str, other_than: PublicKey | None) -> PublicKey | None:
        found = select(self._keys, kid, algorithm)
        return None if found == other_than else found

    async def refresh(self) -> None:
        """Fetch the keys. Raises UnavailableError; the known ones stay then."""
        async with self._lock:
            await self._fetch()
        if self._failure:
            raise UnavailableError(f"keys of {self.issuer} cannot be fetched: {self._failure}")

    async def _fetch(self) -> None:
        self._tried_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(_FETCH_TIMEOUT_S):
                self._keys = (await fetch_keys(self.issuer, self._access)).keys
            self._failure = ""
        except TimeoutError:
            self._failure = f"no answer within {_FETCH_TIMEOUT_S:g} s"
        except UnavailableError as error:
            self._failure = str(error)
        except asyncio.CancelledError:  # its client left; that says nothing about the issuer
            self._tried_at = float("-inf")
            raise
        self._fetches += 1


def select(keys: Sequence[PublicKey], kid: str | None, algorithm: str) -> PublicKey | None:
    """The key for a token's header, if there is exactly one."""
    # Not the first of several: which one a token without `kid` means cannot be known, and trying all of them would let
    # a token make the gateway verify 64 signatures.
    fitting = [each for each in keys if algorithm in each.algorithms and (kid is None or each.kid == kid)]
    return fitting[0] if len(fitting) == 1 else None


def read_keys(document: Mapping[str, Any]) -> Sequence[PublicKey]:
    """The keys of a JWKS that signatures can be verified with; others are left out. Raises UnavailableError."""
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > _MAX_KEYS:
        raise UnavailableError(f"its key set has no list `keys` of at most {_MAX_KEYS}")
    found = [key for each in listed if isinstance(each, dict) and (key := _read_key(each)) is not None]
    if not found:
        raise UnavailableError("its key set has no key that verifies signatures")
    return found


def _read_key(jwk: Mapping[str, Any]) -> PublicKey | None:
    kind, curve, kid = jwk.get("kty"), jwk.get("crv"), jwk.get("kid", "")
    if kind == "RSA":
        fitting: tuple[str, ...] = _RSA
    elif kind == "EC":
        fitting = _CURVES.get(str(curve), ())
    else:
        fitting = ("EdDSA",) if (kind, curve) == ("OKP", "Ed25519") else ()
    if (own := jwk.get("alg")) is not None:
        fitting = tuple(each for each in fitting if each == own)
    # `d` is a private key's part: an issuer that publishes it lets every reader sign tokens.
    if not fitting or jwk.get("use", "sig") != "sig" or "d" in jwk or not isinstance(kid, str):
        return None
    try:
        key = jwt.PyJWK(dict(jwk), fitting[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        logger.warning("a key of an issuer cannot be read: %s", type(error).__name__)
        return None
    if kind == "RSA" and not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        logger.warning("a key of an issuer is left out: RSA of %d bits", key.key_size)
        return None
    return PublicKey(kid, key, frozenset(fitting))


def url_problem(url: str) -> str:
    """Why keys cannot be fetched from a URL; empty if they can. Only TLS tells that they are the issuer's."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a URL"
    if not host or parts.username is not None or parts.fragment or not url.isprintable():
        return "expected https://HOST/PATH, without a fragment or a password"
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host.encode())):
        return "expected https: keys fetched without TLS can be replaced on the way (http is for loopback only)"
    return ""


async def fetch_keys(issuer: str, access: Access) -> Published:
    """Ask an issuer for its keys. Raises UnavailableError with what is wrong."""
    headers = {"accept": _ACCEPTED, **await asyncio.to_thread(_credentials, access)}
    try:
        context = await asyncio.to_thread(_tls_context, access.ca)  # 17 ms, most of it the usual certificates
    except (OSError, ssl.SSLError) as error:
        raise UnavailableError(f"--oidc-ca {access.ca}: {error.strerror or error}") from None
    async with httpx.AsyncClient(verify=context, timeout=_FETCH_TIMEOUT_S, headers=headers) as client:
        url = access.jwks_url
        if not url:
            document, _ = await _get(client, issuer.rstrip("/") + "/.well-known/openid-configuration")
            if (
                document.get("issuer") != issuer
            ):  # OpenID Connect Discovery 4.3: else one issuer could answer as another
                shown = repr(document.get("issuer"))[:_MAX_SHOWN]
                raise UnavailableError(f"its discovery document names another issuer, {shown}: set that one")
            url = document.get("jwks_uri", "")
            if not isinstance(url, str) or (problem := url_problem(url)):
                raise UnavailableError(f"its discovery document's jwks_uri: {problem if isinstance(url, str) else url}")
        document, date = await _get(client, url)
        return Published(read_keys(document), date)


async def _get(client: httpx.AsyncClient, url: str) -> tuple[Mapping[str, Any], str]:
    """A JSON object, and the answer's Date."""
    content = bytearray()
    try:
        async with client.stream("GET", url) as response:
            if response.status_code != 200:
                raise UnavailableError(f"GET {url}: status {response.status_code}")
            date = response.headers.get("date", "")
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _MAX_DOCUMENT_BYTES:
                    raise UnavailableError(f"GET {url}: longer than {_MAX_DOCUMENT_BYTES} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(f"GET {url}: {error or type(error).__name__}") from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise UnavailableError(f"GET {url}: the answer is not a JSON object")
    return document, date


def _credentials(access: Access) -> Mapping[str, str]:
    if access.token == Path():
        return {}
    try:
        return {"authorization": "Bearer " + access.token.read_text().strip()}
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the service account's token {access.token} cannot be read: {error}") from None


def _tls_context(ca: Path) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    if ca != Path():
        read_file(ca)  # OpenSSL would wait for a named pipe
        context.load_verify_locations(cafile=ca)
    return context

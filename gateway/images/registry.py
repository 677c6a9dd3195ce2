"""Asks registries for manifests and signatures: the OCI distribution API, with its tokens.

Sources: opencontainers/distribution-spec; distribution's token authentication (docs/spec/auth/token.md). What
registries answer is bounded in size and time, and believed only as far as digests go. Only those that the operator
listed are asked: a manifest's author could otherwise send the gateway to any address.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from gateway.core.addresses import is_loopback
from gateway.core.errors import UnavailableError
from gateway.core.read_file import read_file
from gateway.images.reference import DEFAULT_REGISTRY, Image, is_digest
from gateway.images.signature import MAX_PAYLOAD_BYTES, Signed

MAX_MANIFEST_BYTES = 4 << 20  # what the distribution specification asks registries to take
MAX_SIGNATURES = 32  # of one image; later ones are not looked at
_MAX_TOKEN_BYTES, _MAX_TOKEN_CHARS = 64 << 10, 32 << 10
_MAX_REDIRECTS = 3
_TIMEOUT_S = 10.0  # of one exchange; policy.py bounds them all together
_ANNOTATION = "dev.cosignproject.cosign/signature"
_ACCEPTED = ", ".join((
    "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
))  # fmt: skip
# Of a challenge: Bearer realm="https://auth.docker.io/token",service="registry.docker.io"
_PARAMETER = re.compile(r'([a-z]{1,20})="([^"]{0,1000})"', re.ASCII)


class Registry:
    """Requests to registries. Files are read for each image, since they are renewed."""

    def __init__(self, credentials: Path = Path(), ca: Path = Path()) -> None:
        """`credentials`: a config.json as `docker login` writes it. `ca`: certificates to trust besides the usual."""
        self._credentials, self._ca = credentials, ca

    async def digest(self, image: Image) -> str:
        """The digest of what the tag (`latest` if none) stands for now. Raises UnavailableError, LookupError."""
        async with await self._open(image) as visit:
            # Computed, and not taken from Docker-Content-Digest: that is only what the registry says.
            return "sha256:" + hashlib.sha256(await visit.manifest(image.tag or "latest")).hexdigest()

    async def signatures(self, image: Image, digest: str) -> list[Signed]:
        """What was put beside the image by `cosign sign`; none for an image without. Raises UnavailableError."""
        async with await self._open(image) as visit:
            try:
                # Where cosign puts it: the tag sha256-HEX.sig in the image's own repository.
                manifest = _object(await visit.manifest(digest.replace(":", "-") + ".sig"))
            except LookupError:
                return []
            found = []
            layers = manifest.get("layers")
            for layer in (layers if isinstance(layers, list) else [])[:MAX_SIGNATURES]:
                if isinstance(layer, dict) and (signed := await _signature(visit, layer)) is not None:
                    found.append(signed)
            return found

    async def ping(self, registry: str) -> int:
        """The status with which a registry answers `GET /v2/`: 401 is well. Raises UnavailableError."""
        async with await self._open(Image(registry, "")) as visit:
            return await visit.ping()

    async def _open(self, image: Image) -> _Visit:
        try:
            context = await asyncio.to_thread(_tls_context, self._ca)
        except (OSError, ssl.SSLError) as error:
            raise UnavailableError(f"--image-ca {self._ca}: {getattr(error, 'strerror', '') or error}") from None
        login = await asyncio.to_thread(read_login, self._credentials, image.registry)
        return _Visit(image, httpx.AsyncClient(verify=context, timeout=_TIMEOUT_S), login)


class _Visit:
    """One visit to an image's repository. State: the token that the registry gave."""

    def __init__(self, image: Image, client: httpx.AsyncClient, login: str) -> None:
        self._client, self._login, self._path = client, login, image.path
        host = "registry-1.docker.io" if image.registry == DEFAULT_REGISTRY else image.registry
        # As the container runtimes do; every other registry has to have TLS.
        scheme = "http" if is_loopback(host.partition(":")[0].encode()) else "https"
        self._base = f"{scheme}://{host}/v2/"
        self._authorization = ""

    async def __aenter__(self) -> _Visit:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    async def ping(self) -> int:
        """As Registry.ping: the status of a request that asks for nothing."""
        status, _, _ = await self._get(self._base, {}, _MAX_TOKEN_BYTES)
        return status

    async def manifest(self, reference: str) -> bytes:
        """The bytes of a manifest, by tag or digest. Raises LookupError if there is none, UnavailableError."""
        return await self._ask(f"{self._path}/manifests/{reference}", MAX_MANIFEST_BYTES)

    async def blob(self, digest: str, most: int) -> bytes:
        """The bytes with that digest. Raises LookupError, also where they have another; UnavailableError."""
        content = await self._ask(f"{self._path}/blobs/{digest}", most)
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            raise LookupError("a blob does not have the digest that it is named by")
        return content

    async def _ask(self, what: str, most: int) -> bytes:
        url = self._base + what
        for attempt in range(2):
            headers = {"accept": _ACCEPTED}
            if self._authorization:
                headers["authorization"] = self._authorization
            status, fields, content = await self._get(url, headers, most)
            # Asked for only then: most public images need no token, and a token is for one repository and some minutes.
            if status == 401 and attempt == 0:
                await self._log_in(fields.get("www-authenticate", ""))
                continue
            if status == 404:
                raise LookupError(f"{url}: not there")
            # Registries that hide what exists answer 403 or 401 in place of 404, e.g. for a signature's tag.
            if status != 200:
                raise UnavailableError(f"GET {url}: status {status}")
            return content
        raise AssertionError("unreachable")

    async def _log_in(self, challenge: str) -> None:
        scheme, _, rest = challenge[:4096].partition(" ")
        if scheme.lower() == "basic" and self._login:
            self._authorization = f"Basic {self._login}"
            return
        given = dict(_PARAMETER.findall(rest))
        realm = given.get("realm", "")
        # The login goes to the realm, so a registry must not name one in the clear.
        if scheme.lower() != "bearer" or not self._is_safe(realm):
            raise UnavailableError(f"{self._base}: asks for credentials; name them in --image-credentials")
        query = {"scope": f"repository:{self._path}:pull"}
        if service := given.get("service"):
            query["service"] = service
        headers = {"authorization": f"Basic {self._login}"} if self._login else {}
        status, _, content = await self._get(str(httpx.URL(realm, params=query)), headers, _MAX_TOKEN_BYTES)
        if status != 200:
            raise UnavailableError(f"{realm}: no token for {self._path}: status {status}")
        answer = _object(content)
        token = answer.get("token") or answer.get("access_token")
        # It becomes a header's value, where a line break would begin another header.
        if not isinstance(token, str) or not (token.isascii() and token.isprintable()) or len(token) > _MAX_TOKEN_CHARS:
            raise UnavailableError(f"{realm}: its answer has no token")
        self._authorization = f"Bearer {token}"

    def _is_safe(self, url: str) -> bool:
        """Whether to go where a registry says: over TLS, and in the clear only from and to this machine."""
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").encode()
        except ValueError:
            return False
        local = self._base.startswith("http:") and is_loopback(host)
        return bool(host) and parts.username is None and (parts.scheme == "https" or (parts.scheme == "http" and local))

    async def _get(self, url: str, headers: Mapping[str, str], most: int) -> tuple[int, Mapping[str, str], bytes]:
        """Status, fields and content; of redirects, where they lead. Raises UnavailableError."""
        try:
            for _ in range(_MAX_REDIRECTS + 1):
                async with self._client.stream("GET", url, headers=headers) as response:
                    target = response.headers.get("location", "")
                    if response.is_redirect:
                        there = response.url.join(target)
                        if not self._is_safe(str(there)):
                            raise UnavailableError(f"GET {url}: leads to {str(there)[:200]}, which is not over TLS")
                        # Blobs are kept at object stores, which are not to have the registry's token (and refuse it).
                        if (there.host, there.port) != (response.url.host, response.url.port):
                            headers = {name: value for name, value in headers.items() if name != "authorization"}
                        url = str(there)
                        continue
                    content = bytearray()
                    async for chunk in response.aiter_bytes(1 << 16):
                        content += chunk
                        if len(content) > most:
                            raise UnavailableError(f"GET {url}: longer than {most} bytes")
                    return response.status_code, response.headers, bytes(content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnavailableError(f"GET {url}: {error or type(error).__name__}") from None
        raise UnavailableError(f"GET {url}: more than {_MAX_REDIRECTS} redirects")


async def _signature(visit: _Visit, layer: Mapping[str, Any]) -> Signed | None:
    """What a layer of a signature's manifest holds; None if it is no signature, or damaged."""
    annotations = layer.get("annotations")
    signature = annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None
    digest = layer.get("digest")
    if not isinstance(signature, str) or not isinstance(digest, str) or not is_digest(digest):
        return None
    try:
        return Signed(await visit.blob(digest, MAX_PAYLOAD_BYTES), signature)
    except LookupError:
        return None


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {}


def read_login(path: Path, registry: str) -> str:
    """The `user:password` of a registry in base64, from a config.json; "" if it has none. Blocks.

    Raises UnavailableError if the file cannot be read. Helpers and tokens of `docker login` are not supported.
    """
    if path == Path():
        return ""
    try:
        document = _object(read_file(path))
    except OSError as error:
        raise UnavailableError(f"--image-credentials {path}: cannot be read: {error.strerror}") from None
    logins = document.get("auths")
    if not isinstance(logins, dict):
        return ""
    # Under each of these names `docker login` and its like have stored it.
    names: tuple[str, ...] = (registry, f"https://{registry}", f"https://{registry}/v2/")
    if registry == DEFAULT_REGISTRY:
        names += ("https://index.docker.io/v1/", "index.docker.io")
    for name in names:
        entry = logins.get(name)
        if isinstance(entry, dict):
            if isinstance(entry.get("auth"), str) and entry["auth"].isascii() and entry["auth"].isprintable():
                return str(entry["auth"])
            if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
                return base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
    return ""


def _tls_context(ca: Path) -> ssl.SSLContext:
    context = httpx.create_ssl_context()
    if ca != Path():
        read_file(ca)  # OpenSSL would wait for a named pipe
        context.load_verify_locations(cafile=ca)
    return context

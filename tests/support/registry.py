"""An image registry on loopback that speaks the distribution API, with tokens if asked for, and signs like cosign."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
LOGIN = base64.b64encode(b"puller:secret").decode()


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def payload_of(digest: str, kind: str = "cosign container image signature") -> bytes:
    """The document that cosign signs."""
    image = {"docker-manifest-digest": digest}
    critical = {"identity": {"docker-reference": ""}, "image": image, "type": kind}
    return json.dumps({"critical": critical, "optional": None}).encode()


def sign(key: PrivateKey, payload: bytes) -> str:
    """A signature in base64."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        raw = key.sign(payload, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPrivateKey):
        raw = key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
    else:
        raw = key.sign(payload)
    return base64.b64encode(raw).decode()


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def bundle(key: PrivateKey, digest: str) -> str:
    """The line that `cosign download signature` prints."""
    payload = payload_of(digest)
    return json.dumps({
        "Base64Signature": sign(key, payload), "Payload": base64.b64encode(payload).decode(),
        "Cert": None, "Chain": None, "Bundle": None, "RFC3161Timestamp": None,
    })  # fmt: skip


class Registry:
    """What a test holds of it. `asked` are the paths of all requests so far."""

    def __init__(self) -> None:
        self.manifests: dict[tuple[str, str], bytes] = {}  # (path, tag or digest)
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.realm = ""  # asks for tokens, which are given there
        self.private = False  # tokens are given to LOGIN only
        self.token: Any = "the-token"
        self.redirect_blobs = ""  # to this prefix
        self.away = False
        self.port = 0

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.name}"

    def push(self, path: str, tag: str, content: bytes = b"{}") -> str:
        """Add an image. Returns its digest."""
        digest = digest_of(content)
        self.manifests[path, tag] = self.manifests[path, digest] = content
        return digest

    def sign(self, path: str, digest: str, *keys: PrivateKey, payload: bytes | None = None) -> None:
        """Put signatures where `cosign sign` does."""
        document = payload_of(digest) if payload is None else payload
        self.blobs[digest_of(document)] = document
        self.attach(path, digest, [layer(digest_of(document), sign(key, document)) for key in keys])

    def attach(self, path: str, digest: str, layers: Any) -> None:
        manifest = {"schemaVersion": 2, "config": {}, "layers": layers}
        self.manifests[path, digest.replace(":", "-") + ".sig"] = json.dumps(manifest).encode()

    def answer(self, target: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        """Status, fields and body for a GET."""
        self.asked.append(target)
        path = urlsplit(target).path
        if self.away:
            return 503, {}, b""
        if path == "/token":
            scope = parse_qs(urlsplit(target).query).get("scope", [""])[0]
            assert scope.startswith("repository:")
            if self.private and authorization != f"Basic {LOGIN}":
                return 401, {}, b"{}"
            return 200, {}, json.dumps({"token": self.token}).encode()
        if path.startswith("/elsewhere/"):
            assert not authorization
            return 200, {}, self.blobs[path.removeprefix("/elsewhere/")]
        if self.realm and authorization != f"Bearer {self.token}":
            return 401, {"www-authenticate": f'Bearer realm="{self.realm}",service="registry"'}, b"{}"
        if path == "/v2/":
            return 200, {}, b"{}"
        repository, kind, reference = path.removeprefix("/v2/").rsplit("/", 2)
        if kind == "blobs" and self.redirect_blobs:
            return 307, {"location": self.redirect_blobs + reference}, b""
        found = self.blobs.get(reference) if kind == "blobs" else self.manifests.get((repository, reference))
        return (404, {}, b"{}") if found is None else (200, {}, found)


def layer(digest: str, signature: str) -> dict[str, Any]:
    """A layer of a signature's manifest."""
    return {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "digest": digest,
        "annotations": {"dev.cosignproject.cosign/signature": signature},
    }


@contextmanager
def serving() -> Iterator[Registry]:
    """A registry on a free port, ended with the block."""
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, fields, body = registry.answer(self.path, self.headers.get("authorization", ""))
            self.send_response(status)
            for name, value in {**fields, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A cluster as an issuer of service account tokens: its key set over HTTP, for those who show a token, and tokens."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


class ClusterIssuer:
    """`asked` has (path, Authorization) of each request; `wanted`: what Authorization has to be; "" for anything."""

    def __init__(self, name: str = "", wanted: str = "") -> None:
        self.name = name
        self.wanted = wanted
        self.asked: list[tuple[str, str]] = []
        self.url = ""
        self._keys: dict[str, rsa.RSAPrivateKey] = {}
        self.rotate("key-1")

    def rotate(self, kid: str) -> None:
        """Sign with a new key from now on; the ones before stay published, as in a cluster."""
        self._keys[kid] = rsa.generate_private_key(65537, 2048)

    def token(self, namespace: str, account: str, audience: str = "wakegate", kid: str = "") -> str:
        """As the TokenRequest API makes one."""
        now = int(time.time())
        name = kid or list(self._keys)[-1]
        claims: dict[str, Any] = {
            "iss": self.name or self.url,
            "aud": [audience],
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "exp": now + 3607,
            "iat": now,
            "nbf": now,
            "jti": "0e2d4c5c-6d4b-4a53-9d5f-4c2f0a1b2c3d",
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": "agent-0", "uid": "1"},
                "serviceaccount": {"name": account, "uid": "2"},
            },
        }
        return jwt.encode(claims, self._keys[name], "RS256", headers={"kid": name})

    def answer(self, path: str, authorization: str) -> tuple[int, Any]:
        self.asked.append((path, authorization))
        if self.wanted and authorization != self.wanted:
            return 401, {"kind": "Status", "code": 401}
        if path == "/.well-known/openid-configuration":
            return 200, {"issuer": self.name or self.url, "jwks_uri": self.url + "/openid/v1/jwks"}
        if path == "/openid/v1/jwks":
            keys = [
                {
                    **jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True),
                    "kid": kid,
                    "use": "sig",
                    "alg": "RS256",
                }
                for kid, key in self._keys.items()
            ]
            return 200, {"keys": keys}
        return 404, {}


@contextmanager
def cluster_issuer(issuer: ClusterIssuer, tls: ssl.SSLContext | None = None) -> Iterator[ClusterIssuer]:
    """Serve an issuer on loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = issuer.answer(self.path, self.headers.get("authorization", ""))
            # As a real API server, which does not look at what is asked for before who asks.
            if status == 200 and self.path.endswith("/jwks") and "jwk-set+json" not in self.headers.get("accept", ""):
                status, document = 406, {"kind": "Status", "code": 406, "reason": "NotAcceptable"}
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    issuer.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

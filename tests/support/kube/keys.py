"""Signing keys of a cluster: tokens, and requests that carry them."""

from __future__ import annotations

import base64
import time

import httpx
import jwt

from gateway.provider.kubernetes import names
from tests.support.kube.simulator import Cluster
from tests.support.kube.simulator.objects import BY_PLURAL


def private_keys(cluster: Cluster) -> dict[str, str]:
    """The PEM files in the Secret of signing keys, by name."""
    data: dict[str, str] = cluster.objects.get(BY_PLURAL["secrets"], "wakegate", names.KEYS_SECRET)["data"]
    return data


def token(kid: str, pem: str, uid: str) -> str:
    """A token as the gateway would make it for that pod."""
    now = int(time.time())
    claims = {"iss": "wakegate", "aud": uid, "sub": "s", "iat": now, "exp": now + 300, "jti": "j"}
    return jwt.encode(claims, base64.b64decode(pem).decode(), "EdDSA", headers={"kid": kid})


def ask(address: str, bearer: str) -> int:
    """picod's answer to a token."""
    url = f"http://{address}:8080/api/files?path=."
    return httpx.get(url, headers={"authorization": f"Bearer {bearer}"}, timeout=20).status_code

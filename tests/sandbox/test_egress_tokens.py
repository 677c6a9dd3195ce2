"""Tokens of the egress service: whose they are, and that they open nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest

from gateway.core.model import SandboxId, SessionId
from gateway.sandbox.egress_tokens import read_egress, sign_egress
from gateway.sandbox.signing_keys import KeyRing
from picod.http.auth import Guard
from picod.http.request import Request, RequestError

SANDBOX, SESSION, NOW = SandboxId("5f2c"), SessionId("one"), 1_800_000_000.0


@pytest.fixture(params=["EdDSA", "RS256"])
def keys(tmp_path: Path, request: pytest.FixtureRequest) -> KeyRing:
    ring = KeyRing(tmp_path / "keys", request.param)
    ring.open()
    return ring


def test_token_names_its_sandbox_and_session_until_it_ends(keys: KeyRing) -> None:
    """For the time that it was made for, and for half a minute of a clock that goes wrong."""
    token = sign_egress(keys, SANDBOX, SESSION, NOW, 60.0)
    for at in (NOW, NOW + 60.0, NOW + 89.0):
        assert read_egress(keys, token, at) == (SANDBOX, SESSION)
    with pytest.raises(ValueError, match="expired"):
        read_egress(keys, token, NOW + 91.0)


def test_token_outlives_a_rotation_and_not_its_key(keys: KeyRing) -> None:
    """As tokens of picod do."""
    token = sign_egress(keys, SANDBOX, SESSION, NOW, 60.0)
    old = keys.signer.kid
    keys.rotate()
    assert read_egress(keys, token, NOW) == (SANDBOX, SESSION)
    keys.drop([old])
    with pytest.raises(ValueError, match="no key"):
        read_egress(keys, token, NOW)


def test_what_was_not_signed_for_this_is_refused(keys: KeyRing, tmp_path: Path) -> None:
    """picod's own tokens, others' keys, none at all, a changed claim, a symmetric signature with the public key."""
    other = KeyRing(tmp_path / "others")
    other.open()
    good = sign_egress(keys, SANDBOX, SESSION, NOW, 60.0)
    head, _, signature = good.split(".")
    _, claims, _ = sign_egress(keys, SANDBOX, SessionId("two"), NOW, 60.0).split(".")
    unsigned = jwt.encode({"aud": "egress/5f2c", "sub": "one", "iss": "wakegate", "exp": NOW}, "", "none",
                          headers={"kid": keys.signer.kid})  # fmt: skip
    for token in (
        keys.signer.sign(audience=SANDBOX, subject=SESSION, issued_at=NOW, lifetime=60.0),
        sign_egress(other, SANDBOX, SESSION, NOW, 60.0),
        f"{head}.{claims}.{signature}", unsigned, "", "x", "a.b.c", good + "x", good.replace(".", ". "), "x" * 10_000,
    ):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011 - each has a reason of its own
            read_egress(keys, token, NOW)


def test_picod_takes_none(keys: KeyRing) -> None:
    """Code in a sandbox may read the token: it must not be one for the sandbox's own API."""
    guard = Guard(str(keys.public_dir / "jwks.json"), SANDBOX)

    def ask(token: str) -> None:
        scope = {"method": "GET", "query_string": b"", "headers": [(b"authorization", f"Bearer {token}".encode())]}
        guard.check(Request(scope, None, None, b""))  # type: ignore[arg-type]  # only the head is looked at

    now = time.time()
    ask(keys.signer.sign(audience=SANDBOX, subject=SESSION, issued_at=now, lifetime=60.0))
    with pytest.raises(RequestError):
        ask(sign_egress(keys, SANDBOX, SESSION, now, 60.0))

"""Only a token made for this sandbox, by a key of the gateway's, now, is accepted."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from picod.wire import LEEWAY_S, REFUSED_HEADER
from tests.support.picod import Executor, picod_process

ED, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
RSA = generate_private_key(65537, 2048)


def jwk(kid: str, key: Ed25519PrivateKey | RSAPrivateKey) -> dict[str, Any]:
    """The public half as a JWKS entry."""
    kind: Any = OKPAlgorithm if isinstance(key, Ed25519PrivateKey) else RSAAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid}


def write_keys(path: Path, *entries: dict[str, Any]) -> None:
    """Replace a key set the way a gateway does: whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"keys": entries}))
    os.replace(fresh, path)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key set with an Ed25519 and an RSA key, and an entry for others."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    write_keys(path, jwk("ed", ED), jwk("rsa", RSA), {"kty": "EC", "crv": "P-256", "kid": "ec", "x": "AA", "y": "AA"})
    return path


@pytest.fixture(scope="module")
def guarded(keys_file: Path) -> Iterator[Executor]:
    """A picod that wants tokens for `sandbox-1`."""
    with picod_process("--audience", "sandbox-1", "--keys-file", str(keys_file)) as executor:
        yield executor


def token(key: Any = ED, algorithm: str = "EdDSA", kid: str | None = "ed", **claims: Any) -> str:
    """A good token, unless told otherwise; a claim of None is left out."""
    now = int(time.time())
    all_claims = {"iss": "wakegate", "aud": "sandbox-1", "sub": "s", "iat": now, "exp": now + 60, "jti": "j", **claims}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode({k: v for k, v in all_claims.items() if v is not None}, key, algorithm=algorithm, headers=headers)


def ask(executor: Executor, bearer: str) -> tuple[int, dict[str, Any]]:
    """List the workspace with a token."""
    reply = executor.client.get("/api/files?path=.", headers={"authorization": f"Bearer {bearer}"})
    return reply.status_code, reply.json()


def test_tokens_of_both_key_types_are_accepted(guarded: Executor) -> None:
    """Ed25519 and RS256, by kid, from the first try and from memory."""
    for good in (token(), token(RSA, "RS256", "rsa")):
        assert [ask(guarded, good)[0] for _ in range(2)] == [200, 200]


def segment(value: object) -> str:
    """One part of a token, made by hand."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def bad_tokens() -> dict[str, tuple[str, str]]:
    """By name: a token, and words of the reason it must be refused for."""
    now = int(time.time())
    good = token()
    head, body, signature = good.split(".")
    claims = {"iss": "wakegate", "aud": "sandbox-1", "exp": now + 60, "iat": now}
    flipped = signature[:-6] + ("A" if signature[-6] != "A" else "B") + signature[-5:]
    return {
        "expired": (token(exp=now - LEEWAY_S - 2), "token is expired"),
        "not yet valid": (token(nbf=now + 600), "not valid yet"),
        "issued in the future": (token(iat=now + 600), "used before issued"),
        "no exp": (token(exp=None), "exp claim is required"),
        "no aud": (token(aud=None), "aud claim is required"),
        "no iss": (token(iss=None), "iss claim is required"),
        "another sandbox's": (token(aud="sandbox-2"), "invalid audience"),
        "a list of audiences": (token(aud=["sandbox-1", "sandbox-2"]), "invalid audience"),
        "another issuer's": (token(iss="somebody"), "invalid issuer"),
        "another key's": (token(OTHER), "signature is invalid"),
        "unknown kid": (token(kid="nobody"), "unknown key"),
        "no kid": (token(kid=None), "names no key"),
        "key of another type": (token(RSA, "RS256", "ed"), "is for EdDSA"),
        "HS256": (token("secret" * 8, "HS256"), "unexpected signing method: HS256"),
        "RS512": (token(RSA, "RS512", "rsa"), "unexpected signing method: RS512"),
        "none": (f"{segment({'alg': 'none', 'kid': 'ed'})}.{segment(claims)}.", "unexpected signing method: none"),
        "flipped signature": (f"{head}.{body}.{flipped}", "signature is invalid"),
        "changed claims": (f"{head}.{segment({**claims, 'sub': 'x'})}.{signature}", "signature is invalid"),
        "endless exp": (token(exp=float("inf")), "exp"),
        "two segments": ("a.b", "invalid number of segments"),
        "no base64": ("?.?.?", "token is malformed"),
        "kid of another kind": (f"{segment({'alg': 'EdDSA', 'kid': 7})}.{body}.{signature}", "token is "),
        "too long": ("x" * 9000, "too long"),
    }


@pytest.mark.parametrize("kind", bad_tokens())
def test_bad_tokens_are_refused_with_the_reason(guarded: Executor, kind: str) -> None:
    """401 in AgentCube's form, and `detail` says what was wrong."""
    bearer, reason = bad_tokens()[kind]
    status, body = ask(guarded, bearer)

    assert (status, body["code"], body["error"]) == (401, 401, "Invalid token")
    assert body["detail"].startswith("JWT verification failed: ")
    assert reason in body["detail"]


@pytest.mark.parametrize("value", ["", "Bearer", "bearer {}", "Basic {}", "Bearer  {}", "Bearer {} x", "{}"])
def test_other_forms_of_the_header_are_refused(guarded: Executor, value: str) -> None:
    """The scheme is `Bearer`, case and single space included."""
    reply = guarded.client.get("/api/files?path=.", headers={"authorization": value.format(token())})

    assert reply.status_code == 401
    assert reply.json() == {"code": 401, "detail": "Use Bearer <token>", "error": "Invalid Authorization header format"}


def test_missing_header_is_refused_on_each_route_but_health(guarded: Executor) -> None:
    """Every /api route asks; /health does not; what is no route is 404 first."""
    expected = {"code": 401, "detail": "Request requires JWT authentication", "error": "Missing Authorization header"}
    for method, path in (
        ("POST", "/api/execute"),
        ("POST", "/api/files"),
        ("GET", "/api/files"),
        ("GET", "/api/files/x"),
        ("PUT", "/api/files/x"),
    ):
        reply = guarded.client.request(method, path)
        assert (401, expected) == (reply.status_code, reply.json())
    assert guarded.client.get("/health").status_code == 200
    assert guarded.client.get("/api/nothing").status_code == 404


@pytest.mark.parametrize("skew", [-30, -29, 29, 30])
def test_clocks_half_a_minute_apart_do_not_refuse_a_token(guarded: Executor, skew: int) -> None:
    """A gateway whose clock is 30 s behind or ahead of the sandbox's is obeyed from the first second to the last."""
    now = int(time.time()) + skew
    fresh = token(iat=now, nbf=now, exp=now + 300)
    last = token(iat=now - 299, nbf=now - 299, exp=now + 2)

    assert [ask(guarded, bearer)[0] for bearer in (fresh, last)] == [200, 200]


@pytest.mark.parametrize("skew", [-60, 60])
def test_clocks_a_minute_apart_refuse_a_token_that_is_not_good_now(guarded: Executor, skew: int) -> None:
    """The leeway is no more than half a minute: behind that a token has expired, or was issued in the future."""
    now = int(time.time()) + skew
    status, body = ask(guarded, token(iat=now - 1, exp=now + 1))

    assert status == 401
    assert ("expired" if skew < 0 else "before issued") in body["detail"]


def on_a_port(executor: Executor, bearer: str) -> httpx.Response:
    """A request to a port on which nothing listens: 502 where the token is accepted."""
    return executor.client.get("/api/ports/64999/", headers={"authorization": f"Bearer {bearer}"})


@pytest.mark.parametrize("skew", [-30, 30])
def test_clocks_half_a_minute_apart_refuse_no_request_to_a_port(guarded: Executor, skew: int) -> None:
    """A token's first second and its last are good behind a port too; no such answer bears picod's mark."""
    now = int(time.time()) + skew
    for bearer in (token(iat=now, nbf=now, exp=now + 300), token(iat=now - 299, nbf=now - 299, exp=now + 2)):
        reply = on_a_port(guarded, bearer)
        assert (reply.status_code, reply.json()["code"]) == (502, "PORT_NOT_LISTENING")
        assert REFUSED_HEADER not in reply.headers


@pytest.mark.parametrize("claim", ["iat", "nbf", "exp"])
def test_refusal_of_a_token_is_marked_as_picods_own(guarded: Executor, claim: str) -> None:
    """Behind a port an application answers 401 too; the gateway tells the two apart by the mark."""
    now = int(time.time())
    claims: dict[str, Any] = {claim: now + (-LEEWAY_S - 5 if claim == "exp" else LEEWAY_S + 5)}
    reply = on_a_port(guarded, token(**claims))
    assert (reply.status_code, reply.headers[REFUSED_HEADER]) == (401, "token")
    assert guarded.client.get("/api/ports/64999/").headers[REFUSED_HEADER] == "token"


def test_remembered_token_still_expires(guarded: Executor) -> None:
    """A token that was good once is refused when its time, leeway included, is over."""
    bearer = token(exp=int(time.time()) - LEEWAY_S + 2)
    assert ask(guarded, bearer)[0] == 200
    deadline = time.monotonic() + 20
    while (answer := ask(guarded, bearer))[0] == 200:
        assert time.monotonic() < deadline, "it never expired"
        time.sleep(0.05)

    assert "token is expired" in answer[1]["detail"]


def test_rotated_keys_are_taken_without_a_restart(guarded: Executor, keys_file: Path) -> None:
    """A new kid is found at once; a withdrawn key's tokens fail, remembered or not; a broken file changes nothing."""
    old = token()
    assert ask(guarded, old)[0] == 200
    try:
        write_keys(keys_file, jwk("next", OTHER))
        new = token(OTHER, kid="next")
        assert ask(guarded, new)[0] == 200
        assert ask(guarded, old)[0] == 401
        keys_file.write_text("{ not json")
        assert ask(guarded, token(kid="nobody"))[0] == 401
        assert ask(guarded, token(OTHER, kid="next"))[0] == 200
    finally:
        write_keys(keys_file, jwk("ed", ED), jwk("rsa", RSA))
    assert ask(guarded, token())[0] == 200


def test_key_set_on_a_mounted_configmap_follows_its_links(tmp_path: Path) -> None:
    """A kubelet swaps `..data` to another folder: keys that came are believed; those that went are not any more, not
    even by a token that was believed before."""

    def show(name: str, *entries: dict[str, Any]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "jwks.json").write_text(json.dumps({"keys": entries}))
        (tmp_path / "..data_tmp").symlink_to(name)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    show("..1", jwk("ed", ED))
    (tmp_path / "jwks.json").symlink_to("..data/jwks.json")
    with picod_process("--audience", "sandbox-1", "--keys-file", str(tmp_path / "jwks.json")) as executor:
        old, new = token(), token(OTHER, kid="new")
        assert [ask(executor, bearer)[0] for bearer in (old, new)] == [200, 401]
        show("..2", jwk("ed", ED), jwk("new", OTHER))
        assert [ask(executor, bearer)[0] for bearer in (old, new)] == [200, 200]
        show("..3", jwk("new", OTHER))
        deadline = time.monotonic() + 20
        while ask(executor, old)[0] == 200:
            assert time.monotonic() < deadline, "the withdrawn key is still believed"
            time.sleep(0.05)
        assert [ask(executor, bearer)[0] for bearer in (old, new)] == [401, 200]

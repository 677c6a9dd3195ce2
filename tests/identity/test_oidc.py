"""Tokens of OpenID Connect, with a real provider in a process of its own, and with forged ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from mcp.client.auth.utils import extract_resource_metadata_from_www_auth
from mcp.shared.auth import ProtectedResourceMetadata

from gateway.core.errors import PermissionDeniedError, SettingsError, UnauthorizedError, UnavailableError
from gateway.core.identity import Role
from gateway.core.settings import Settings, requires_identity
from gateway.identity.oidc import OIDCVerifier, make_verifier
from gateway.identity.oidc_keys import ALGORITHMS, read_keys, url_problem
from gateway.testing import ManualClock
from tests.support.oidc_server import Provider, provider
from tests.support.scripted import OpenScripted, get

MAP = "admins=admin,watchers=viewer,*=member"


@pytest.fixture(scope="module")
def server() -> Iterator[Provider]:
    with provider() as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


def verifier_of(server: Provider, clock: ManualClock, **changes: Any) -> OIDCVerifier:
    made = make_verifier(Settings(**{"oidc_issuer": server.issuer, "oidc_role_map": MAP} | changes), clock)
    assert made is not None
    return made


async def refusal(verifier: OIDCVerifier, token: str) -> str:
    with pytest.raises(UnauthorizedError) as refused:
        await verifier.verify(token)
    return str(refused.value)


async def test_user_logged_in_at_the_issuer_has_tenant_role_and_name(server: Provider, clock: ManualClock) -> None:
    """From the claims of the token, with keys found by discovery; the strongest of the groups' roles counts."""
    token = server.token("ann", tenant="acme", groups=["watchers", "admins"])
    identity = await verifier_of(server, clock).verify(token)
    assert (identity.role, identity.tenant) == (Role.ADMIN, "acme")
    assert identity.user == f"ann@localhost:{server.port}"
    assert identity.subject == f"oidc:ann@localhost:{server.port}"
    assert identity.expires_at > clock.now()


async def test_gateway_requires_a_token_and_serves_its_tenant(server: Provider, open_gateway: OpenScripted) -> None:
    """Over a socket; of its tenant it sees its own sessions, and a token for someone else says why it is refused."""
    gateway, _ = await open_gateway(oidc_issuer=server.issuer, oidc_role_map="devs=member")

    async def ask(token: str, path: str = "/v1/caller") -> tuple[int, str]:
        extra = f"authorization: Bearer {token}\n" if token else ""
        answer = await gateway.ask(f"GET {path} HTTP/1.1\nhost: h\n{extra}")
        return answer.status, answer.body.decode()

    token = server.token("ann", tenant="acme", groups=["devs"])
    status, body = await ask(token)
    assert status == 200
    assert '"acme"' in body
    assert '"subject":"oidc:ann@' in body.replace(" ", "")
    assert (await ask(""))[0] == 401
    known = gateway.gateway.surfaces.keys.authenticator
    assert known is not None
    assert known.lookup(token.encode()) is not None  # so the next request costs no signature
    assert (await ask("eyJ" + "x" * 8200 + ".y.z"))[0] == 401
    assert (await ask(server.token("ann", audience="another", tenant="acme", groups=["devs"])))[0] == 401
    status, body = await ask(server.token("bob", tenant="acme", groups=["guests"]))
    assert status == 403
    assert "groups" in body
    session = await gateway.session()  # of the default tenant
    assert (await gateway.ask(get(session, "/x", f"authorization: Bearer {token}\n"))).status == 404


async def test_mcp_client_that_is_refused_finds_the_issuer(server: Provider, open_gateway: OpenScripted) -> None:
    """As the official client reads it: the header of the 401, the document that it names, the issuer in that."""
    gateway, _ = await open_gateway(oidc_issuer=server.issuer, oidc_role_map="devs=member")
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=20) as client:
        for headers in ({}, {"authorization": "Bearer wk_wrong"}):
            refused = await client.post("/mcp", json={}, headers=headers)
            assert refused.status_code == 401
            address = extract_resource_metadata_from_www_auth(cast("Any", refused))  # it knows another httpx
            assert address == f"{gateway.url}/.well-known/oauth-protected-resource/mcp"
            found = ProtectedResourceMetadata.model_validate_json((await client.get(address)).content)
            assert str(found.resource) == f"{gateway.url}/mcp"
            assert [str(each).rstrip("/") for each in found.authorization_servers] == [server.issuer.rstrip("/")]
        elsewhere = await client.get("/v1/sessions")
        assert elsewhere.headers["www-authenticate"] == 'Bearer realm="wakegate"'


async def test_gateway_without_an_issuer_has_no_such_document(open_gateway: OpenScripted) -> None:
    """A client then asks its user for a key, and does not look for an issuer at this address."""
    gateway, _ = await open_gateway()
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=20) as client:
        absent = await client.get("/.well-known/oauth-protected-resource/mcp")
        assert absent.status_code == 404
        assert "--oidc-issuer" in absent.json()["error"]


async def test_rotated_key_is_fetched_once_and_the_old_one_forgotten(server: Provider, clock: ManualClock) -> None:
    """An unknown key makes the gateway ask, but no more than once in ten seconds."""
    verifier = verifier_of(server, clock)
    old = server.token(tenant="acme")
    await verifier.verify(old)
    server.rotate()
    new = server.token(tenant="acme")
    await verifier.verify(old)
    with pytest.raises(UnavailableError, match="a moment ago") as wait:
        await verifier.verify(new)
    assert wait.value.retry_after is not None
    clock.advance(wait.value.retry_after)
    assert (await verifier.verify(new)).tenant == "acme"
    clock.advance(10)
    assert "does not have" in await refusal(verifier, old)


async def test_unreachable_issuer_leaves_known_keys_valid_and_refuses_others(clock: ManualClock) -> None:
    """503 with Retry-After for keys that cannot be asked for; once it is back, they are."""
    with provider() as server:
        verifier = verifier_of(server, clock)
        token = server.token(tenant="acme")
        await verifier.verify(token)
        server.stop()
        clock.advance(600)
        with pytest.raises(UnavailableError, match="cannot be fetched"):
            await verifier.refresh()
        assert (await verifier.verify(token)).tenant == "acme"
        fresh = verifier_of(server, clock)
        for _ in range(2):  # the second without asking again
            with pytest.raises(UnavailableError, match="cannot be asked") as away:
                await fresh.verify(token)
            assert away.value.retry_after is not None
        server.start()
        clock.advance(10)
        other = server.token(tenant="acme")
        assert (await fresh.verify(other)).tenant == "acme"


async def test_many_tokens_of_unknown_keys_make_one_fetch(
    server: Provider, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many come at once."""
    from gateway.identity import oidc_keys

    fetches = []
    real = oidc_keys.fetch_keys

    async def counting(*args: Any) -> Any:
        fetches.append(args)
        return await real(*args)

    monkeypatch.setattr(oidc_keys, "fetch_keys", counting)
    verifier = verifier_of(server, clock)
    key = ec.generate_private_key(ec.SECP256R1())
    tokens = [jwt.encode(claims(server), key, "ES256", headers={"kid": f"k{n}"}) for n in range(20)]
    done = await asyncio.gather(*(verifier.verify(each) for each in tokens), return_exceptions=True)
    assert {type(each) for each in done} == {UnauthorizedError}
    assert len(fetches) == 1


def claims(server: Provider, **changes: Any) -> dict[str, Any]:
    now = time.time()
    basic = {"iss": server.issuer, "aud": "wakegate", "sub": "ann", "tenant": "acme", "iat": now, "exp": now + 60}
    return {name: value for name, value in (basic | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": None}, "no claim exp"),
        ({"exp": "soon"}, "is not a time"),
        ({"exp": float("inf")}, "is not a time"),
        ({"exp": True}, "is not a time"),
        ({"nbf": 2e9 * 2}, "clock"),
        ({"iat": 2e9 * 2}, "clock"),
        ({"aud": "another"}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": [1, {}]}, "aud"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"iss": ["x"]}, "issuer"),
    ],
)
async def test_token_for_others_or_another_time_says_why_it_is_refused(
    server: Provider, clock: ManualClock, changes: dict[str, Any], reason: str
) -> None:
    """Each reason names the claim or the setting."""
    key = ec.generate_private_key(ec.SECP256R1())
    body = {name: value for name, value in (claims(server) | changes).items() if value is not None}
    token = jwt.PyJWS().encode(json.dumps(body).encode(), key, "ES256")
    assert reason in await refusal(verifier_of(server, clock), token)


async def test_clock_difference_is_distinguished_from_a_forgery(server: Provider, clock: ManualClock) -> None:
    """Half a minute of difference is taken; beyond it a token is early or expired, and good again when the clock is."""
    verifier, token = verifier_of(server, clock), server.token(tenant="acme")
    clock.advance(-25)
    await verifier.verify(token)
    clock.advance(-3600)
    assert "clock" in await refusal(verifier, token)
    clock.advance(3 * 3600)
    assert "expired" in await refusal(verifier, token)
    clock.advance(-2 * 3600 + 25)
    await verifier.verify(token)
    clock.advance(3600 + 20)  # it is good for an hour
    await verifier.verify(token)


def encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def part(value: object) -> str:
    return encoded(json.dumps(value).encode())


async def test_forgeries_are_refused(server: Provider, clock: ManualClock) -> None:
    """alg=none, the public key as a secret, other keys of the same name, keys brought along, changed claims."""
    verifier = verifier_of(server, clock)
    real = server.token(tenant="acme", groups=["watchers"])
    await verifier.verify(real)
    [keys] = verifier.issuers
    kid = keys._keys[0].kid
    public = keys._keys[0].key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    own = rsa.generate_private_key(65537, 2048)
    body = claims(server, groups=["admins"])
    header, _, signature = real.split(".")
    secret = part({"alg": "HS256", "kid": kid}) + "." + part(body)
    forged = [
        part({"alg": "none"}) + "." + part(body) + ".",
        part({"alg": "None", "kid": kid}) + "." + part(body) + "." + signature,
        secret + "." + encoded(jwt.algorithms.HMACAlgorithm(hashlib.sha256).sign(secret.encode(), public)),
        jwt.encode(body, own, "RS256", headers={"kid": kid}),
        jwt.encode(body, own, "RS256", headers={"kid": kid, "jku": "http://127.0.0.1:1/keys", "jwk": {"kty": "RSA"}}),
        jwt.encode(body, own, "RS256"),
        header + "." + part(body) + "." + signature,
        header + "." + part(body) + ".",
        part({"alg": "RS256", "kid": kid, "crit": ["b64"], "b64": False}) + "." + part(body) + "." + signature,
        part({"alg": "RS256", "kid": ["x"]}) + "." + part(body) + "." + signature,
    ]  # fmt: skip
    for token in forged:
        assert verifier.accepts(token)
        clock.advance(10)  # a fetch is allowed, so nothing hides behind the wait
        reason = await refusal(verifier, token)
        algorithm = json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["alg"]
        assert ("algorithm" in reason) == (algorithm != "RS256")


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c.d", "wk_x", "a b.c.d", "é.b.c"])
def test_credential_that_is_no_jwt_is_left_to_other_checks(server: Provider, clock: ManualClock, text: str) -> None:
    """So that its refusal is that of an API key."""
    assert not verifier_of(server, clock).accepts(text)


@pytest.mark.parametrize("payload", ["[" * 4000, "null", "3", "{", '{"a":1', '"x"', "\udcff"])
async def test_malformed_token_is_refused(server: Provider, clock: ManualClock, payload: str) -> None:
    """Also one that is nested deeper than a parser goes."""
    sent = encoded(payload.encode("utf-8", "surrogateescape"))
    for token in (f"{sent}.{part({})}.x", f"{part({'alg': 'RS256'})}.{sent}.x"):
        assert verifier_of(server, clock).accepts(token)
        assert await refusal(verifier_of(server, clock), token)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
signers = [(ec.generate_private_key(ec.SECP256R1()), "ES256"), (ed25519.Ed25519PrivateKey.generate(), "EdDSA")]


@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "jku", "crit", "typ", "b64"]), json_values),
    names=st.dictionaries(st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "tenant", "groups"]), json_values),
    good=st.booleans(),
    algorithm=st.sampled_from([*sorted(ALGORITHMS), "HS256", "none"]),
    signature=st.binary(max_size=80),
    signer=st.sampled_from([None, *signers]),
)
def test_token_without_the_issuers_key_gives_no_identity(
    header: dict[str, Any], names: dict[str, Any], good: bool, algorithm: str, signature: bytes, signer: Any
) -> None:
    """Whatever header and claims it has: an error of ours, never an identity, never another exception."""
    clock = ManualClock(1.7e9)
    verifier = make_verifier(Settings(oidc_issuer="https://issuer.example", oidc_role_map="*=admin"), clock)
    assert verifier is not None
    [keys] = verifier.issuers
    keys._keys = (_public("k1", signers[0][0], "ES384"), _public("k2", rsa_key, "RS256"))
    keys._tried_at = clock.monotonic()  # asked just now: no fetch
    if good:
        header |= {"alg": algorithm, "kid": "k2" if algorithm[0] in "RP" else "k1"}
        names |= {"iss": "https://issuer.example", "aud": "wakegate", "exp": 1.7e9 + 60, "tenant": "acme", "sub": "a"}
        names.pop("nbf", None)
        names.pop("iat", None)
    start = part(header) + "." + part(names)
    sign = jwt.algorithms.get_default_algorithms()[signer[1]].sign(start.encode(), signer[0]) if signer else signature
    token = start + "." + encoded(sign)
    if verifier.accepts(token):
        with pytest.raises((UnauthorizedError, UnavailableError)):
            asyncio.run(verifier.verify(token))


rsa_key = rsa.generate_private_key(65537, 2048)
fields = st.dictionaries(
    st.sampled_from(["kty", "crv", "n", "e", "x", "y", "kid", "alg", "use", "d", "k"]),
    json_values | st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "AQAB", "RS256", "HS256"]),
)


@given(st.dictionaries(st.just("keys"), json_values | st.lists(fields, max_size=5)))
def test_key_set_of_any_content_is_read_or_refused(document: dict[str, Any]) -> None:
    """Entries that are no key are skipped; a set without any key counts as an unreachable issuer."""
    with contextlib.suppress(UnavailableError):
        read_keys(document)


@pytest.mark.parametrize("bits", [1024, 2048])
def test_key_set_has_keys_that_are_long_enough_and_public(bits: int) -> None:
    """Short ones, secrets, and those for other uses are left out."""
    key = rsa.generate_private_key(65537, bits)
    good = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": "good"}
    private = jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True) | {"kid": "private"}
    others = [private, {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, good | {"use": "enc"}, good | {"alg": "HS256"}]
    if bits < 2048:
        with pytest.raises(UnavailableError):
            read_keys({"keys": [good, *others]})
    else:
        assert [each.kid for each in read_keys({"keys": [good, *others]})] == ["good"]
    with pytest.raises(UnavailableError):
        read_keys({"keys": [good] * 65})


def _public(kid: str, key: Any, algorithm: str) -> Any:
    from gateway.identity.oidc_keys import PublicKey

    return PublicKey(kid, key.public_key(), frozenset((algorithm,)))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"tenant": "acme"}, "groups"),
        ({"tenant": "acme", "groups": ["others"]}, "groups"),
        ({"tenant": "acme", "groups": {"admins": 1}}, "groups"),
        ({"groups": ["admins"]}, "tenant"),
        ({"tenant": "../etc", "groups": ["admins"]}, "tenant"),
        ({"tenant": ["acme"], "groups": ["admins"]}, "tenant"),
    ],
)
async def test_token_without_role_or_tenant_is_refused_with_the_claim(
    server: Provider, clock: ManualClock, found: dict[str, Any], message: str
) -> None:
    """403: who it is, is known; that it may do something here is not."""
    verifier = verifier_of(server, clock, oidc_role_map="admins=admin")
    with pytest.raises(PermissionDeniedError, match=f"claim {message}"):
        await verifier.verify(server.token("carl", **found))


async def test_nested_claims_and_fixed_values_are_read(server: Provider, clock: ManualClock) -> None:
    """As Keycloak nests roles, and for an issuer that knows no tenants."""
    verifier = verifier_of(
        server, clock, oidc_tenant_claim="=acme", oidc_roles_claim="realm_access.roles", oidc_user_claim="email",
        oidc_role_map="wakegate-*=viewer",
    )  # fmt: skip
    token = server.token("dora", realm_access={"roles": ["offline", "wakegate-eu"]}, email="d@acme.example")
    with pytest.raises(PermissionDeniedError, match="claim email"):  # the provider gives it with the scope email only
        await verifier.verify(token)
    shared = verifier_of(server, clock, oidc_tenant_claim="=acme", oidc_user_claim="=", oidc_role_map="*=viewer")
    identity = await shared.verify(token)
    assert (identity.tenant, identity.user, identity.role) == ("acme", "", Role.VIEWER)


async def test_discovery_document_of_another_issuer_is_refused(server: Provider, clock: ManualClock) -> None:
    """The document must name the very issuer that was set (OpenID Connect Discovery 4.3)."""
    verifier = verifier_of(server, clock, oidc_issuer=server.issuer + "/")
    with pytest.raises(UnavailableError, match="names another issuer"):
        await verifier.refresh()
    direct = verifier_of(server, clock, oidc_jwks_url=server.issuer + "/jwks")
    await direct.refresh()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"oidc_issuer": "http://issuer.example"}, "expected https"),
        ({"oidc_issuer": "https://me:secret@issuer.example"}, "password"),
        ({"oidc_issuer": "issuer.example"}, "expected https"),
        ({"oidc_issuer": "https://[::1"}, "not a URL"),
        ({"oidc_role_map": ""}, "--oidc-role-map"),
        ({"oidc_role_map": "a=root"}, "GROUP=ROLE"),
        ({"oidc_role_map": "a=session"}, "GROUP=ROLE"),
        ({"oidc_tenant_claim": "=No Name"}, "--oidc-tenant-claim"),
        ({"oidc_audience": ","}, "--oidc-audience"),
        ({"oidc_issuer": "https://a,https://b", "oidc_jwks_url": "https://a/k"}, "--oidc-jwks-url"),
        ({"oidc_issuer": ""}, "--oidc-issuer"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_the_start(changes: dict[str, str], problem: str) -> None:
    """Each with what to write instead."""
    settings = Settings(**{"oidc_issuer": "https://issuer.example", "oidc_role_map": "*=member"} | changes)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=problem):
        make_verifier(settings, ManualClock())


def test_issuer_alone_turns_authentication_on() -> None:
    """And keys are fetched in the clear from this machine only."""
    assert requires_identity(Settings(oidc_issuer="https://issuer.example"))
    assert not url_problem("http://127.0.0.1:8080/x")
    assert url_problem("http://10.0.0.1/x")

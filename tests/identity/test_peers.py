"""What gateways sign for each other, and what a stranger cannot make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.identity import ANONYMOUS, Identity, Role, SessionScope
from gateway.core.model import SessionId
from gateway.identity.peers import MAX_SKEW_S, PeerSigner
from gateway.identity.shared_secret import SharedSecret
from gateway.testing import ManualClock
from tests.support.two_gateways import two
from tests.support.waiting import wait_until

IDENTITIES = [
    ANONYMOUS,
    Identity(Role.MEMBER, "acme", "key:a", "ann", "a", frozenset(("x/y",))),
    Identity(Role.SESSION, "acme", "by", scope=SessionScope(SessionId("s"), ("/api/files",), (8000,))),
]


def signer(secret: bytes = b"secret", clock: ManualClock | None = None) -> PeerSigner:
    made = PeerSigner(clock or ManualClock())
    made.open(SharedSecret(secret))
    return made


@pytest.mark.parametrize("identity", IDENTITIES)
def test_identity_arrives_as_it_was_signed(identity: Identity) -> None:
    """At every gateway of the store, for the request that it was signed for and no other."""
    signed = signer().sign(identity, "POST", b"/a")
    assert signer().verify(signed, "POST", b"/a") == identity
    assert signer().verify(signed, "GET", b"/a") is None
    assert signer().verify(signed, "POST", b"/b") is None
    assert signer(b"other").verify(signed, "POST", b"/a") is None
    assert PeerSigner(ManualClock()).verify(signed, "POST", b"/a") is None


def test_expired_signature_is_refused() -> None:
    """Beyond what two clocks may differ by, either way."""
    clock = ManualClock()
    signed = signer(clock=clock).sign(ANONYMOUS, "GET", b"/")
    clock.advance(MAX_SKEW_S)
    assert signer(clock=clock).verify(signed, "GET", b"/") == ANONYMOUS
    clock.advance(1)
    assert signer(clock=clock).verify(signed, "GET", b"/") is None
    clock.advance(-2 * MAX_SKEW_S - 2)
    assert signer(clock=clock).verify(signed, "GET", b"/") is None


@given(st.binary(max_size=200), st.integers(0, 400), st.binary(max_size=2))
def test_changed_signature_is_refused(noise: bytes, at: int, put: bytes) -> None:
    """Any bytes, and a good value with any change; none raises."""
    good = signer().sign(IDENTITIES[1], "GET", b"/")
    changed = good[:at] + put + good[at + len(put) :]
    assert signer().verify(noise, "GET", b"/") is None
    assert changed == good or signer().verify(changed, "GET", b"/") is None


@pytest.mark.processes
def test_key_reaches_its_session_through_the_other_gateway(tmp_path: Path) -> None:
    """Data path, control surfaces and tools are passed on for the identity that the first gateway found.

    Another tenant's key finds nothing through either, and what a client itself says of gateways is not believed.
    """
    admin = tmp_path / "admin"
    admin.write_text("a" * 40)
    with two(tmp_path, "--admin-key-file", str(admin)) as (a, b, _):
        by_admin = {"authorization": f"Bearer {'a' * 40}"}

        def key(tenant: str) -> dict[str, str]:
            body = {"role": "member", "tenant": tenant}
            text = a.client.post("/v1/keys", json=body, headers=by_admin).json()["key"]
            headers = {"authorization": f"Bearer {text}"}
            wait_until(lambda: b.client.get("/v1/caller", headers=headers).status_code == 200, "b knows the key")
            return headers

        acme, other = key("acme"), key("other")
        session = a.client.post("/v1/sessions", json={}, headers=acme).json()["id"]
        run: dict[str, Any] = {"json": {"command": ["sh", "-c", "echo hello; env"]}}
        call = {"id": "c", "type": "function", "function": {"name": "run_shell", "arguments": '{"command": "echo hi"}'}}
        for server in (a, b):
            with_session = {**acme, "x-session-id": session}
            reply = server.client.post("/api/execute", headers=with_session, **run)
            assert "hello" in reply.text, reply.text
            assert acme["authorization"][7:] not in reply.text
            assert "wakegate-peer" not in reply.text.lower()
            told = server.client.post("/v1/tool_calls", json={"tool_calls": [call]}, headers=with_session)
            assert "hi" in told.text, told.text
            assert server.client.get(f"/v1/sessions/{session}", headers=acme).json()["state"] == "active"
            for headers in (other, {**other, "x-wakegate-hops": "1"}, {**other, "x-wakegate-peer": "e30.AAAA"}):
                strange = {**headers, "x-session-id": session}
                assert server.client.post("/api/execute", headers=strange, **run).status_code == 404
                assert server.client.get(f"/v1/sessions/{session}", headers=headers).status_code == 404
            assert (
                server.client.post(
                    "/api/execute", headers={"x-session-id": session, "x-wakegate-hops": "1"}, **run
                ).status_code
                == 401
            )
        assert b.client.post(f"/v1/sessions/{session}/hibernate", headers=other).status_code == 404
        assert b.client.post(f"/v1/sessions/{session}/hibernate", headers=acme).json()["state"] == "hibernated"

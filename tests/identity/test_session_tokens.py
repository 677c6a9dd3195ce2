"""Tokens for one session: what makes one valid, and what one may reach."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import jwt
import pytest

from gateway.core.errors import BadRequestError, PermissionDeniedError, UnauthorizedError
from gateway.core.identity import ANONYMOUS, Identity, Role, SessionScope
from gateway.core.model import SessionId
from gateway.identity import session_tokens
from gateway.identity.scope import require_use
from tests.support.records import T0, session

KEY = b"k" * 32
SESSION = replace(session("s1"), tenant="acme", user="ann")


def issue(lifetime: float = 60.0, **scope: object) -> str:
    return session_tokens.issue(SESSION, KEY, T0, lifetime, subject="key:abc", **scope)  # type: ignore[arg-type]


def test_token_gives_access_to_its_session_only() -> None:
    """With the session's tenant and user, so that it sees nothing that they do not."""
    identity = session_tokens.verify(issue(paths=("/api/files",), ports=(8000,)), KEY, T0 + 59)
    assert identity.role is Role.SESSION
    assert identity.scope == SessionScope(SessionId("s1"), ("/api/files",), (8000,))
    assert identity.sees(SESSION)
    assert not identity.sees(replace(SESSION, id=SessionId("s2")))
    assert not identity.sees(replace(SESSION, tenant="other"))


def forged(**header: str) -> str:
    """A token with the payload of a good one and another header, unsigned."""
    payload = issue().split(".")[1]
    head = base64.urlsafe_b64encode(json.dumps({"typ": "JWT", **header}).encode()).rstrip(b"=").decode()
    return f"wst_{head}.{payload}."


@pytest.mark.parametrize(
    "token",
    [
        "wst_", "wst_a.b.c", issue()[:-2] + "AA", forged(alg="none"), forged(alg="HS512"),
        "wst_" + jwt.encode({"sub": "s1", "aud": "wakegate-session", "ten": "acme"}, KEY, "HS256"),
        "wst_" + jwt.encode({"sub": "s1", "aud": "other", "ten": "acme", "exp": T0 + 60}, KEY, "HS256"),
        "wst_" + jwt.encode({"sub": "s1", "aud": "wakegate-session", "exp": T0 + 60}, KEY, "HS256"),
        session_tokens.issue(SESSION, b"o" * 32, T0, 60.0, subject=""),
    ],
)  # fmt: skip
def test_token_that_was_not_issued_is_refused(token: str) -> None:
    """Malformed, changed, unsigned, without an end or a tenant, for another audience, by another gateway."""
    with pytest.raises(UnauthorizedError, match="not valid"):
        session_tokens.verify(token, KEY, T0)


def test_expired_token_is_refused_with_the_reason() -> None:
    """From the second at which it ends."""
    with pytest.raises(UnauthorizedError, match="expired"):
        session_tokens.verify(issue(), KEY, T0 + 60)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lifetime": 0.0}, {"lifetime": 86401.0}, {"paths": ("api",)}, {"paths": ("/a/../b",)}, {"paths": ("/%2e",)},
        {"ports": (0,)}, {"ports": (65536,)}, {"paths": ("/a",) * 17},
    ],
)  # fmt: skip
def test_token_with_a_wrong_scope_is_not_issued(wrong: dict[str, object]) -> None:
    with pytest.raises(BadRequestError):
        issue(**wrong)  # type: ignore[arg-type]


FILES = SessionScope(SessionId("s1"), ("/api/files",), (8000,))


@pytest.mark.parametrize("path", ["/api/files", "/api/files/a/b", "/api/ports/8000/", "/api/ports/8000/x/../y"])
def test_scope_allows_its_paths_and_ports(path: str) -> None:
    """A port's own paths are its server's affair."""
    require_use(Identity(Role.SESSION, scope=FILES), path.encode())


@pytest.mark.parametrize(
    "path",
    [
        "/", "/api/execute", "/api/filesystem", "/api/files/../execute", "/api/files/%2e%2e/execute",
        "/api/files/..\\x", "/api/ports/8001/", "/api/ports/80000/", "/api/ports/08000x/", "/api/ports/", "//api/files",
    ],
)  # fmt: skip
def test_scope_refuses_everything_else(path: str) -> None:
    """Also what a server in the sandbox might resolve to another path."""
    with pytest.raises(PermissionDeniedError):
        require_use(Identity(Role.SESSION, scope=FILES), path.encode())


def test_roles_without_contents_reach_no_sandbox() -> None:
    """Operators and viewers; a member and a token without limits do."""
    for role in (Role.OPERATOR, Role.VIEWER):
        with pytest.raises(PermissionDeniedError, match=role):
            require_use(Identity(role), b"/api/execute")
    for identity in (ANONYMOUS, Identity(Role.MEMBER), Identity(Role.SESSION, scope=SessionScope(SessionId("s")))):
        require_use(identity, b"/api/execute")

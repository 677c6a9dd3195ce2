"""From the claims of a token of OpenID Connect to an identity. Pure.

A claim is named by its key, or by keys joined with dots where it lies deeper: `realm_access.roles`. Keys may have dots
themselves, so the longest key that is there wins: `kubernetes.io.namespace` is `namespace` in `kubernetes.io`. A value
that all tokens share is written `=VALUE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.errors import PermissionDeniedError, SettingsError, UnauthorizedError
from gateway.core.identity import KEY_ROLES, Identity, Role, is_tenant

SKEW_S = 30.0  # by which the issuer's clock and ours may differ
_MAX_GROUPS = 1000
_MAX_VALUE_CHARS = 256
_MAX_SHOWN = 128
_MAPPED_ROLES = KEY_ROLES  # the most powerful first: a person of several groups has the first of their roles


@dataclass(frozen=True, slots=True)
class ClaimMap:
    """Which claims say what. Of `tenant` and `roles`, the first claim that a token has counts."""

    tenant: Sequence[str]
    roles: Sequence[str]
    user: str
    role_map: Sequence[tuple[str, Role]]  # (group, role); a group that ends in * stands for all that begin so


def read_claim_map(tenant: str, roles: str, user: str, role_map: str) -> ClaimMap:
    """Parse the four settings. Raises SettingsError with every problem."""
    pairs: list[tuple[str, Role]] = []
    problems: list[str] = []
    for each in _split(role_map):
        group, equals, role = (part.strip() for part in each.rpartition("="))
        if not equals or not group or role not in _MAPPED_ROLES:
            known = ", ".join(_MAPPED_ROLES)
            problems.append(f"--oidc-role-map: {each!r}: expected GROUP=ROLE, where ROLE is one of {known}")
        else:
            pairs.append((group, Role(role)))
    if not pairs and not problems:
        problems.append(
            "--oidc-role-map: is needed with --oidc-issuer, e.g. 'wakegate-admins=admin,*=member'; without a role a"
            " token may do nothing"
        )
    for each in _split(tenant):
        if each.startswith("=") and not is_tenant(each[1:]):
            problems.append(f"--oidc-tenant-claim: {each[1:]!r} is not a tenant; expected a-z and 0-9")
    if problems:
        raise SettingsError(problems)
    return ClaimMap(_split(tenant), _split(roles), user.strip(), tuple(pairs))


def check_claims(claims: Mapping[str, Any], audiences: frozenset[str], now: float) -> float:
    """Until when a token counts, in epoch seconds. Raises UnauthorizedError for one that is not for us or not now."""
    sent = claims.get("aud")
    named = [sent] if isinstance(sent, str) else sent if isinstance(sent, list) else []
    if not any(isinstance(each, str) and each in audiences for each in named):
        raise UnauthorizedError(
            f"the token is for {_shown(sent)}, not for {' or '.join(sorted(audiences))} (claim aud, --oidc-audience)"
        )
    until = _time(claims, "exp")
    if until is None:
        raise UnauthorizedError("the token has no claim exp: a token that never expires is not accepted")
    if until + SKEW_S <= now:
        raise UnauthorizedError(f"the token expired {_ago(now - until)} ago; get another from its issuer")
    for name in ("nbf", "iat"):
        since = _time(claims, name)
        if since is not None and since - SKEW_S > now:
            raise UnauthorizedError(
                f"the token is not valid for another {_ago(since - now)} (claim {name}): the clocks of the issuer and"
                " this gateway differ"
            )
    return until + SKEW_S


def identity_of(claims: Mapping[str, Any], issuer: str, mapping: ClaimMap, expires_at: float) -> Identity:
    """Who a token stands for. Raises PermissionDeniedError, which names the claim that gives no role or no tenant."""
    role = _role(claims, mapping)
    tenant = _first(claims, mapping.tenant)
    if not isinstance(tenant, str) or not is_tenant(tenant):
        where = " or ".join(mapping.tenant)
        raise PermissionDeniedError(
            f"the token's claim {where} names no tenant: {_shown(tenant)} (--oidc-tenant-claim; a tenant is a name of"
            " lower-case letters, digits and hyphens)"
        )
    subject = _text(claims, "sub")
    # `sub` is unique among one issuer's persons only (OpenID Connect Core 5.7).
    place = issuer.partition("://")[2]
    user = f"{subject}@{place}" if mapping.user == "sub" and subject else _text(claims, mapping.user)
    if not user and not mapping.user.startswith("="):
        raise PermissionDeniedError(f"the token's claim {mapping.user} names no user (--oidc-user-claim)")
    return Identity(role, tenant, subject=f"oidc:{subject or user}@{place}", user=user, expires_at=expires_at)


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """The value of a claim by its dotted name, None without one; `=VALUE` is VALUE."""
    if name.startswith("="):
        return name[1:]
    if name in claims:
        return claims[name]
    # Shorter and shorter prefixes: `kubernetes.io.namespace` is looked for as a whole, then as `namespace` in
    # `kubernetes.io`, then as `io.namespace` in `kubernetes`. Within each, the rest is looked for in the same way.
    end = name.rfind(".")
    while end > 0:
        inner = claims.get(name[:end])
        if isinstance(inner, dict):
            return claim(inner, name[end + 1 :])
        end = name.rfind(".", 0, end)
    return None


def _role(claims: Mapping[str, Any], mapping: ClaimMap) -> Role:
    found = _first(claims, mapping.roles)
    groups = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    names = [each for each in groups[:_MAX_GROUPS] if isinstance(each, str)]
    given = {role for group, role in mapping.role_map if group == "*" or any(_is(name, group) for name in names)}
    for role in _MAPPED_ROLES:
        if role in given:
            return role
    raise PermissionDeniedError(
        f"the token's claim {' or '.join(mapping.roles)} gives no role here: {_shown(found)} (--oidc-roles-claim,"
        " --oidc-role-map)"
    )


def _is(name: str, group: str) -> bool:
    return name.startswith(group[:-1]) if group.endswith("*") else name == group


def _first(claims: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((value for name in names if (value := claim(claims, name)) is not None), None)


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claim(claims, name)
    if not isinstance(value, str):
        return ""
    if len(value) > _MAX_VALUE_CHARS or not value.isprintable():
        raise UnauthorizedError(f"the token's claim {name} is longer than {_MAX_VALUE_CHARS} letters, or no plain text")
    return value


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:  # NaN fails as well
        raise UnauthorizedError(f"the token's claim {name} is not a time: {_shown(value)}")
    return float(value)


def _ago(seconds: float) -> str:
    return f"{math.ceil(seconds)} s" if seconds < 600 else f"{math.ceil(seconds / 60)} min"


def _split(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _shown(value: object) -> str:
    text = "it is missing" if value is None else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."

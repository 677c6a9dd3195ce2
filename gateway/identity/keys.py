"""API keys: their form, and what is stored of one. Pure.

A key reads `wk_<id>_<secret><checksum>`, e.g. `wk_5bT0xKqZ_...`: a fixed prefix, so that scanners of repositories find
leaked ones; an id that may be shown and logged; 32 letters of secret (190 bits); and a CRC-32 of what stands before it,
so that a mistyped or cut key is recognised without a look-up. What is stored is an HMAC of the key, never the key.

Some versions of E2B's SDK send nothing but `e2b_` and hexadecimal digits. So each key has a second spelling: what
stands behind `wk_`, in hexadecimal. It is the same key: listed, revoked and rotated as one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.core.identity import Identity, Role
from gateway.core.model import DEFAULT_TENANT

PREFIX = "wk_"
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_CHARS = 8
_SECRET_CHARS = 32  # of 62 letters: 32 * log2(62) = 190 bits
_CHECKSUM_CHARS = 6  # 62**6 = 5.7e10 > 2**32 = 4.3e9
_E2B_PREFIX = "e2b_"
_E2B_FORM = re.compile(r"e2b_([0-9a-fA-F]{94})")  # of the 47 characters behind the prefix
_FORM = re.compile(r"wk_([0-9A-Za-z]{8})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})")


@dataclass(frozen=True, slots=True)
class APIKey:
    """What is stored of a key. Times in epoch seconds; `digest` in hex. Several keys of one `id` never exist."""

    id: str
    digest: str
    role: Role
    tenant: str = DEFAULT_TENANT
    name: str = ""  # for people
    user: str = ""  # the person that it acts for, if sessions are to be that person's alone
    runtimes: frozenset[str] = field(default_factory=frozenset)  # "namespace/name"; empty: all
    created_at: float = 0.0
    expires_at: float | None = None
    last_used_at: float | None = None  # kept apart (directory.py)

    def identity(self) -> Identity:
        """Who a request with this key acts for."""
        return Identity(
            self.role,
            self.tenant,
            subject=f"key:{self.id}",
            user=self.user,
            key_id=self.id,
            runtimes=self.runtimes,
            expires_at=float("inf") if self.expires_at is None else self.expires_at,
        )

    def document(self) -> dict[str, Any]:
        """The JSON object that is stored; `read` is its inverse. It does not contain the key."""
        return {
            "id": self.id,
            "digest": self.digest,
            "role": self.role.value,
            "tenant": self.tenant,
            "name": self.name,
            "user": self.user,
            "runtimes": sorted(self.runtimes),
            "createdAt": self.created_at,
            "expiresAt": self.expires_at,
        }

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> APIKey:
        """The inverse of `document`. Raises ValueError, KeyError, TypeError for anything else."""
        return cls(
            id=value["id"],
            digest=value["digest"],
            role=Role(value["role"]),
            tenant=value["tenant"],
            name=value["name"],
            user=value["user"],
            runtimes=frozenset(value["runtimes"]),
            created_at=float(value["createdAt"]),
            expires_at=None if value["expiresAt"] is None else float(value["expiresAt"]),
        )

    def used(self, at: float) -> APIKey:
        """The same record, with the time of its last use."""
        return replace(self, last_used_at=at)


def new_key() -> tuple[str, str]:
    """A new key, and the id by which it is listed and revoked."""
    key_id = _random(_ID_CHARS)
    body = f"{PREFIX}{key_id}_{_random(_SECRET_CHARS)}"
    return body + _checksum(body), key_id


def id_of(text: str) -> str | None:
    """The id of a well-formed key; None for anything else."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    return match[1] if _checksum(text[:-_CHECKSUM_CHARS]) == match[3] else None


def e2b_spelling(text: str) -> str:
    """A key as E2B's SDKs take it; `usual_spelling` is its inverse."""
    return _E2B_PREFIX + text.removeprefix(PREFIX).encode().hex()


def usual_spelling(text: str) -> str:
    """A key in E2B's spelling as it reads otherwise; anything else, such as an admin's key of that form, as it is."""
    match = _E2B_FORM.fullmatch(text)
    if match is None:
        return text
    key = PREFIX + bytes.fromhex(match[1]).decode("latin-1")
    return text if id_of(key) is None else key


def digest(text: str, secret: bytes) -> str:
    """What is stored in place of a credential: its HMAC-SHA-256 in hex."""
    # One fast hash is enough. A slow one (bcrypt, Argon2) makes guessing dear, and 190 random bits leave nothing to
    # guess; it would cost each first request 100 ms.
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def matches(text: str, stored: str, secret: bytes) -> bool:
    """Whether a credential is the stored one, in constant time."""
    return hmac.compare_digest(digest(text, secret), stored)


def _random(length: int) -> str:
    # Letter by letter: 32 bytes written in base 62 would have a shorter first letter, and a length that varies.
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def _checksum(body: str) -> str:
    number, text = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_CHARS):
        number, digit = divmod(number, len(_LETTERS))
        text = _LETTERS[digit] + text
    return text

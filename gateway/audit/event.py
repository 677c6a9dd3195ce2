"""What is recorded of one decision, bounded and without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

MAX_TEXT = 4096  # characters of one value
MAX_ENTRIES = 16  # of the detail
_MAX_NAME = 64
HIDDEN = "[redacted]"

_SECRET_NAME = re.compile(
    r"authorization|cookie|passw(or)?d|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential",
    re.IGNORECASE,
)
# Each pattern begins where a word does, or takes what it has looked at: none looks at a text again and again, which
# would hold the event loop while the writing thread has the interpreter.
_HEADER = re.compile(r"(?i)(authorization|cookie2?)(\\?[\"']?\s{0,8}[:=]\s{0,8}\\?[\"']?)[^\r\n\"']+")
_BEARER = re.compile(r"(?i)\b(bearer)\s{1,8}[A-Za-z0-9._~+/=-]{4,}")
_SCHEME = re.compile(r"(?i)\b(basic|digest|negotiate)\s{1,8}[A-Za-z0-9._~+/=-]{12,}")
# NAME=VALUE, "NAME": "VALUE", NAME: 'VALUE'
_NAMED = re.compile(
    r"(?i)(password|passwd|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential|jwt-assertion)"
    r"([\w-]{0,16}\\?[\"']?\s{0,8}[:=]\s{0,8}\\?[\"']?)[^\r\n\"'&;,#\s][^\r\n\"'&;,#]*"
)
_QUERY = re.compile(r"(?i)([?&](?:sig|signature|key|code|auth|jwt|x-amz-[\w-]{1,32})=)[^\s\"'&;,#]+")
# What is a secret by its form.
_OUR_KEY = re.compile(r"\b(?:wk_[A-Za-z0-9_-]+|wst_[A-Za-z0-9._-]+)")  # API keys, and tokens of sessions
_JWT = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_VENDOR_KEY = re.compile(
    r"\b(?:(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|xox[abeprs]-[A-Za-z0-9-]{8,})"
)
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,32}PRIVATE KEY-----)?")
_USERINFO = re.compile(r"(://)[^/\s:@]+:[^/\s@]+@")
# Each pattern above needs one of these. An event has a dozen short texts, ids, names and paths, and most have none:
# one search in place of ten substitutions makes its line in a quarter of the time.
_SUSPECT = re.compile(
    r"-----begin|authorization|cookie|bearer|basic|digest|negotiate|password|passwd|passphrase|secret|token|api[-_]?key"
    r"|access[-_]?key|private[-_]?key|credential|jwt-assertion|[?&]|wk_|wst_|eyj|[spr]k[-_]|gh[pousr]_|github_pat_"
    r"|a[ks]ia|xox|://",
    re.IGNORECASE,
)
_HEX = re.compile(r"[0-9a-f.:-]*")  # ids, hashes and addresses, which have nothing of that


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it, as far as it is known."""

    subject: str = "anonymous"
    tenant: str = ""
    role: str = ""
    key_id: str = ""
    address: str = ""  # of the client


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One decision. `at` in epoch seconds; `status` and `code`: the answer's, 0 where there was none."""

    at: float
    action: str  # e.g. session.create
    actor: Actor
    status: int
    code: str = ""  # of an error
    session: str = ""
    runtime: str = ""
    request_id: str = ""
    detail: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def event_fields(event: AuditEvent) -> dict[str, Any]:
    """An event as its line has it: empty fields left out, every text bounded and without secrets."""
    actor = event.actor
    who = {
        "subject": actor.subject, "tenant": actor.tenant, "role": actor.role, "key_id": actor.key_id,
        "address": actor.address,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "time": timestamp(event.at),
        "action": clean(event.action),
        "actor": {name: clean(value) for name, value in who.items() if value},
        "status": event.status,
    }
    texts = {"code": event.code, "session": event.session, "runtime": event.runtime, "request_id": event.request_id}
    fields |= {name: clean(value) for name, value in texts.items() if value}
    if event.detail:
        fields["detail"] = _detail(event.detail)
    return fields


def _detail(detail: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in list(detail.items())[:MAX_ENTRIES]:
        known = clean(str(name))[:_MAX_NAME]
        if _SECRET_NAME.search(known):
            found[known] = HIDDEN
        elif isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 63):
            found[known] = value
        else:
            found[known] = clean(str(value))
    if len(detail) > MAX_ENTRIES:
        found["left_out"] = len(detail) - MAX_ENTRIES
    return found


def clean(text: str) -> str:
    """A text without secrets, at most MAX_TEXT characters of it, that can be written as UTF-8."""
    # Cut twice: secrets are looked for in a bounded text, and one at its edge is hidden before the edge cuts it.
    shown = redact(text[: 2 * MAX_TEXT])
    shown = shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 3] + "..."
    return shown.encode("utf-8", "replace").decode()


def redact(text: str) -> str:
    """The text with what looks like a credential replaced: header values, tokens, keys, passwords, query tokens."""
    return hide_secrets(text) if may_have_secrets(text) else text


def may_have_secrets(text: str) -> bool:
    """Whether `hide_secrets` could find anything."""
    return not _HEX.fullmatch(text) and _SUSPECT.search(text) is not None


def hide_secrets(text: str) -> str:
    """What `redact` does with a text that may have some."""
    text = _PEM.sub(HIDDEN, text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)  # the rest of the line is the secret
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    text = _NAMED.sub(rf"\1\2{HIDDEN}", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _OUR_KEY.sub(f"wk_{HIDDEN}", text)
    text = _JWT.sub(HIDDEN, text)
    text = _VENDOR_KEY.sub(HIDDEN, text)
    return _USERINFO.sub(rf"\1{HIDDEN}@", text)


def timestamp(at: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

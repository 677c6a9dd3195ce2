"""What a line of the audit trail may say: bounded, readable by anybody, and never a credential."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audit.chain import MAX_LINE_BYTES, Position, encode
from gateway.audit.event import (
    HIDDEN,
    MAX_ENTRIES,
    MAX_TEXT,
    Actor,
    AuditEvent,
    event_fields,
    hide_secrets,
    may_have_secrets,
    redact,
)

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc.def-123", "abc.def"),
        ("authorization: AWS4-HMAC-SHA256 Credential=x/y, Signature=feed", "feed"),
        ("curl -H 'Authorization: Basic dXNlcjpwYXNzd29yZA=='", "dXNlcjpw"),
        ("Proxy-Authorization: Digest username=u, response=0badc0de", "0badc0de"),
        ("Cookie: session=hush; theme=dark", "hush"),
        ("set-cookie: id=hush; Path=/", "hush"),
        ('{"authorization": "Bearer hush-hush"}', "hush"),
        ("wk_live_0123456789abcdef", "0123456789"),
        ("use wk_a-b_c now", "a-b_c"),
        (f"header {JWT} footer", "c2lnbmF0dXJl"),
        ("https://gateway.example/x?token=hush&y=1", "hush"),
        ("/v1/files?access_token=hush", "hush"),
        ("https://bucket/x?X-Amz-Signature=0badc0de&z=1", "0badc0de"),
        ("/x?sig=0badc0de", "0badc0de"),
        ("https://user:hush@example.org/", "hush"),
        ("export OPENAI_API_KEY=sk-0123456789abcdef0123", "0123456789"),
        ("sk-proj-0123456789abcdef0123", "0123456789"),
        ("ghp_0123456789abcdef0123456789abcdef0123", "0123456789"),
        ("AWS_SECRET_ACCESS_KEY = 'hush/hush'", "hush"),
        ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
        ('{"password": "hush hush", "user": "u"}', "hush"),
        ('"{\\"password\\": \\"hush\\"}"', "hush"),
        ("PGPASSWORD=hush psql", "hush"),
        ("db_password: hush", "hush"),
        ("client-secret=hush", "hush"),
        ("-----BEGIN EC PRIVATE KEY-----\nhush\n-----END EC PRIVATE KEY-----", "hush"),
        ("-----BEGIN PRIVATE KEY-----\nhush", "hush"),
        ("x-api-key: hush", "hush"),
        # Each word of may_have_secrets by itself.
        ("bearer hush-hush", "hush"),
        ("digest 0123456789abcdef", "0123456789"),
        ("basic dXNlcjpwYXNzd29yZA", "dXNlcjpw"),
        ("negotiate 0123456789abcdef", "0123456789"),
        ("passwd: hush", "hush"),
        ("passphrase: hush", "hush"),
        ("access-key: hush", "hush"),
        ("privateKey: hush", "hush"),
        ("credential=hush", "hush"),
        ("jwt-assertion: hush", "hush"),
        ("?key=hush", "hush"),
        ("&auth=hush", "hush"),
        ("wst_abc.def", "abc.def"),
        (JWT, "c2lnbmF0dXJl"),
        ("rk_0123456789abcdef", "0123456789"),
        ("pk-0123456789abcdef", "0123456789"),
        ("gho_0123456789abcdef0123", "0123456789"),
        ("github_pat_0123456789abcdef0123", "0123456789"),
        ("ASIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
        ("xoxb-0123456789", "0123456789"),
        ("://u:hush@x", "hush"),
    ],
)
def test_credential_is_never_written(text: str, secret: str) -> None:
    """Whether it is known by its name or by its form."""
    assert secret in text
    assert secret not in redact(text)
    assert HIDDEN in redact(text)
    event = AuditEvent(0, "command.run", Actor(), 200, detail={"text": text})
    assert secret not in orjson.dumps(event_fields(event)).decode()


_WORDS = (
    "Authorization", "cookie", "Cookie2", "bearer", "Basic", "digest", "negotiate", "password", "passwd", "passphrase",
    "SECRET", "token", "api_key", "apikey", "access-key", "privateKey", "credential", "jwt-assertion", "?sig", "&key",
    "?x-amz-date", "wk_", "wst_", "eyJabcdef", "sk-", "rk_", "ghp_", "github_pat_", "AKIA", "ASIA", "xoxb-",
    "-----BEGIN PRIVATE KEY-----", "://", "u:p@", ": ", "=", " ", '"', ".", "0123456789abcdef", "ABCDEFGHIJKLMNOP",
)  # fmt: skip


@given(
    st.lists(
        st.one_of(st.sampled_from(_WORDS), st.sampled_from(_WORDS).map(str.upper), st.text(max_size=3)), max_size=8
    )
)
def test_no_credential_escapes_the_look_for_suspect_words(parts: list[str]) -> None:
    """A text that is passed by as having none of the words of credentials has no credential."""
    text = "".join(parts)
    assert may_have_secrets(text) or hide_secrets(text) == text


def test_ordinary_text_stays_as_it_is() -> None:
    """Redaction changes nothing in text without secrets."""
    for text in ("python3 -c 'print(1)'", "ls -la /workspace", "the basic idea", "https://example.org/a?page=2"):
        assert redact(text) == text


def test_value_under_a_secrets_name_is_hidden_whatever_it_is() -> None:
    """It may have no form to know it by."""
    detail = event_fields(AuditEvent(0, "key.create", Actor(), 201, detail={"api_key": "hush", "name": "ci"}))["detail"]
    assert detail == {"api_key": HIDDEN, "name": "ci"}


def test_secret_at_the_end_of_a_shortened_text_is_hidden() -> None:
    """It is hidden before the text is cut."""
    text = "x" * (MAX_TEXT - 30) + " " + JWT  # of which only the whole is known to be one
    assert "eyJ" not in event_fields(AuditEvent(0, "a", Actor(), 200, detail={"t": text}))["detail"]["t"]


@given(
    st.text(),
    st.dictionaries(st.text(), st.text() | st.integers() | st.floats() | st.booleans()),
    st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, codec=None), max_size=3),
)
def test_any_event_makes_a_line_of_bounded_size(
    text: str, detail: dict[str, str | int | float | bool], odd: str
) -> None:
    """Also of lone surrogates, of numbers beyond 64 bits, and of a great many entries."""
    event = AuditEvent(1.5, text + odd, Actor(subject=text, address=odd), 200, text, text, odd, text, detail)
    line = encode(Position(), "event", event_fields(event))
    assert len(line) < MAX_LINE_BYTES
    assert b"\n" not in line


def test_largest_event_fits_a_line() -> None:
    """Texts of control characters, each of which takes six bytes."""
    much = "\0" * 10 * MAX_TEXT
    detail = {f"{much}{number}": much for number in range(3 * MAX_ENTRIES)}
    event = AuditEvent(0, much, Actor(much, much, much, much, much), 200, much, much, much, much, detail)
    fields = event_fields(event)
    assert len(encode(Position(), "event", fields)) < MAX_LINE_BYTES
    assert len(fields["detail"]) <= MAX_ENTRIES + 1


def test_session_token_is_hidden_wherever_it_stands() -> None:
    """Its JWT begins behind a prefix, where one alone would not be looked for."""
    token = "wst_eyJhbGciOiJIUzI1NiJ9.eyJhdWQiOiJ4In0.abcDEF123_-"
    for text in (f"echo {token} now", token, f"url?t={token}&x=1", f"[{token}]"):
        assert "eyJ" not in redact(text)
        assert "abcDEF" not in redact(text)

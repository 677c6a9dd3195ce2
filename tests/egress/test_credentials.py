"""Where credentials go in a request, and that answers come without them."""

from __future__ import annotations

import base64
import random

import pytest

from gateway.egress.credentials import Credential, Mask, check_value, fill, host_rules, placeholder_of
from gateway.egress.http_head import parse_request

VALUE = "sk-test/4fGh+Zq&9<k>"
HOLDER = placeholder_of("code-interpreters/default/a", "KEY")


def credential(place: str = "", argument: str = "", value: str = VALUE) -> Credential:
    return Credential("KEY", host_rules("api.example.com"), place, argument, HOLDER, value)


def filled(lines: str, *credentials: Credential) -> tuple[dict[bytes, list[bytes]], str]:
    head = parse_request(("\r\n".join(lines.split("\n")) + "\r\n\r\n").encode())
    fields, target = fill(head, credentials)
    return {name: [value for other, value in fields if other == name] for name, _ in fields}, target


@pytest.mark.parametrize(
    ("place", "argument", "name", "content"),
    [
        ("bearer", "", b"authorization", f"Bearer {VALUE}"),
        ("header", "X-Api-Key", b"x-api-key", VALUE),
        ("basic", "me", b"authorization", "Basic " + base64.b64encode(f"me:{VALUE}".encode()).decode()),
    ],
)
def test_place_of_a_credential_is_filled_whatever_code_put_there(
    place: str, argument: str, name: bytes, content: str
) -> None:
    """A key of the code's own does not get through, and twice a field becomes one."""
    for own in ("", f"\n{name.decode()}: own", f"\n{name.decode().upper()}: own\n{name.decode()}: {HOLDER}"):
        fields, target = filled(f"GET /v1?a=b HTTP/1.1\nHost: x{own}", credential(place, argument))
        assert fields[name] == [content.encode()]
        assert target == "/v1?a=b"


@pytest.mark.parametrize("query", ["", "?", "?a=1&key=own&b=2", "?k%65y=own&key=", "?key"])
def test_parameter_of_a_query_is_filled_once(query: str) -> None:
    """However code has written its own."""
    _, target = filled(f"GET /v1{query} HTTP/1.1\nHost: x", credential("query", "key"))
    assert target.count("key=") == 1
    assert target.endswith("key=sk-test%2F4fGh%2BZq%269%3Ck%3E")
    assert "own" not in target


def test_placeholder_is_replaced_in_headers_alone() -> None:
    """Within Basic too, as git and curl send it; not in the target, in Host, nor another runtime's."""
    basic = base64.b64encode(f"me:{HOLDER}".encode()).decode()
    other = placeholder_of("code-interpreters/default/b", "KEY")
    fields, target = filled(
        f"GET /{HOLDER} HTTP/1.1\nHost: {HOLDER}\nX-One: a {HOLDER} b\nAuthorization: Basic {basic}\nX-Two: {other}",
        credential(),
    )
    assert target == f"/{HOLDER}"
    assert fields[b"host"] == [HOLDER.encode()]
    assert fields[b"x-one"] == [f"a {VALUE} b".encode()]
    assert base64.b64decode(fields[b"authorization"][0][6:]) == f"me:{VALUE}".encode()
    assert fields[b"x-two"] == [other.encode()]


@pytest.mark.parametrize("form", [
    VALUE, "sk-test%2F4fGh%2BZq%269%3Ck%3E", "sk-test/4fGh+Zq&amp;9&lt;k&gt;",
    base64.b64encode(f"me:{VALUE}".encode()).decode().rstrip("="),
    base64.b64encode(VALUE.encode()).decode().rstrip("="),
])  # fmt: skip
def test_value_in_an_answer_is_masked_however_it_is_cut(form: str) -> None:
    """Whole, byte by byte, and in random pieces; lengths stay. Cut finely, at most its first three bytes get out."""
    text = b'{"sent": "' + form.encode() + b'", "sk-": "sk-test"} sk-' + form.encode()
    whole = Mask([credential("basic", "me")]).whole(text)
    assert form.encode() not in whole
    assert len(whole) == len(text)
    shuffled = random.Random(7)
    for size in (1, 2, 3, 5, 1000, 0, 0, 0):
        mask, came, at = Mask([credential("basic", "me")]), b"", 0
        while at < len(text):
            step = size or shuffled.randrange(1, 12)
            came += mask.feed(text[at : at + step])
            at += step
        came += mask.flush()
        assert len(came) == len(text)
        assert form.encode()[3:] not in came
        assert came.startswith(b'{"sent": "')
        assert b'", "sk-": "sk-test"} sk-' in came


def test_text_without_a_value_is_never_held_back() -> None:
    """Not even where it ends with the first letters of one: events would wait for the next."""
    mask = Mask([credential()])
    for text in (b"data: s", b"k", b"-", b"\n\n", b"sk-", b"sk", b"task"):
        assert mask.feed(text) == text


@pytest.mark.parametrize(
    "text", ["", "short", "a" * 5000, "two\nlines of it", "bell\a in it", "ümlaut it is", " leading"]
)
def test_value_that_no_header_can_carry_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        check_value(text)
    assert not text or text not in str(caught.value)


def test_end_of_line_is_not_of_a_value() -> None:
    """As editors and `echo` leave it."""
    assert check_value("sk-12345678\n") == "sk-12345678"


@pytest.mark.parametrize("text", ["any", "10.0.0.0/8", "pypi", "93.184.216.34", "", "api", "https://api.example.com"])
def test_credential_is_for_named_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        host_rules(text)

"""The form of API keys, and what is stored of them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.identity import Role
from gateway.identity import keys
from gateway.identity.keys import APIKey

KEY = keys.new_key()[0]


def test_key_has_a_prefix_for_scanners_and_an_id_that_may_be_shown() -> None:
    """`wk_<id>_<secret><checksum>`, of letters that need no quoting anywhere; two are never alike."""
    text, key_id = keys.new_key()
    assert re.fullmatch(r"wk_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}", text)
    assert text.startswith(f"wk_{key_id}_")
    assert keys.id_of(text) == key_id
    assert keys.new_key()[0] != text


@given(st.data())
def test_mistyped_key_is_distinguished_from_an_unknown_one(data: st.DataObject) -> None:
    """Any one changed letter breaks the checksum, so a mistyped key needs no look-up."""
    text = KEY
    at, letter = data.draw(st.integers(3, len(text) - 1)), data.draw(st.sampled_from("aZ09_"))
    changed = text[:at] + letter + text[at + 1 :]
    assert changed == text or keys.id_of(changed) is None


@given(st.text(max_size=80))
def test_any_text_is_either_a_key_or_none(text: str) -> None:
    """No text raises."""
    assert keys.id_of(text) is None
    assert keys.id_of(text + keys.new_key()[0]) is None or text == ""


def test_key_has_a_spelling_that_e2bs_clients_take() -> None:
    """Some of them demand `e2b_` and hexadecimal digits; both spellings are one key, in either case of the digits."""
    spelled = keys.e2b_spelling(KEY)
    assert re.fullmatch(r"e2b_[0-9a-f]+", spelled)
    assert keys.usual_spelling(spelled) == keys.usual_spelling("e2b_" + spelled[4:].upper()) == KEY
    assert keys.usual_spelling(KEY) == KEY


@given(st.binary(min_size=47, max_size=47) | st.binary(max_size=60))
def test_other_texts_of_that_form_stay_as_they_are(data: bytes) -> None:
    """An admin's key, which may have any form, is not taken for a spelling of another; nothing raises."""
    text = "e2b_" + data.hex()
    assert keys.usual_spelling(text) == text


def test_digest_depends_on_the_gateways_secret() -> None:
    """What one store keeps is worth nothing beside another's secret, and no key matches another's digest."""
    text, _ = keys.new_key()
    assert keys.matches(text, keys.digest(text, b"secret"), b"secret")
    assert not keys.matches(text, keys.digest(text, b"secret"), b"other")
    assert not keys.matches(keys.new_key()[0], keys.digest(text, b"secret"), b"secret")
    assert text not in keys.digest(text, b"secret")


def test_stored_key_reads_back() -> None:
    """Every field, through its stored form."""
    key = APIKey("abc", "00", Role.VIEWER, "t", "name", "ann", frozenset(("a/b",)), 1.5, 2.5)
    assert APIKey.read(key.document()) == key
    assert APIKey.read(APIKey("abc", "00", Role.ADMIN).document()).expires_at is None

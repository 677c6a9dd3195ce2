"""Pages of text files: whole characters, and nothing replaced unsaid."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.tools.text_files import decode_page

TEXT = "Grüße, 世界 🎈! " * 4


@given(
    st.text(min_size=1, max_size=60).filter(lambda text: "\0" not in text and text[0] != "\ufeff"), st.integers(4, 9)
)
def test_pages_of_utf8_join_to_the_file(text: str, length: int) -> None:
    """Read on where each page says, whatever characters are at its borders."""
    data, offset, parts = text.encode(), 0, []
    while offset < len(data):
        page = decode_page(data[offset : offset + length], offset, len(data))
        assert page is not None
        assert page.notes == ()
        assert page.start == offset
        parts.append(page.text)
        offset = page.end
    assert "".join(parts) == text


def test_page_that_begins_within_a_character_has_its_true_start() -> None:
    """The bytes before are those of another page."""
    data = "é".encode() * 5
    page = decode_page(data[1:], 1, len(data))
    assert page is not None
    assert (page.text, page.start, page.end) == ("é" * 4, 2, 10)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "shift_jis"])
def test_other_encoding_is_guessed_and_named(encoding: str) -> None:
    """Or given away by a byte order mark."""
    text = {"shift_jis": "これは日本語の文章です。今日は良い天気ですね。" * 20}.get(
        encoding, "Die Grüße aus Köln, schöne Tage für Übung. " * 20
    )
    page = decode_page(text.encode(encoding), 0, len(text.encode(encoding)))
    assert page is not None
    assert page.text.lstrip("\ufeff") == text
    assert len(page.notes) == 1


def test_few_broken_bytes_are_shown_as_they_are() -> None:
    """Text that is UTF-8 but for some bytes stays readable; they are counted."""
    data = TEXT.encode() + b"\xff" + TEXT.encode()
    page = decode_page(data, 0, len(data))
    assert page is not None
    assert page.text == f"{TEXT}\\xff{TEXT}"
    assert page.notes == ("1 bytes are not UTF-8; they are shown as \\xNN",)


def test_binary_file_is_not_decoded() -> None:
    """A NUL gives it away."""
    assert decode_page(b"\x7fELF\0\0", 0, 6) is None

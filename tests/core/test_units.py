"""Go durations and Kubernetes quantities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.units import parse_duration, parse_lifetime, parse_quantity, readable_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("0s", 0.0), ("15m", 900.0), ("8h", 28800.0), ("1h30m", 5400.0), ("1.5h", 5400.0), (".5s",
        0.5), ("1.s", 1.0),
        ("250ms", 0.25), ("10us", 1e-5), ("10µs", 1e-5), ("5ns", 5e-9), ("1m1m", 120.0), ("2h0m0s", 7200.0),
    ],
)  # fmt: skip
def test_parse_duration_reads_what_go_reads(text: str, seconds: float) -> None:
    """Every unit, fractions and sums."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "5", "m", "1 m", "1d", "-5s", "+5s", "1m 30s", "5S", "1e3s", "1,5s", "s5", "15m!", "\n5s"]
)
def test_parse_duration_refuses_the_rest(text: str) -> None:
    """The message shows the text and what would be right."""
    with pytest.raises(ValueError, match="is not a duration; write a number with a unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("1", 1), ("0.5", 0.5), ("250m", 0.25), ("512Mi", 512 * 2**20), ("2Gi", 2**31), ("1G", 1e9),
        ("1k", 1e3),
        ("1Ki", 1024), ("1e3", 1000), ("1E3", 1000), ("1E", 1e18), ("1Ei", 2.0**60), ("12e-1", 1.2), ("5u", 5e-6),
        ("100n", 1e-7),
    ],
)  # fmt: skip
def test_parse_quantity_reads_what_kubernetes_reads(text: str, number: float) -> None:
    """Decimal and binary suffixes, exponents and fractions."""
    assert parse_quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "1GB", "512mb", "-1", "1K", "0x10", "1.2.3", "one", "1mi"])
def test_parse_quantity_refuses_the_rest(text: str) -> None:
    """The message shows the text and what would be right."""
    with pytest.raises(ValueError, match="is not a quantity; write a number"):
        parse_quantity(text)


@given(st.text())
def test_units_answer_any_text_with_a_number_or_a_value_error(text: str) -> None:
    """Nothing else comes out."""
    for parse in (parse_duration, parse_quantity):
        try:
            assert parse(text) >= 0
        except ValueError:
            pass


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (4 << 30, "4 GiB"),
        (5 << 50, "5120 TiB"),
        (-1, "-1 bytes"),
    ],
)
def test_readable_size_is_short(size: int, text: str) -> None:
    """Four digits and the largest unit that leaves at least one before the point."""
    assert readable_size(size) == text


def test_lifetime_may_be_whole_days() -> None:
    """Beside what a duration may be; nothing is mixed with days."""
    assert (parse_lifetime("90d"), parse_lifetime("1h30m")) == (7776000.0, 5400.0)
    for text in ("1d12h", "d", "1.5d", "100000d", "-1d"):
        with pytest.raises(ValueError, match="not a duration"):
            parse_lifetime(text)

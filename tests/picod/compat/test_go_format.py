"""Go's notations, as AgentCube's clients write and read them."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picod.compat.go_format import DurationError, format_duration, format_mode, format_time, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("2.5s", 2.5),
        ("1m30s", 90),
        ("0", 0),
        ("-1s", -1),
        (".5h", 1800),
        ("1h2m3s4ms", 3723.004),
    ],
)
def test_durations_of_go_are_understood(text: str, seconds: float) -> None:
    """Each form of the grammar gives its seconds."""
    assert seconds == parse_duration(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", 'time: invalid duration "abc"'),
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("1.2.3s", 'time: missing unit in duration "1.2.3s"'),
        ("9999999999h", 'time: invalid duration "9999999999h"'),
    ],
)
def test_bad_durations_are_refused_in_go_words(text: str, message: str) -> None:
    """The message is the one a Go program gives."""
    with pytest.raises(DurationError) as caught:
        parse_duration(text)

    assert message == str(caught.value)


@given(st.text(alphabet="0123456789.-+smhnu\u00b5 x", max_size=30))
def test_duration_parser_refuses_only_with_its_own_error(text: str) -> None:
    """Any text gives a number or a DurationError."""
    try:
        assert isinstance(parse_duration(text), float)
    except DurationError:
        pass


@given(st.integers(min_value=0, max_value=10**16))
def test_printed_durations_parse_back(ns: int) -> None:
    """What format_duration prints, parse_duration reads as the same time."""
    assert parse_duration(format_duration(ns / 1e9)) == pytest.approx(ns / 1e9, abs=1e-6)


def test_durations_print_as_in_go() -> None:
    """Units and trimmed zeros are Go's."""
    assert [format_duration(s) for s in (0, 0.9966, 90.5, 7200)] == ["0s", "996.6ms", "1m30.5s", "2h0m0s"]


def test_times_are_rfc3339_with_trimmed_nanoseconds() -> None:
    """Trailing zeros of the fraction go, and the dot with the last of them."""
    assert format_time(1_000_000_500) == "1970-01-01T00:00:01.0000005Z"
    assert format_time(1_000_000_000) == "1970-01-01T00:00:01Z"


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFDIR | 0o755, "drwxr-xr-x"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFLNK | 0o777, "Lrwxrwxrwx"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFCHR | 0o600, "Dcrw-------"),
        (stat.S_IFIFO | 0o600, "prw-------"),
    ],
)
def test_modes_print_as_in_go(mode: int, text: str) -> None:
    """Type letters first, then nine permission letters."""
    assert text == format_mode(mode)

"""Commands are split as shlex does it, but not in its time."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.api.agent_sandbox.command_line import split_words


@given(st.text(alphabet="ab'\"\\ \t\r\n\v\xa0$`é#", max_size=30))
@example("''")
@example("a''b \"\" c")
@example('"a\\"b\\\\c\\d"')
@example("a\\\nb")
def test_words_are_those_of_shlex(command: str) -> None:
    """What it refuses is refused."""
    try:
        expected = shlex.split(command)
    except ValueError:
        with pytest.raises(ValueError, match=r"No closing quotation|No escaped character"):
            split_words(command)
    else:
        assert split_words(command) == expected


@pytest.mark.parametrize("piece", ["a", "a ", "'a' ", '\\"', "''", '"\\""'])
def test_long_commands_are_split_in_linear_time(piece: str) -> None:
    """shlex takes a minute for the first: a time-out of tests."""
    command = piece * (1_000_000 // len(piece))
    assert "".join(split_words(command)) == "".join(split_words(piece)) * (1_000_000 // len(piece))

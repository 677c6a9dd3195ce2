"""The flat fields of `/api/v1/agents`, read into a spec of an AgentRuntime."""

from __future__ import annotations

import pytest

from gateway.agents.sketch import spec_of
from gateway.core.errors import BadRequestError


def test_command_given_as_one_text_is_split_as_a_shell_would() -> None:
    spec = spec_of({"image": "agent", "command": "python -c 'print(1)'"})

    assert spec["podTemplate"]["spec"]["containers"][0]["command"] == ["python", "-c", "print(1)"]


def test_command_beyond_the_limit_is_refused_and_not_cut() -> None:
    longest = "a " * 2047 + "ab"
    assert len(longest) == 4096
    command = spec_of({"image": "agent", "command": longest})["podTemplate"]["spec"]["containers"][0]["command"]
    assert command[-1] == "ab"

    with pytest.raises(BadRequestError, match="command: 4097 characters"):
        spec_of({"image": "agent", "command": longest + "c"})

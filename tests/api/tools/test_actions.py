"""Arguments of models, as they become requests to picod."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api.tools.actions import check_names
from gateway.api.tools.arguments import ArgumentError, file_target, in_workspace


@pytest.mark.parametrize(
    ("path", "relative"),
    [
        ("a/b.txt", "a/b.txt"),
        ("/workspace/a/b.txt", "a/b.txt"),
        ("/workspace", ""),
        ("/workspace/", ""),
        ("workspace/a", "workspace/a"),
        ("./a", "./a"),
    ],
)
def test_paths_are_relative_to_the_workspace(path: str, relative: str) -> None:
    """Whether a model names it in full or not."""
    assert in_workspace(path) == relative


@pytest.mark.parametrize(
    "path", ["/tmp/x", "/workspaces/x", "/etc/passwd", "", "/workspace", "a\0b", "\ud800", "x" * 5000]
)
def test_paths_outside_the_workspace_are_refused(path: str) -> None:
    """Rather than read another file of the same name."""
    with pytest.raises(ArgumentError, match="path: "):
        file_target(path)


def test_paths_are_encoded() -> None:
    """No name breaks out of the request's target."""
    assert file_target("a b/ü?#%\r\n.txt") == "/api/files/a%20b/%C3%BC%3F%23%25%0D%0A.txt"


@pytest.mark.parametrize("arguments", [{"codes": "1"}, {"code": "1", "context": "x"}])
def test_unknown_arguments_are_refused_with_the_known_ones(arguments: dict[str, Any]) -> None:
    """A model that spells one wrong should not wonder why it had no effect."""
    with pytest.raises(ArgumentError, match="unknown argument; run_python takes code, timeout"):
        check_names("run_python", arguments)

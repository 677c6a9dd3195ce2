"""What a request for a sandbox is called in the audit trail."""

from __future__ import annotations

import pytest

from gateway.routing.audited import action_of


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("POST", b"/api/execute", "command.run"),
        ("POST", b"/api/run_code", "code.run"),
        ("PUT", b"/api/files/note", "file.write"),
        ("GET", b"/api/files/note", ""),
        ("WEBSOCKET", b"/api/terminal", "terminal.open"),
        ("GET", b"/api/ports/8000/x", "port.open"),
        ("POST", b"/agents/run", "sandbox.request"),
        ("POST", b"/api/%65xecute", "sandbox.request"),
        ("GET", b"/agents", ""),
    ],
)
def test_action_follows_from_method_and_path(method: str, path: bytes, action: str) -> None:
    """Reads have none; what is not known by its path is recorded all the same."""
    assert action_of(method, path) == action


@pytest.mark.parametrize("name", [b"terminal", b"ports/8000/x"])
def test_name_of_a_file_does_not_change_what_is_recorded(name: bytes) -> None:
    """Whoever writes a file chooses its name, and must not choose how the trail calls it."""
    assert action_of("PUT", b"/api/files/" + name) == "file.write"
    assert action_of("GET", b"/api/files/" + name) == ""

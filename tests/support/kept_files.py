"""Hibernating a session and waking it, and what must be the same then."""

from __future__ import annotations

from tests.support.serve import Server

MAKE = "mkdir -p a/shut; printf 'x\\0y' > a/data; ln -s a/data link; ln a/data hard"
TREE = f"{MAKE}; touch -d @1000 a/data; chmod 500 a/shut"
LOOK = "find . | sort; stat -c '%n %a %s %Y' a a/data a/shut; readlink link; od -c hard"


def hibernate_and_compare(server: Server) -> str:
    """A new session with files of all kinds, hibernated and woken. Asserts that it has them as they were."""
    session = server.session()
    assert server.run(session, TREE).json()["exit_code"] == 0
    before = server.run(session, LOOK).json()["stdout"]
    assert "x  \\0   y" in before
    assert server.client.post(f"/v1/sessions/{session}/hibernate").json()["state"] == "hibernated"
    woken = server.run(session, LOOK)
    assert woken.json()["stdout"] == before
    assert woken.headers["x-wakegate-start"] in ("wake", "wake-cold")
    assert "x-wakegate-restored" not in woken.headers
    return session

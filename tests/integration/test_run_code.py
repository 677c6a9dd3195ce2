"""Code contexts in real sandboxes, through a real gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.served import Server, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for all."""
    with serve(tmp_path_factory.mktemp("gateway") / "state", "--warm-pool", "1") as started:
        yield started


def run_code(server: Server, session: str, code: str, **fields: Any) -> dict[str, Any]:
    """Run code in the session and return its 200 answer."""
    reply = server.client.post("/api/run_code", json={"code": code, **fields}, headers={"x-session-id": session})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def test_session_keeps_variables_and_shows_tables(server: Server) -> None:
    """What an agent does first, with the packages that it expects, behind the walls."""
    session = server.session()
    run_code(server, session, "import pandas as pd\ntable = pd.DataFrame({'price': [1, 2]})")
    answer = run_code(server, session, "import os\nprint(os.getcwd())\ntable.price.sum()")
    assert answer["stdout"] == "/workspace\n"
    assert answer["results"] == [{"text/plain": "np.int64(3)"}]
    shell = run_code(server, session, "echo $BASH_VERSION; pwd", language="bash")
    assert shell["stdout"].splitlines()[1] == "/workspace"


def test_variables_survive_the_sleep_of_a_session(server: Server) -> None:
    """Suspended, hibernated and woken onto another sandbox, the context knows what it knew and says what it lost."""
    session = server.session()
    run_code(server, session, "import threading\nkept = [1, 2]\nlock = threading.Lock()")
    headers = {"x-session-id": session}
    assert server.client.post("/api/suspend", headers=headers).json()["saved"] == 2
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    assert server.state(session)["state"] == "hibernated"
    assert server.client.post("/api/resume", headers=headers).status_code == 200
    woken = run_code(server, session, "sum(kept)")
    assert woken["results"] == [{"text/plain": "3"}]
    assert [entry["name"] for entry in woken["restored"]["unsaved"]] == ["lock"]

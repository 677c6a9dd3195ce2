"""The example agent, run as a person would."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from tests.support.serve import Server, serve
from tests.support.tool_calls import chat_call

EXAMPLE = Path(__file__).parents[2] / "examples" / "agent_loop.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("wg") / "state") as served:
        yield served


def test_example_agent_reads_a_table_and_plots_it(server: Server, tmp_path: Path) -> None:
    """It ends with the right numbers and a picture, and leaves no session behind."""
    plot = tmp_path / "plot.png"
    command = [sys.executable, str(EXAMPLE), "--url", server.url, "--save", str(plot)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert "north    31" in done.stdout
    assert "south    33" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    states = {each["state"] for each in server.client.get("/v1/sessions?state=all").json()["sessions"]}
    assert states == {"terminated"}


def test_readme_lines_for_a_model_run_as_they_stand(server: Server) -> None:
    """They run the call that stands in them; a message as the SDK hands it out is taken just so."""
    text = (EXAMPLE.parents[1] / "README.md").read_text()
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "/tool_calls" in block]
    space: dict[str, Any] = {}
    exec(lines.replace("http://127.0.0.1:8080", server.url), space)
    assert space["tools"][0]["function"]["name"] == "run_python"
    assert space["reply"]["messages"] == [{"role": "tool", "tool_call_id": "call_0", "content": "42"}]

    call = chat_call("a", "run_python", code="6 * 7")
    message = ChatCompletionMessage.model_validate({"role": "assistant", "content": None, "tool_calls": [call]})
    body = {"session_id": space["session"].id, **message.to_dict()}
    reply = space["sandbox"].post("/tool_calls", body=body, cast_to=dict)
    space["sandbox"].close()
    assert reply["messages"] == [{"role": "tool", "tool_call_id": "a", "content": "42"}]

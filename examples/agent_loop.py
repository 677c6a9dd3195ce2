"""An agent that reads a CSV and plots it, its code run by Wakegate's tool-call endpoint.

    scripts/run &                                        # a gateway on http://127.0.0.1:8080
    scripts/install dev                                  # has the openai package
    .venv/bin/python examples/agent_loop.py --url http://127.0.0.1:8080 --save plot.png

The model is a script, so the example needs no API key and no network. To use a real model, pass `run_agent` an `ask`
that calls `client.chat.completions.create(model=..., messages=messages, tools=tools)` and returns
`.choices[0].message.to_dict()`; the rest stays the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import OpenAI

SALES = "month,region,units\n1,north,10\n1,south,7\n2,north,12\n2,south,11\n3,north,9\n3,south,15\n"

Message = dict[str, Any]
Ask = Callable[[list[Message], list[dict[str, Any]]], Message]


class ScriptedModel:
    """Stands for a model: each message depends on the results of the tool calls before it."""

    def __call__(self, messages: list[Message], tools: list[dict[str, Any]]) -> Message:
        """The next assistant message."""
        assert "run_python" in [tool["function"]["name"] for tool in tools]
        answers = [message["content"] for message in messages if message["role"] == "tool"]
        if not answers:
            return self._call(("list_files", {}), ("read_file", {"path": "sales.csv"}))
        if len(answers) == 2:
            assert answers[1].startswith("month,region,units"), answers[1]
            code = (
                "import pandas as pd\ndf = pd.read_csv('sales.csv')\ntotals = df.groupby('region').units.sum()\ntotals"
            )
            return self._call(("run_python", {"code": code}))
        if len(answers) == 3:
            assert "south" in answers[2], answers[2]
            # df still exists: a session keeps its variables between calls.
            code = "df.pivot(index='month', columns='region', values='units').plot(marker='o');"
            return self._call(("run_python", {"code": code}))
        return {"role": "assistant", "content": f"Units by region:\n{answers[2]}\nThe plot: {answers[3]}"}

    _calls = 0

    def _call(self, *wanted: tuple[str, dict[str, Any]]) -> Message:
        calls = []
        for name, arguments in wanted:
            self._calls += 1
            function = {"name": name, "arguments": json.dumps(arguments)}
            calls.append({"id": f"call_{self._calls}", "type": "function", "function": function})
        return {"role": "assistant", "content": None, "tool_calls": calls}


def run_agent(sandbox: OpenAI, ask: Ask, question: str, save: Path | None = None) -> str:
    """Run tool calls until the model answers with text, and return that. Saves the last picture of its code."""
    session = sandbox.containers.create(name="agent-loop")
    try:
        sandbox.containers.files.create(session.id, file=("sales.csv", SALES.encode()))
        tools = sandbox.get("/tools", cast_to=dict[str, Any])["tools"]
        messages: list[Message] = [{"role": "user", "content": question}]
        while True:
            message = ask(messages, tools)
            messages.append(message)
            if not message.get("tool_calls"):
                return str(message["content"])
            body = {"session_id": session.id, **message}
            reply = sandbox.post("/tool_calls", body=body, cast_to=dict[str, Any])
            messages += reply["messages"]
            for file in reply["files"]:
                if save is not None:
                    identifier = file["url"].rsplit("/", 2)[1]
                    picture = sandbox.containers.files.content.retrieve(identifier, container_id=session.id)
                    save.write_bytes(picture.read())
    finally:
        sandbox.containers.delete(session.id)


def main() -> None:
    """Run the example against the gateway at --url."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the gateway listens")
    parser.add_argument("--save", type=Path, default=Path("plot.png"), help="where the plot goes")
    arguments = parser.parse_args()
    with OpenAI(base_url=f"{arguments.url}/v1", api_key="none") as sandbox:
        print(run_agent(sandbox, ScriptedModel(), "Which region sells more? Plot it.", arguments.save))
    print(f"saved {arguments.save}")


if __name__ == "__main__":
    main()

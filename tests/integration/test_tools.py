"""The tool-call endpoint with the openai SDK as its client, a real gateway and real sandboxes."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI, Stream
from openai.types.chat import ChatCompletionMessage, ChatCompletionToolMessageParam
from openai.types.chat.chat_completion_function_tool import ChatCompletionFunctionTool
from openai.types.responses import FunctionTool
from openai.types.responses.response_input_item_param import FunctionCallOutput
from PIL import Image
from pydantic import TypeAdapter

from tests.support.serve import Server, serve
from tests.support.tool_calls import chat_call, item, tool_use


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("wg") / "state") as served:
        yield served


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """The SDK, pointed at us; it does not try again on its own."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def session(server: Server) -> str:
    """A session for tests that do not mind its files."""
    return server.session()


def post(client: OpenAI, body: Any) -> dict[str, Any]:
    """Send a body to POST /v1/tool_calls."""
    reply: dict[str, Any] = client.post("/tool_calls", body=body, cast_to=dict[str, Any])
    return reply


def assistant(*calls: dict[str, Any]) -> dict[str, Any]:
    """A message as the SDK hands it out, and as a program dumps it."""
    return ChatCompletionMessage.model_validate({"role": "assistant", "content": None, "tool_calls": calls}).to_dict()


def test_tools_are_what_the_sdk_sends_to_a_model(client: OpenAI) -> None:
    """In the chat form and in that of the Responses API."""
    tools = client.get("/tools", cast_to=dict[str, Any])["tools"]
    names = [TypeAdapter(ChatCompletionFunctionTool).validate_python(tool).function.name for tool in tools]
    assert names == ["run_python", "run_shell", "read_file", "write_file", "list_files"]
    tools = client.get("/tools", cast_to=dict[str, Any], options={"params": {"format": "responses"}})["tools"]
    assert [FunctionTool.model_validate(tool).name for tool in tools] == names
    with pytest.raises(openai.BadRequestError) as refused:
        client.get("/tools", cast_to=dict[str, Any], options={"params": {"format": "xml"}})
    assert refused.value.param == "format"


def test_tool_calls_of_a_message_are_answered_in_order(client: OpenAI) -> None:
    """A session is made; a file that one call writes is there for the next; failures are answers, not errors."""
    body = assistant(
        chat_call("a", "write_file", path="/workspace/data/x.csv", content="n\n1\n2\n"),
        chat_call("b", "run_shell", command="sleep 0.1; wc -l < data/x.csv"),
        chat_call("c", "read_file", path="data/x.csv"),
        chat_call("d", "list_files"),
        chat_call("e", "run_shell", command="echo oops >&2; exit 7"),
        chat_call("f", "no_such_tool"),
        chat_call("g", "read_file", path="absent"),
        chat_call("h", "run_shell", command=["ls"]),
        chat_call("i", "run_shell", cmd="ls"),
        {"id": "j", "type": "function", "function": {"name": "run_shell", "arguments": '{"command": '}},
    )
    reply = client.post("/tool_calls", body=body, cast_to=dict[str, Any])
    messages = TypeAdapter(list[ChatCompletionToolMessageParam]).validate_python(reply["messages"])
    assert [each["tool_call_id"] for each in messages] == list("abcdefghij")
    texts = [str(each["content"]) for each in reply["messages"]]
    assert texts[:4] == ["wrote 6 bytes to data/x.csv", "3", "n\n1\n2\n", "data/"]
    assert texts[4] == "Error (exit_status): the command ended with exit status 7\n[stderr]\noops"
    assert texts[5].startswith("Error (unknown_tool): no_such_tool; there are run_python, ")
    assert texts[6] == "Error (not_found): absent: File not found"
    assert texts[7] == 'Error (invalid_arguments): command: expected text, got ["ls"]; nothing was run'
    assert texts[8].startswith("Error (invalid_arguments): cmd: unknown argument; run_shell takes command")
    assert texts[9].startswith("Error (invalid_json): the arguments are not JSON")
    more = post(client, {"session_id": reply["session_id"], "tool_calls": [chat_call("z", "list_files", path="data")]})
    assert more["messages"][0]["content"] == "x.csv  6 bytes"


def test_tool_calls_take_response_items_and_anthropic_blocks(client: OpenAI, session: str) -> None:
    """And answer in the same form."""
    reply = post(client, {"output": [item("a", "run_shell", command="echo hi")], "session_id": session})
    (output,) = TypeAdapter(list[FunctionCallOutput]).validate_python(reply["output"])
    assert (output["call_id"], output["output"]) == ("a", "hi")
    blocks = post(client, {"content": [tool_use("b", "run_shell", command="exit 1")], "session_id": session})
    assert blocks["content"][0]["is_error"] is True
    assert post(client, assistant())["messages"] == []


def test_tool_calls_retried_do_not_run_twice(server: Server, session: str) -> None:
    """A retry by its header is answered from memory and says so; another argument is another call."""
    call = chat_call("once", "run_shell", command="sleep 0.2; echo x >> count; wc -l < count")
    again = chat_call("once", "run_shell", command="wc -l < count")
    body = {"session_id": session, "tool_calls": [call, call]}
    first = server.client.post("/v1/tool_calls", json=body).json()["messages"]
    assert [each["content"] for each in first] == ["1", "1"]
    retry = server.client.post("/v1/tool_calls", json=body, headers={"x-stainless-retry-count": "1"})
    assert retry.json()["messages"] == first
    assert retry.json()["replayed"] == ["once", "once"]
    assert retry.headers["idempotency-replayed"] == "true"
    header = {"x-session-id": session}
    reply = server.client.post("/v1/tool_calls", json=[again], headers=header)
    assert reply.json()["messages"][0]["content"] == "1"
    assert reply.headers["x-session-id"] == session
    assert reply.headers["x-wakegate-start"] == "live"


def test_tool_call_ids_that_each_turn_reuses_are_new_calls(server: Server, session: str) -> None:
    """Models number their calls from 0 in every message: the same call again is another call, not a memory of one."""
    again = {"session_id": session, "tool_calls": [chat_call("call_0", "run_python", code="turn += 1; print(turn)")]}
    write = {"session_id": session, "tool_calls": [chat_call("call_0", "write_file", path="turn", content="mine")]}
    spoil = {"session_id": session, "tool_calls": [chat_call("call_0", "run_shell", command="echo theirs > turn")]}
    look = {"session_id": session, "tool_calls": [chat_call("call_0", "run_shell", command="cat turn")]}

    def content(body: dict[str, Any], **headers: str) -> str:
        reply = server.client.post("/v1/tool_calls", json=body, headers=headers).json()
        assert reply["replayed"] == []
        return str(reply["messages"][0]["content"])

    content({**again, "tool_calls": [chat_call("call_0", "run_python", code="turn = 0")]})
    assert [content(again) for _ in range(3)] == ["1", "2", "3"]
    for body in (write, spoil, write):
        content(body)
    assert content(look) == "mine"
    # Marked as a retry, but another message came after that answer: it cannot be one of that run.
    assert content(again, **{"x-stainless-retry-count": "2"}) == "4"


def test_tool_calls_run_side_by_side_where_the_tool_allows(client: OpenAI, session: str) -> None:
    """Two shells that wait for each other both end; one after the other they could not."""
    script = "touch met-{0}; until [ -e met-{1} ]; do sleep 0.02; done; echo met"
    calls = [
        chat_call(f"m{a}", "run_shell", command=script.format(a, b), timeout=20) for a, b in (("1", "2"), ("2", "1"))
    ]
    assert [each["content"] for each in post(client, {"session_id": session, "tool_calls": calls})["messages"]] == [
        "met",
        "met",
    ]


def test_tool_calls_stream_has_progress_and_ends_with_the_messages(client: OpenAI, session: str) -> None:
    """As the SDK's own stream reads it; output comes while the call runs, and the file tells it to go on."""
    calls = [
        chat_call(
            "s", "run_shell", command="echo begun; until [ -e go-on ]; do sleep 0.02; done; echo done", timeout=20
        ),
        chat_call("p", "run_python", code="print('printed'); 1/0"),
    ]
    body = {"session_id": session, "stream": True, "tool_calls": calls}
    stream = client.post(
        "/tool_calls", body=body, cast_to=dict[str, Any], stream=True, stream_cls=Stream[dict[str, Any]]
    )
    events = []
    for event in stream:
        events.append(event)
        if event.get("delta") == "begun\n":
            post(
                client, {"session_id": session, "tool_calls": [chat_call("g", "write_file", path="go-on", content="")]}
            )
    assert [event["type"] for event in events] == [
        "tool_calls.started",
        *("tool_call.started", "tool_call.output", "tool_call.output", "tool_call.completed"),
        *("tool_call.started", "tool_call.output", "tool_call.completed"),
        "tool_calls.completed",
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["begun\n", "done\n", "printed\n"]
    shell, python = events[-1]["messages"]
    assert shell == {"role": "tool", "tool_call_id": "s", "content": "begun\ndone"}
    assert python["content"].startswith("Error (ZeroDivisionError): division by zero\n")
    assert python["content"].endswith("\nprinted")


def test_tool_calls_figures_are_pictures_in_each_form(client: OpenAI, server: Server, session: str) -> None:
    """A link where the form takes text only, else the picture itself; nothing but the picture is said of it."""
    arguments = {"code": "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"}
    chat = post(client, {"session_id": session, "tool_calls": [chat_call("fig", "run_python", **arguments)]})
    (file,) = chat["files"]
    picture = server.client.get(file["url"])
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    said = f"[image/png, {len(picture.content)} bytes: {file['url']} , in the workspace as {file['path']}]"
    assert chat["messages"][0]["content"].endswith(said)
    assert "stderr" not in chat["messages"][0]["content"]
    encoded = base64.b64encode(picture.content).decode()
    responses = post(client, {"session_id": session, "output": [item("fig", "run_python", **arguments)]})
    assert responses["output"][0]["output"][-1]["image_url"] == f"data:image/png;base64,{encoded}"
    blocks = post(client, {"session_id": session, "content": [tool_use("fig", "run_python", **arguments)]})
    assert blocks["content"][0]["content"][-1]["source"]["data"] == encoded


def test_tool_calls_long_output_shows_its_end_and_names_a_file_with_all_of_it(server: Server, session: str) -> None:
    """Of code, of a command, and of one whose output picod cuts off itself."""
    calls = [
        chat_call("a", "run_python", code="for n in range(1, 200_001): print(n)"),
        chat_call("b", "run_shell", command="seq 200000"),
        chat_call("c", "run_shell", command="seq 2000000"),
    ]
    body = {"session_id": session, "tool_calls": calls}
    reply = server.client.post("/v1/tool_calls", json=body, timeout=60).json()
    for each, last in zip(reply["messages"], ("200000", "200000", "2000000"), strict=True):
        text = each["content"]
        assert text.startswith("1\n2\n")
        assert f"\n{last}\n[" in text
        assert len(text) < 61_000
        path = re.search(r"all of it is in (\.wakegate/output/[\w.-]+)", text)
        assert path is not None, text[-300:]
        counted = server.run(session, f"head -1 {path[1]}; wc -l < {path[1]}; grep -cx {last} {path[1]}")
        first, lines, hits = counted.json()["stdout"].split()
        assert (first, hits) == ("1", "1")
        assert int(lines) in (int(last) - 1, int(last))


def test_tool_calls_large_pictures_are_scaled_and_their_originals_are_files(server: Server, session: str) -> None:
    """A model gets what fits; the file is what the code drew."""
    code = "from PIL import Image\nImage.effect_noise((2400, 1200), 90)"
    body = {"session_id": session, "output": [item("a", "run_python", code=code)]}
    reply = server.client.post("/v1/tool_calls", json=body, timeout=60).json()
    text, picture = reply["output"][0]["output"]
    assert "scaled from 2400 x 1200 to 1568 x 784 pixels" in text["text"]
    shown = base64.b64decode(picture["image_url"].partition(",")[2])
    (file,) = reply["files"]
    original = server.client.get(file["url"])
    with Image.open(io.BytesIO(shown)) as small, Image.open(io.BytesIO(original.content)) as large:
        assert (small.size, large.size) == ((1568, 784), (2400, 1200))
    assert len(original.content) == file["bytes"]
    assert original.headers["content-disposition"].startswith("attachment")


def test_tool_calls_wake_a_hibernated_session(server: Server) -> None:
    """The files are there, and the answer says that it woke."""
    session = server.session()
    body = {"session_id": session, "tool_calls": [chat_call("a", "write_file", path="kept", content="safe")]}
    server.client.post("/v1/tool_calls", json=body)
    assert server.client.post(f"/v1/sessions/{session}/hibernate").status_code == 200
    body["tool_calls"] = [chat_call("b", "read_file", path="kept")]
    reply = server.client.post("/v1/tool_calls", json=body)
    assert reply.json()["messages"][0]["content"] == "safe"
    assert reply.headers["x-wakegate-start"].startswith("wake")


@pytest.mark.parametrize(
    ("body", "status", "kind", "param"),
    [
        ({"session_id": "nope", "tool_calls": [chat_call("a", "list_files")]}, 404, "not_found_error", None),
        ({"session_id": "-", "tool_calls": [chat_call("a", "list_files")]}, 400, "invalid_request_error", "session_id"),
        ({"runtime": "nope", "tool_calls": [chat_call("a", "list_files")]}, 400, "invalid_request_error", "runtime"),
        ({"tool_calls": [{}]}, 400, "invalid_request_error", "tool_calls[0]"),
        ("text", 400, "invalid_request_error", None),
    ],
)
def test_tool_calls_refuse_in_the_shape_of_openai(
    client: OpenAI, body: Any, status: int, kind: str, param: str | None
) -> None:
    """The SDK reads message, type, param and code out of it."""
    with pytest.raises(openai.APIStatusError) as refused:
        post(client, body)
    error = refused.value
    assert (error.status_code, error.type, error.param) == (status, kind, param)
    assert error.code
    assert isinstance(error.body, dict)
    assert error.body["message"]


def test_tool_calls_body_that_is_too_large_is_refused(server: Server) -> None:
    """With 413, in the same shape."""
    reply = server.client.post("/v1/tool_calls", content=b" " * ((16 << 20) + 1))
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "too_large"

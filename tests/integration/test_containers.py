"""OpenAI's Containers API with the openai SDK as its client, a real gateway and real sandboxes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.serve import Server, serve
from tests.support.tool_calls import chat_call

RUNTIME = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: NAME}
spec:
  template: {image: none, resources: {limits: {memory: MEMORY}}}
  warmPoolSize: WARM
  wakegate:
    tools:
      - name: count_words
        description: Count the words of a file.
        parameters: {type: object, properties: {path: {type: string}}, required: [path]}
        command: [wc, -w, "{path}"]
      - name: area
        description: The area of a circle.
        parameters: {type: object, properties: {r: {type: number}}, required: [r]}
        python:
          function: area
          source: |
            def area(r):
                return {"area": 3 * r * r}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module, with a usual runtime and a larger one."""
    folder = tmp_path_factory.mktemp("wg")
    manifests = folder / "runtimes"
    manifests.mkdir()
    for name, memory, warm in (("my-interpreter", "1Gi", "2"), ("large", "5Gi", "0")):
        text = RUNTIME.replace("NAME", name).replace("MEMORY", memory).replace("WARM", warm)
        (manifests / f"{name}.yaml").write_text(text)
    with serve(folder / "state", "--runtime", str(manifests)) as served:
        yield served


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """The SDK, pointed at us; it does not try again on its own."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def test_containers_live_as_the_sdk_expects(client: OpenAI, server: Server) -> None:
    """Created, seen, listed by name in either order and page by page, deleted, gone."""
    expiry: Any = {"anchor": "last_active_at", "minutes": 5}
    first = client.containers.create(name="first", expires_after=expiry, memory_limit="1g")
    assert (first.object, first.status, first.name, first.memory_limit) == ("container", "running", "first", "1g")
    assert first.expires_after is not None
    assert (first.expires_after.anchor, first.expires_after.minutes) == ("last_active_at", 5)
    assert client.containers.retrieve(first.id).created_at == first.created_at
    assert server.state(first.id)["idleTimeout"] == 300
    second = client.containers.create(name="second")
    both = {first.id, second.id}
    assert {each.id for each in client.containers.list()} == both
    assert [each.id for each in client.containers.list(name="second")] == [second.id]
    ascending = [each.id for each in client.containers.list(limit=1, order="asc")]
    assert set(ascending) == both
    assert [each.id for each in client.containers.list(limit=1, order="desc")] == ascending[::-1]
    for container in both:
        client.containers.delete(container)
    assert list(client.containers.list()) == []
    with pytest.raises(openai.NotFoundError):
        client.containers.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.containers.delete(first.id)


def test_containers_get_a_runtime_with_the_memory_asked_for(client: OpenAI, server: Server) -> None:
    """The usual one if it has enough, else the smallest that has, else an error that names what is missing."""
    large = client.containers.create(name="c", memory_limit="4g")
    assert server.state(large.id)["runtime"]["name"] == "large"
    client.containers.delete(large.id)
    with pytest.raises(openai.BadRequestError, match="no runtime here has 64g"):
        client.containers.create(name="c", memory_limit="64g")


def test_container_hibernates_instead_of_expiring(client: OpenAI, server: Server) -> None:
    """It says that it runs, and its files are there."""
    container = client.containers.create(name="sleeper")
    made = client.containers.files.create(container.id, file=("a.txt", b"kept"))
    assert server.client.post(f"/v1/sessions/{container.id}/hibernate").status_code == 200
    assert client.containers.retrieve(container.id).status == "running"
    assert client.containers.files.content.retrieve(made.id, container_id=container.id).read() == b"kept"
    client.containers.delete(container.id)


def test_container_files_go_up_and_come_back(client: OpenAI, server: Server, tmp_path: Path) -> None:
    """Any name and size, files that code wrote as well; each says whose it is; what is deleted is gone."""
    container = client.containers.create(name="files")
    files = client.containers.files
    blob = os.urandom(3_000_000)
    (tmp_path / "blob ü#?.bin").write_bytes(blob)
    up = files.create(container.id, file=tmp_path / "blob ü#?.bin")
    assert (up.bytes, up.path, up.source) == (len(blob), "/workspace/blob ü#?.bin", "user")
    assert (up.object, up.container_id) == ("container.file", container.id)
    empty = files.create(container.id, file=("../../etc/empty", b""))
    assert (empty.path, empty.bytes) == ("/workspace/empty", 0)
    assert server.run(container.id, "mkdir -p out && echo made > out/by-code && ln -s out link").status_code == 200
    listed = {each.path: each for each in files.list(container.id, limit=2)}
    assert {path: each.source for path, each in listed.items()} == {
        "/workspace/blob ü#?.bin": "user",
        "/workspace/empty": "user",
        "/workspace/out/by-code": "assistant",
    }
    assert files.content.retrieve(up.id, container_id=container.id).read() == blob
    made = listed["/workspace/out/by-code"]
    assert files.content.retrieve(made.id, container_id=container.id).read() == b"made\n"
    assert files.retrieve(made.id, container_id=container.id).bytes == 5
    files.delete(made.id, container_id=container.id)
    for ask in (files.retrieve, files.content.retrieve, files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id, container_id=container.id)
    client.containers.delete(container.id)


def test_container_is_the_session_of_tool_calls(client: OpenAI) -> None:
    """One handle for both; its bearer key is taken and goes no further."""
    container = client.containers.create(name="tools")
    client.containers.files.create(container.id, file=("n.csv", b"n\n1\n"))
    body = {"session_id": container.id, "tool_calls": [chat_call("a", "read_file", path="n.csv")]}
    reply = client.post("/tool_calls", body=body, cast_to=dict[str, Any])
    assert reply["messages"][0]["content"] == "n\n1\n"
    client.containers.delete(container.id)


def test_container_offers_the_tools_that_its_runtime_declares(client: OpenAI, server: Server) -> None:
    """They are in the list, run like the built-in ones, and check their arguments."""
    tools = server.client.get("/v1/tools", params={"format": "anthropic"}).json()["tools"]
    assert [tool["name"] for tool in tools[5:]] == ["count_words", "area"]
    container = client.containers.create(name="declared")
    calls = [
        chat_call("a", "write_file", path="a b.txt", content="one two three"),
        chat_call("b", "count_words", path="a b.txt"),
        chat_call("c", "area", r=2),
        chat_call("d", "area", r="two"),
    ]
    body = {"session_id": container.id, "tool_calls": calls}
    reply = client.post("/tool_calls", body=body, cast_to=dict[str, Any])
    assert [each["content"] for each in reply["messages"]][1:] == [
        "3 a b.txt",
        '{"area": 12}',
        "Error (invalid_arguments): r: 'two' is not of type 'number'; nothing was run",
    ]
    client.containers.delete(container.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x", "nmae": "x"}, "nmae"),
        ({"name": "x", "memory_limit": "2g"}, "memory_limit"),
        ({"name": "x", "file_ids": ["file-1"]}, "file_ids"),
        ({"name": "x", "skills": [{}]}, "skills"),
        ({"name": "x", "network_policy": {"type": "allowlist", "allowed_domains": ["a"]}}, "network_policy"),
        ({"name": "x", "expires_after": 5}, "expires_after"),
        ({"name": "x", "expires_after": {"anchor": "created_at", "minutes": 5}}, "expires_after.anchor"),
        ({"name": "x", "expires_after": {"anchor": "last_active_at", "minutes": 0}}, "expires_after.minutes"),
    ],
)
def test_containers_refuse_what_is_wrong_and_name_it(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    """In OpenAI's shape, before anything is made."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/containers", body=fields, cast_to=dict[str, Any])
    assert refused.value.param == param


def test_container_files_refuse_what_is_wrong(client: OpenAI, server: Server) -> None:
    """No form, no file in it, a name that is none, an id that leads elsewhere."""
    container = client.containers.create(name="odd")
    path = f"/v1/containers/{container.id}/files"
    for reply in (
        server.client.post(path, json={"file_id": "file-1"}),
        server.client.post(path, files={"other": b"x"}),
        server.client.post(path, files={"file": ("..", b"x")}),
        server.client.post(path, content=b"x", headers={"content-type": "multipart/form-data; boundary=y"}),
        server.client.post(path, content=b"x", headers={"content-type": "multipart/form-data"}),
    ):
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["type"] == "invalid_request_error"
    for odd in ("x", "cfile_", "cfile_Li4vLi4vZXRj", "cfile_L2V0Yy9wYXNzd2Q", "cfile_%F0%9F"):
        assert server.client.get(f"{path}/{odd}/content").status_code == 404
    assert server.client.get("/v1/containers/nope/files").status_code == 404
    client.containers.delete(container.id)

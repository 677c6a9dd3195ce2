"""The SDKs of AgentCube, OpenAI and MCP against a gateway that asks who they are, with the keys that they send."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
import requests
from agentcube import CodeInterpreterClient
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from openai import OpenAI

from tests.support.keyed import make_key, serve_with_keys
from tests.support.serve import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that asks for keys."""
    with serve_with_keys(tmp_path_factory.mktemp("wg")) as served:
        yield served


@pytest.fixture(scope="module")
def key(server: Server) -> str:
    """A member's key of the tenant acme."""
    return make_key(server, "acme")


def test_agentcubes_sdk_with_its_auth_token(server: Server, key: str) -> None:
    """Its control plane sends the token, its data plane what its URL has; without either it is refused."""
    router = server.url.replace("http://", f"http://key:{key}@")
    with CodeInterpreterClient(router_url=router, workload_manager_url=server.url, auth_token=key) as client:
        assert client.run_code("python", "print(6 * 7)") == "42\n"
        client.write_file("text", "a.txt")
        assert "a.txt" in client.execute_command("ls")
        assert key not in client.execute_command("env")
    with pytest.raises(requests.HTTPError) as refused:
        CodeInterpreterClient(router_url=server.url, workload_manager_url=server.url)
    assert refused.value.response is not None
    assert refused.value.response.status_code == 401
    assert "message" in refused.value.response.json()  # AgentCube's shape
    warnings.resetwarnings()


def test_openais_client_with_its_api_key(server: Server, key: str) -> None:
    """Its errors are those that it makes of an answer in OpenAI's shape; another tenant's container is not found."""
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        container = client.containers.create(name="mine")
        uploaded = client.containers.files.create(container.id, file=("a.txt", b"text"))
        assert client.containers.files.content.retrieve(uploaded.id, container_id=container.id).read() == b"text"
        assert container.id in [each.id for each in client.containers.list()]
        with OpenAI(base_url=f"{server.url}/v1", api_key=make_key(server, "other"), max_retries=0) as other:
            assert [each.id for each in other.containers.list()] == []
            with pytest.raises(openai.NotFoundError):
                other.containers.retrieve(container.id)
        nobody = OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
        with nobody, pytest.raises(openai.AuthenticationError):
            nobody.containers.list()
        client.containers.delete(container.id)


def test_mcp_client_with_a_header(server: Server, key: str) -> None:
    """Its session is its tenant's: with another key, the same MCP session is not found."""

    async def run() -> tuple[Any, str]:
        http = httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=30)
        async with http, Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client:
            answer = await client.call_tool("run_python", {"code": "print(6 * 7)"})
            sessions = server.client.get("/v1/sessions", headers={"authorization": f"Bearer {key}"}).json()
            return answer, next(each["id"] for each in sessions["sessions"] if "mcp" in each["metadata"])

    answer, session = asyncio.run(run())
    assert "42" in answer.content[0].text
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "run_shell", "arguments": {"command": "echo stolen"},
    }}  # fmt: skip
    for name in ("mcp-session-id", "x-session-id"):
        headers = {"authorization": f"Bearer {make_key(server, 'other')}", name: session}
        headers |= {"accept": "application/json, text/event-stream"}
        reply = server.client.post("/mcp", json=message, headers=headers)
        assert reply.status_code == 404, reply.text
        assert "stolen" not in reply.text
    assert server.client.post("/mcp", json=message).status_code == 401

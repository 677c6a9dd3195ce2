"""A container's files over a sandbox that is played by a script: what a hostile one answers."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from gateway.api.file_links import file_id
from tests.support.scripted import Call, OpenScripted, Script

ON_UVLOOP = True
PAGE = b"<script>alert(document.domain)</script>"


def answering(body: bytes, fields: str = "") -> Script:
    """A sandbox with one answer for everything."""

    async def script(call: Call) -> None:
        await call.body()
        await call.reply(body, fields=fields)

    return script


@pytest.mark.parametrize(
    "answer",
    [
        {"entries": 5},
        {"entries": [5]},
        {"entries": [{"type": "file", "path": 5}]},
        {"entries": [{"type": "file", "path": "a", "size": "1", "modified": "2026-01-01"}]},
        {"entries": [{"type": "file", "path": "a", "size": 1, "modified": {}}]},
        {"entries": [], "next": {}},
        {"entries": [[]] * 300_000},
        [],
    ],
)
async def test_list_that_the_sandbox_made_up_is_a_502(open_gateway: OpenScripted, answer: Any) -> None:
    """In this surface's shape, saying that the sandbox is at fault."""
    gateway, _ = await open_gateway(answering(orjson.dumps(answer)))
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        reply = await client.get(f"/v1/containers/{await gateway.session()}/files")
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "sandbox_bad_answer")


async def test_answer_that_does_not_end_is_cut_off(open_gateway: OpenScripted) -> None:
    """After a few MiB, not when memory is full."""
    gateway, _ = await open_gateway(answering(b'{"entries": ["' + b"x" * (5 << 20) + b'"]}'))
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        reply = await client.get(f"/v1/containers/{await gateway.session()}/files")
    assert reply.status_code == 502


async def test_file_content_cannot_act_as_a_page_of_the_gateway(open_gateway: OpenScripted) -> None:
    """Code may write HTML and name its type; a browser saves it, and runs none of it."""
    gateway, _ = await open_gateway(answering(PAGE, "content-type: text/html\ncontent-disposition: inline\n"))
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        name = file_id('out/pagé\r\n";x.html')
        reply = await client.get(f"/v1/containers/{await gateway.session()}/files/{name}/content")
    assert (reply.status_code, reply.content) == (200, PAGE)
    assert reply.headers.get_list("content-disposition") == ["attachment; filename*=UTF-8''pag%C3%A9%0D%0A%22%3Bx.html"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"] == "sandbox"

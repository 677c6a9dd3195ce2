"""Uploads of agents' files over HTTP, from clients that take their time."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile

import orjson

from tests.support.scripted import OpenScripted, Served

ON_UVLOOP = True


def archive(content: bytes) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as made:
        info = tarfile.TarInfo("main.py")
        info.size = len(content)
        made.addfile(info, io.BytesIO(content))
    return gzip.compress(raw.getvalue())


async def upload(gateway: Served, body: bytes) -> tuple[int, dict[str, object]]:
    head = f"POST /v1/agent-bundles HTTP/1.1\nhost: h\ncontent-length: {len(body)}\n\n"
    answer = await gateway.ask(head, body)
    return answer.status, orjson.loads(answer.body)


async def test_client_that_sends_slowly_holds_up_nobody(open_gateway: OpenScripted) -> None:
    """Others' uploads go through beside it; too many at a time are refused until one ends."""
    gateway, _ = await open_gateway()
    slow = []
    for _ in range(4):
        client = await gateway.connect()
        await client.send("POST /v1/agent-bundles HTTP/1.1\nhost: h\ncontent-length: 1000\n\nab")
        slow.append(client)
    status, document = 201, dict[str, object]()
    async with asyncio.timeout(20):
        while status == 201:  # each of them counts from the moment at which its head is read
            status, document = await upload(gateway, archive(b"1"))
    assert (status, document["code"]) == (429, "QUOTA_EXCEEDED")

    slow.pop().abort()
    async with asyncio.timeout(20):
        while status == 429:
            status, document = await upload(gateway, archive(b"2"))
    assert (status, document["bytes"]) == (201, len(archive(b"2")))

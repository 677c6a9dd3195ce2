"""MCP's Python client: the tools, and a call that keeps its variables."""

import asyncio
import os
from importlib.metadata import version


async def old() -> str:
    """The client of mcp 1."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    headers = {"Authorization": f"Bearer {os.environ['WG_KEY']}"}
    async with (
        streamablehttp_client(f"{os.environ['WG_URL']}/mcp", headers=headers) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        await session.call_tool("run_python", {"code": "x = 41"})
        return str(await session.call_tool("run_python", {"code": "x + 1"}))


async def new() -> str:
    """The client of mcp 2."""
    import httpx2
    from mcp.client import Client
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {os.environ['WG_KEY']}"}
    http = httpx2.AsyncClient(headers=headers, timeout=60)
    async with http, Client(streamable_http_client(f"{os.environ['WG_URL']}/mcp", http_client=http)) as client:
        # Without a handshake a call's first result names the session that the next calls pass as their handle.
        first = await client.call_tool("run_python", {"code": "x = 41"})
        handle = {"session": first.structured_content["session"]} if first.structured_content else {}
        return str(await client.call_tool("run_python", {"code": "x + 1", **handle}))


is_new = int(version("mcp").partition(".")[0]) >= 2
assert "42" in asyncio.run(new() if is_new else old())

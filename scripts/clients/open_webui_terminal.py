"""Open WebUI's own code for terminal servers: the tools that it makes of one, and what a model calls.

Its package needs a hundred others to be imported, so the functions that talk to a terminal server are taken out of
their file (open_webui/utils/tools.py) and run as they are.
"""

import ast
import asyncio
import base64
import copy
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import yaml

WANTED = {
    "OPENAPI_HTTP_METHODS", "convert_openapi_to_tool_payload", "execute_tool_server", "get_terminal_cwd",
    "get_terminal_system_prompt", "get_tool_server_data", "get_tool_server_url", "resolve_schema",
}  # fmt: skip


class JSONCodec:
    """Open WebUI's own, as far as it is used here."""

    loads = staticmethod(json.loads)
    JSONDecodeError = json.JSONDecodeError


spec = importlib.util.find_spec("open_webui")
assert spec is not None
assert spec.submodule_search_locations
file = Path(spec.submodule_search_locations[0]) / "utils" / "tools.py"
tree = ast.parse(file.read_text())
names = [node.name if hasattr(node, "name") else getattr(getattr(node, "targets", [None])[0], "id", "")
         for node in tree.body]  # fmt: skip
tree.body = [node for node, name in zip(tree.body, names, strict=True) if name in WANTED]
client: dict[str, Any] = {
    "Any": Any, "aiohttp": aiohttp, "asyncio": asyncio, "base64": base64, "quote": quote, "urlencode": urlencode,
    "yaml": yaml, "json": json, "log": logging.getLogger("open_webui"), "JSONCodec": JSONCodec, "copy": copy,
    "ENABLE_TOOL_SERVERS": True, "AIOHTTP_CLIENT_SESSION_SSL": True, "AIOHTTP_CLIENT_SESSION_TOOL_SERVER_SSL": True,
    "AIOHTTP_CLIENT_TIMEOUT_TOOL_SERVER": 60, "AIOHTTP_CLIENT_TIMEOUT_TOOL_SERVER_DATA": 10,
    "AIOHTTP_CLIENT_ALLOW_REDIRECTS": False,
}  # fmt: skip
exec(compile(tree, str(file), "exec"), client)  # noqa: S102 - the client itself


async def main() -> None:
    """What Open WebUI does for one chat."""
    url, key = f"{os.environ['WG_URL']}/open-terminal", os.environ["WG_KEY"]
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "X-User-Id": "ada",
               "X-Session-Id": "chat"}  # fmt: skip
    document = await client["get_tool_server_data"](
        client["get_tool_server_url"](url, "/openapi.json"), {"Authorization": f"Bearer {key}"}
    )
    tools = {each["name"] for each in client["convert_openapi_to_tool_payload"](document)}
    assert {"run_command", "get_process_status", "write_file", "grep_search", "display_file"} <= tools, tools
    assert await client["get_terminal_cwd"](url, headers) == "/workspace"
    assert "computer" in await client["get_terminal_system_prompt"](url, headers)

    async def call(name: str, **params: Any) -> Any:  # as a model does
        data, _ = await client["execute_tool_server"](
            url=url, headers=headers, cookies={}, name=name, params=params, server_data={"openapi": document}
        )
        return data

    await call("write_file", path="a/b.txt", content="one\ntwo\n")
    assert (await call("read_file", path="a/b.txt", start_line=2))["content"] == "two\n"
    edit = {"target": "two", "replacement": "three"}
    await call("replace_file_content", path="a/b.txt", replacements=[edit])
    assert (await call("grep_search", query="^thr", include=["*.txt"]))["matches"][0]["line"] == 2
    ran = await call("run_command", command="cat a/b.txt", wait=30)
    assert (ran["status"], "".join(each["data"] for each in ran["output"])) == ("done", "one\r\nthree\r\n"), ran
    begun = await call("run_command", command="cat", wait=0)
    await call("send_process_input", process_id=begun["id"], input="abc\\n\\x04")
    ended = await call("get_process_status", process_id=begun["id"], wait=30, offset=begun["next_offset"])
    assert ended["exit_code"] == 0, ended
    assert (await call("display_file", path="a/b.txt"))["exists"]
    assert "404" in (await call("read_file", path="missing"))["error"]


asyncio.run(main())

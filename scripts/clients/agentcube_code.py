"""AgentCube's SDK: code, commands, files."""

import os

from agentcube import CodeInterpreterClient

url, key = os.environ["WG_URL"], os.environ["WG_KEY"]
router = url.replace("http://", f"http://key:{key}@")
with CodeInterpreterClient(router_url=router, workload_manager_url=url, auth_token=key) as client:
    assert client.run_code("python", "print(6 * 7)") == "42\n"
    client.write_file("text", "a.txt")
    assert "a.txt" in client.execute_command("ls")

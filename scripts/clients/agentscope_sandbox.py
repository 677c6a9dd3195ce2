"""AgentScope Runtime's sandboxes: code, commands, files, and in 1.1 `sandbox.fs`."""

import os

from agentscope_runtime.sandbox import BaseSandbox, FilesystemSandbox

options = {"base_url": f"{os.environ['WG_URL']}/agentscope", "bearer_token": os.environ["WG_KEY"]}
with BaseSandbox(**options) as box:
    box.run_ipython_cell(code="x = 41")
    assert "42" in str(box.run_ipython_cell(code="x + 1"))
    assert "hi" in str(box.run_shell_command(command="echo hi"))
    assert "run_ipython_cell" in str(box.list_tools())
with FilesystemSandbox(**options) as box:
    box.write_file("/workspace/a.txt", "text")
    assert "text" in str(box.read_file("/workspace/a.txt"))
    assert "[FILE] a.txt" in str(box.list_directory("/workspace"))
    if hasattr(box, "fs"):
        box.fs.write("/workspace/d/b.txt", "é")
        assert box.fs.read("/workspace/d/b.txt") == "é"
        box.fs.write_many([{"path": "/workspace/d/c", "data": b"1"}])
        assert len(box.fs.list("/workspace/d")) == 2
        box.fs.remove("/workspace/d")
        assert not box.fs.exists("/workspace/d/c")

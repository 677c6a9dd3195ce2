"""E2B's SDK without the code interpreter: commands, files, and the life of a sandbox."""

import os

from e2b import Sandbox

options = {"api_key": os.environ["WG_KEY"], "api_url": os.environ["WG_URL"], "sandbox_url": os.environ["WG_URL"]}
sandbox = Sandbox.create(timeout=120, metadata={"made": "here"}, **options)
try:
    assert sandbox.commands.run("echo hi; pwd").stdout == "hi\n/home/user\n"
    sandbox.files.write("a/b.txt", "text")
    assert sandbox.files.read("a/b.txt") == "text"
    assert [each.name for each in sandbox.files.list("a")] == ["b.txt"]
    assert sandbox.commands.run("sleep 1000", background=True).kill()
    assert sandbox.is_running()
finally:
    assert sandbox.kill()

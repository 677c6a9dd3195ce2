"""Runs in namespaces of its own: makes the machine's network, starts the world's hosts, and waits to be ended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    folder = Path(sys.argv[1])
    config = json.loads((folder / "internet.json").read_text())
    with subprocess.Popen(
        ["unshare", "-n", sys.executable, "-m", "tests.support.internet.origins", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as origins:
        assert origins.stdout is not None
        assert origins.stdin is not None
        assert origins.stdout.readline() == "namespace\n"
        run("ip", "link", "add", "edge", "type", "veth", "peer", "name", "world", "netns", str(origins.pid))
        run("ip", "link", "set", "lo", "up")
        run("ip", "addr", "add", "192.0.2.2/24", "dev", "edge")
        run("ip", "link", "set", "edge", "up")
        origins.stdin.write("linked\n")
        origins.stdin.flush()
        assert origins.stdout.readline() == "ready\n"
        run("ip", "route", "add", "default", "via", "192.0.2.1")
        files = {
            "hosts": "127.0.0.1 localhost\n" + "".join(f"{to} {name}\n" for name, to in config["hosts"].items()),
            "resolv.conf": config.get("resolv", ""),
            "nsswitch.conf": "hosts: files dns\npasswd: files\ngroup: files\n",
        }
        for name, text in files.items():
            (folder / name).write_text(text)
            run("mount", "--bind", str(folder / name), f"/etc/{name}")
        print("ready", flush=True)
        sys.stdin.read()  # until the test closes it
        origins.stdin.close()


if __name__ == "__main__":
    main()

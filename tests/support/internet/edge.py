"""Runs in namespaces of its own: makes the machine's network, starts the world's hosts, and waits to be ended."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

ALIASES = {
    # Addresses, or a name for which this one stands (CNAME).
    "multi.aliases.example.com": ["93.184.216.34", "169.254.169.254", "127.0.0.1", "10.20.30.40"],
    "mixed.aliases.example.com": ["127.0.0.1", "10.20.30.40", "93.184.216.34"],
    "flood.aliases.example.com": ["93.184.216.34"] * 2 + ["169.254.169.254"] * 20,
    "chain.aliases.example.com": "second.aliases.example.com",
    "second.aliases.example.com": "third.aliases.example.com",
    "third.aliases.example.com": ["169.254.169.254", "127.0.0.1"],
    "loop.aliases.example.com": "loop.aliases.example.com",
}


def encoded(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"


def records(name: str) -> list[bytes]:
    """The answers to a question for the addresses of one of ALIASES, with the names that it stands for."""
    made: list[bytes] = []
    for _ in range(8):  # a loop has no end
        found = ALIASES[name]
        if not isinstance(found, str):
            return made + [encoded(name) + b"\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(each) for each in found]
        target = encoded(found)
        made.append(encoded(name) + b"\0\5\0\1\0\0\0\0" + len(target).to_bytes(2, "big") + target)
        name = found
    return made


def serve_names(answers: list[list[str]]) -> None:
    """A name server on 127.0.0.1.

    Whoever asks for an address gets the next of `answers`, over and over; of an alias, what that says; of a name below
    `below`, none.
    """
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    turns = itertools.cycle(answers)
    while True:
        query, client = server.recvfrom(512)
        end = query.index(0, 12) + 5  # after the name: its type and class
        wanted = int.from_bytes(query[end - 4 : end - 2], "big")
        name = query[12 : end - 4].decode("latin-1").lower()
        found: list[bytes] = []
        if wanted == 1:  # A; there is no AAAA
            alias = next((each for each in ALIASES if encoded(each).decode("latin-1") == name), "")
            if alias:
                found = records(alias)
            elif "below" not in name:
                found = [b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(each) for each in next(turns)]
        head = query[:2] + b"\x81\x80\0\1" + len(found).to_bytes(2, "big") + b"\0\0\0\0"
        server.sendto(head + query[12:end] + b"".join(found), client)


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
        run("ip", "addr", "add", f"{config['own']}/32", "dev", "lo")
        origins.stdin.write("linked\n")
        origins.stdin.flush()
        assert origins.stdout.readline() == "ready\n"
        run("ip", "route", "add", "default", "via", "192.0.2.1")
        files = {
            "hosts": "127.0.0.1 localhost\n" + "".join(f"{to} {name}\n" for name, to in config["hosts"].items()),
            "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
            "nsswitch.conf": "hosts: files dns\npasswd: files\ngroup: files\n",
        }
        for name, text in files.items():
            (folder / name).write_text(text)
            run("mount", "--bind", str(folder / name), f"/etc/{name}")
        threading.Thread(target=serve_names, args=(config["rebinding"],), daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()  # until the test closes it
        origins.stdin.close()


if __name__ == "__main__":
    main()

"""An internet of a test's own: two network namespaces, one with the world's hosts, one with a machine that reaches it.

An ordinary user may make them (unshare -Urnm). Nothing in them reaches the real network, so addresses of real hosts, of
private networks and of metadata servers can be used. `edge` and `origins` run inside.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.support.certificates import Authority
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[3]
PUBLIC = "93.184.216.34"
OTHER = "93.184.216.35"
PRIVATE = "10.20.30.40"
OWN = "93.184.217.2"  # of the machine itself, and public
METADATA = "169.254.169.254"
# Every name of a test's world, in its hosts file.
HOSTS: Mapping[str, str] = {
    "origin.example.com": PUBLIC,
    "other.example.com": OTHER,
    "third.example.net": OTHER,
    "inside.example.com": PRIVATE,
    "metadata.example.com": METADATA,
    "loopback.example.com": "127.0.0.1",
    "pypi.org": PUBLIC,
    "files.pythonhosted.org": OTHER,
    "edge.example.com": "192.0.2.2",  # the machine that runs the egress service
}


@dataclass(frozen=True)
class Internet:
    """One that runs. `enter`: the command that runs another in the machine's namespaces."""

    folder: Path
    enter: Sequence[str]
    ca: Path

    @contextmanager
    def bridge(self, path: Path, port: int) -> Iterator[httpx.HTTPTransport]:
        """The way to a port of the machine, over a socket at `path`."""
        command = [*self.enter, sys.executable, "-m", "tests.support.internet.bridge", str(path), str(port)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "ready\n"
            try:
                yield httpx.HTTPTransport(uds=str(path))
            finally:
                process.stdin.close()
                process.kill()

    @contextmanager
    def serve(self, folder: Path, *flags: str) -> Iterator[Server]:
        """A gateway at this world's edge, with its state in `folder`, and a client that reaches it."""
        bridge = partial(self.bridge, folder / "bridge")
        with serve(folder / "state", *flags, wrapper=self.enter, bridge=bridge) as made:
            yield made

    def requests(self) -> list[dict[str, Any]]:
        """What its hosts were asked so far: `address` and `port` of the host, and for HTTP the request."""
        path = self.folder / "requests.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def files(self) -> Path:
        """A folder that every host serves below /files/."""
        return self.folder / "files"


@contextmanager
def internet(folder: Path, hosts: Mapping[str, str] = HOSTS) -> Iterator[Internet]:
    """Make it in `folder`, and end it with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "files").mkdir(exist_ok=True)
    authority = Authority(folder, "origins")
    pair = authority.issue("origin", names=list(hosts))
    # Whom nobody should believe: of an authority that nobody knows, for another name, and of yesterday.
    stranger = Authority(folder, "stranger").issue("unknown", names=list(hosts))
    wrong = {
        8443: stranger,
        8444: authority.issue("misnamed"),
        8445: authority.issue("old", since=-9, days=-1, names=list(hosts)),
    }
    config = {
        "hosts": dict(hosts),
        "addresses": sorted({address for address in hosts.values() if not address.startswith(("127.", "192.0.2."))}),
        "rebinding": [[PUBLIC], [METADATA], [PUBLIC, "127.0.0.1"], ["127.0.0.1"], [PRIVATE], [METADATA, PUBLIC]],
        "own": OWN,
        "cert": str(pair.cert),
        "key": str(pair.key),
        "wrong": {port: [str(each.cert), str(each.key)] for port, each in wrong.items()},
    }
    (folder / "internet.json").write_text(json.dumps(config))
    command = ["unshare", "-Urnm", sys.executable, "-m", "tests.support.internet.edge", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        enter = ["nsenter", "-t", str(process.pid), "-U", "-n", "-m", "--preserve-credentials"]
        enter += [f"--wd={ROOT}", "--"]
        yield Internet(folder, enter, authority.file)
    finally:
        process.communicate(timeout=20)  # the end of its input ends it, and its origins
        wait_until(lambda: process.poll() is not None, "the internet has ended")

#!/usr/bin/env python3
"""Put sessions of a running gateway to sleep and use them on with AgentCube's published SDK, which knows nothing of it.

    pip install agentcube-sdk==0.1.0
    .venv/bin/python scripts/acceptance_sleep.py [URL]        # after scripts/install dev

URL defaults to ROUTER_URL, else http://127.0.0.1:8080. Environment: CODE_INTERPRETER (my-interpreter), NAMESPACE
(default). Prints one line per check; exits 0 when every one holds. A runtime without code contexts is not asked for
them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests
from agentcube import CodeInterpreterClient
from agentcube.exceptions import CommandExecutionError

NAME = os.environ.get("CODE_INTERPRETER", "my-interpreter")
NAMESPACE = os.environ.get("NAMESPACE", "default")
LIMIT_S = 60

MAKE = """
mkdir -p tree/deep tree/empty 'a name with spaces'
printf '#!/bin/sh\\necho it runs\\n' > tree/run.sh && chmod 750 tree/run.sh
printf secret > tree/shut && chmod 400 tree/shut
ln -s ../note.txt tree/link && ln -s nowhere tree/dangling && ln tree/shut tree/deep/twin
truncate -s 50M tree/sparse && printf end >> tree/sparse
touch -d @1234567890 tree/run.sh
"""
LOOK = """
find . -mindepth 1 -printf '%P %y %m %n %l\\n' | sort
stat -c '%n %s %Y' tree/run.sh tree/sparse; tail -c 3 tree/sparse; cat tree/link; sha256sum data/blob.bin
"""


class Checks:
    """Says what holds, and counts what does not."""

    failed = 0

    def __call__(self, what: str, holds: bool, seen: object = "") -> None:
        """One check; `seen` is shown when it does not hold."""
        print(("ok    " if holds else "FAIL  ") + what + ("" if holds else f"   saw: {seen!r}"[:400]), flush=True)
        self.failed += not holds


class Session:
    """A session of the SDK, with the gateway's own API beside it."""

    def __init__(self, url: str, client: CodeInterpreterClient) -> None:
        self._url = url
        self.client = client
        self.id = str(client.session_id)

    def state(self) -> str:
        """As the API shows it."""
        return str(requests.get(f"{self._url}/v1/sessions/{self.id}", timeout=LIMIT_S).json().get("state"))

    def sleep(self) -> str:
        """Put it to sleep; returns its state then."""
        reply = requests.post(f"{self._url}/v1/sessions/{self.id}/hibernate", timeout=LIMIT_S)
        if not reply.ok:
            raise RuntimeError(f"POST {reply.request.path_url} answered {reply.status_code}: {reply.text}")
        return self.state()

    def code(self, code: str) -> dict[str, Any] | None:
        """Run Python in the session's context, where variables stay; the SDK starts an interpreter for each call.

        None: this runtime has no contexts.
        """
        headers = {"x-session-id": self.id}
        reply = requests.post(f"{self._url}/api/run_code", json={"code": code}, headers=headers, timeout=LIMIT_S)
        return None if reply.status_code == 403 else dict(reply.json())


def check_files(check: Checks, session: Session, folder: Path) -> None:
    """What was written before the sleep is there after it, through each call of the SDK, each of which wakes it."""
    client, blob = session.client, os.urandom(1_000_000)
    (folder / "blob").write_bytes(blob)
    client.write_file("kept \u2603\n", "note.txt")
    client.upload_file(str(folder / "blob"), "data/blob.bin")
    client.execute_command(["sh", "-ec", MAKE])
    before = client.execute_command(["sh", "-c", LOOK])

    check("a session can be put to sleep", session.sleep() == "hibernated", session.state())
    began = time.perf_counter()
    note = client.execute_command("cat note.txt")
    took = (time.perf_counter() - began) * 1e3
    check("a command reads back the file, and just works", note == "kept \u2603\n", note)
    check("the session is active again", session.state() == "active", session.state())
    after = client.execute_command(["sh", "-c", LOOK])
    check("modes, times, links, empty folders and sparse files are as they were", after == before, (before, after))
    runs = client.execute_command(["sh", "-c", "tree/run.sh && test -L tree/link && stat -c %a tree/run.sh tree/shut"])
    check("the program runs, the link is one, the modes are", runs == "it runs\n750\n400\n", runs)

    check("it sleeps again", session.sleep() == "hibernated", session.state())
    client.download_file("data/blob.bin", str(folder / "back"))
    check("a download wakes it: 1 MB of noise comes back whole", (folder / "back").read_bytes() == blob)
    session.sleep()
    names = {entry["name"] for entry in client.list_files(".")}
    check("a listing wakes it", {"note.txt", "data", "tree", "a name with spaces"} <= names, names)
    session.sleep()
    client.write_file("more", "later.txt")
    both = client.execute_command("cat note.txt later.txt")
    check("a write wakes it, beside what was there", both == "kept \u2603\nmore", both)
    print(f"      the first command after the sleep took {took:.1f} ms")


def check_code(check: Checks, session: Session) -> None:
    """Variables of the code context, where the gateway's runtime has one."""
    if session.code("import threading\nkept = {'n': 41}\nlock = threading.Lock()") is None:
        print("-     this runtime has no code contexts")
        return
    session.sleep()
    woken = session.code("kept['n'] += 1\nprint(kept['n'])") or {}
    check("variables of the code context are there after a sleep", woken.get("stdout") == "42\n", woken)
    unsaved = [entry["name"] for entry in (woken.get("restored") or {}).get("unsaved", ())]
    check("a variable that cannot sleep is named on the first call", unsaved == ["lock"], woken)
    again = session.code("print(kept['n'])") or {}
    check("and on the first only", again.get("stdout") == "42\n" and not again.get("restored"), again)


def check_others(check: Checks, url: str, session: Session) -> None:
    """Sleep belongs to one session, and does not keep it from ending."""
    urls = {"router_url": url, "workload_manager_url": url}
    session.sleep()
    again = CodeInterpreterClient(name=NAME, namespace=NAMESPACE, session_id=session.id, **urls)
    count = "n = len(open('note.txt').read())\nimport json\nprint(json.dumps({'n': n}))"
    seen = again.run_code("python", count)
    check("a second client with the id wakes it by running code", json.loads(seen) == {"n": 7}, seen)
    session.sleep()
    with CodeInterpreterClient(name=NAME, namespace=NAMESPACE, **urls) as other:
        names = [entry["name"] for entry in other.list_files(".")]
        check("another session sees none of it", "note.txt" not in names, names)
    check("and it slept on meanwhile", session.state() == "hibernated", session.state())
    session.client.stop()
    reply = requests.post(
        f"{url}/v1/namespaces/{NAMESPACE}/code-interpreters/{NAME}/invocations/api/execute",
        headers={"x-agentcube-session-id": session.id},
        json={"command": ["true"]},
        timeout=LIMIT_S,
    )
    check("stopped in its sleep, it is gone", reply.status_code == 404, reply.status_code)


def main() -> int:
    """Run the checks against one gateway."""
    url = (sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ROUTER_URL", "http://127.0.0.1:8080")).rstrip("/")
    check = Checks()
    client = CodeInterpreterClient(name=NAME, namespace=NAMESPACE, router_url=url, workload_manager_url=url)
    try:
        session = Session(url, client)
        with tempfile.TemporaryDirectory() as folder:
            check_files(check, session, Path(folder))
        check_code(check, session)
        check_others(check, url, session)
    except (requests.RequestException, CommandExecutionError, RuntimeError, OSError, ValueError) as error:
        check(f"the checks come to their end: {error}", False, type(error).__name__)
    finally:
        client.stop()
    print(f"{check.failed} failed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

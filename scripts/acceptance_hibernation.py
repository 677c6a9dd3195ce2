#!/usr/bin/env python3
"""Hibernate sessions of a running gateway and keep using them through AgentCube's SDK, which is unaware of it.

    pip install agentcube-sdk==0.1.0
    .venv/bin/python scripts/acceptance_hibernation.py [URL]        # after scripts/install dev

URL defaults to ROUTER_URL, else http://127.0.0.1:8080. Environment: CODE_INTERPRETER (my-interpreter), NAMESPACE
(default). Prints one line per check; exits with 0 if all pass. The check of code contexts is skipped for a runtime
without them.
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
TIMEOUT_S = 60

# One of each kind that a copy can lose: modes, links that lead somewhere and nowhere, a second name of a file, an empty
# folder, a hole of 50 MB, an old time.
CREATE_FILES = """
mkdir -p tree/deep tree/empty 'a name with spaces'
printf '#!/bin/sh\\necho it runs\\n' > tree/run.sh && chmod 750 tree/run.sh
printf secret > tree/shut && chmod 400 tree/shut
ln -s ../note.txt tree/link && ln -s nowhere tree/dangling && ln tree/shut tree/deep/twin
truncate -s 50M tree/sparse && printf end >> tree/sparse
touch -d @1234567890 tree/run.sh
"""
DESCRIBE_FILES = """
find . -mindepth 1 -printf '%P %y %m %n %l\\n' | sort
stat -c '%n %s %Y' tree/run.sh tree/sparse; tail -c 3 tree/sparse; cat tree/link; sha256sum data/blob.bin
"""


class Checks:
    """Prints the result of each check and counts the failures."""

    failed = 0

    def __call__(self, what: str, holds: bool, seen: object = "") -> None:
        """Print one check; `seen` is printed with a failure."""
        print(("ok    " if holds else "FAIL  ") + what + ("" if holds else f"   saw: {seen!r}"[:400]), flush=True)
        self.failed += not holds


class Session:
    """A session of the SDK, with the gateway's own API beside it."""

    def __init__(self, url: str, client: CodeInterpreterClient) -> None:
        self._url = url
        self.client = client
        self.id = str(client.session_id)

    def state(self) -> str:
        """The session's state in the gateway's API."""
        return str(requests.get(f"{self._url}/v1/sessions/{self.id}", timeout=TIMEOUT_S).json().get("state"))

    def hibernate(self) -> str:
        """Hibernate the session. Returns its state afterwards. Raises RuntimeError if the gateway refuses."""
        reply = requests.post(f"{self._url}/v1/sessions/{self.id}/hibernate", timeout=TIMEOUT_S)
        if not reply.ok:
            raise RuntimeError(f"POST {reply.request.path_url} answered {reply.status_code}: {reply.text}")
        return self.state()

    def code(self, code: str) -> dict[str, Any] | None:
        """Run Python in the session's code context; the SDK itself starts a new interpreter for each call.

        None if the runtime has no code contexts.
        """
        # Beside the SDK, whose run_code writes a file and starts a new interpreter for it, which keeps no variables.
        headers = {"x-session-id": self.id}
        reply = requests.post(f"{self._url}/api/run_code", json={"code": code}, headers=headers, timeout=TIMEOUT_S)
        return None if reply.status_code == 403 else dict(reply.json())


def check_files(check: Checks, session: Session, folder: Path) -> None:
    """Files written before a hibernation exist after it, for each call of the SDK; each call wakes the session."""
    # Random bytes: compression makes no difference, and a byte in the wrong place shows.
    client, blob = session.client, os.urandom(1_000_000)
    (folder / "blob").write_bytes(blob)
    client.write_file("kept \u2603\n", "note.txt")
    client.upload_file(str(folder / "blob"), "data/blob.bin")
    client.execute_command(["sh", "-ec", CREATE_FILES])
    before = client.execute_command(["sh", "-c", DESCRIBE_FILES])

    check("a session hibernates", session.hibernate() == "hibernated", session.state())
    began = time.perf_counter()
    note = client.execute_command("cat note.txt")
    took = (time.perf_counter() - began) * 1e3
    check("a command wakes the session and reads a file", note == "kept \u2603\n", note)
    check("the session is active again", session.state() == "active", session.state())
    after = client.execute_command(["sh", "-c", DESCRIBE_FILES])
    check("modes, times, links, empty folders and sparse files are unchanged", after == before, (before, after))
    runs = client.execute_command(["sh", "-c", "tree/run.sh && test -L tree/link && stat -c %a tree/run.sh tree/shut"])
    check("the program is executable, the symlink is one, the modes are kept", runs == "it runs\n750\n400\n", runs)

    check("it hibernates again", session.hibernate() == "hibernated", session.state())
    client.download_file("data/blob.bin", str(folder / "back"))
    check("a download wakes it: 1 MB of random bytes is unchanged", (folder / "back").read_bytes() == blob)
    session.hibernate()
    names = {entry["name"] for entry in client.list_files(".")}
    check("a listing wakes it", {"note.txt", "data", "tree", "a name with spaces"} <= names, names)
    session.hibernate()
    client.write_file("more", "later.txt")
    both = client.execute_command("cat note.txt later.txt")
    check("a write wakes it and keeps the other files", both == "kept \u2603\nmore", both)
    print(f"      the first command after hibernation took {took:.1f} ms")


def check_code(check: Checks, session: Session) -> None:
    """Variables of a code context exist after a hibernation, and those that cannot be saved are reported once."""
    # A lock cannot be pickled, so it has to be reported as lost.
    if session.code("import threading\nkept = {'n': 41}\nlock = threading.Lock()") is None:
        print("-     this runtime has no code contexts")
        return
    session.hibernate()
    woken = session.code("kept['n'] += 1\nprint(kept['n'])") or {}
    check("variables of the code context exist after hibernation", woken.get("stdout") == "42\n", woken)
    unsaved = [entry["name"] for entry in (woken.get("restored") or {}).get("unsaved", ())]
    check("a variable that cannot be saved is reported on the first call", unsaved == ["lock"], woken)
    again = session.code("print(kept['n'])") or {}
    check("and on the first only", again.get("stdout") == "42\n" and not again.get("restored"), again)


def check_others(check: Checks, url: str, session: Session) -> None:
    """A second client can wake a session, other sessions do not affect it, and it can be ended while hibernated."""
    urls = {"router_url": url, "workload_manager_url": url}
    session.hibernate()
    again = CodeInterpreterClient(name=NAME, namespace=NAMESPACE, session_id=session.id, **urls)
    # Seven characters: `kept`, a space, the snowman, a line end.
    count = "n = len(open('note.txt').read())\nimport json\nprint(json.dumps({'n': n}))"
    seen = again.run_code("python", count)
    check("a second client with the id wakes it", json.loads(seen) == {"n": 7}, seen)
    session.hibernate()
    with CodeInterpreterClient(name=NAME, namespace=NAMESPACE, **urls) as other:
        names = [entry["name"] for entry in other.list_files(".")]
        check("another session does not see its files", "note.txt" not in names, names)
    check("and leaves it hibernated", session.state() == "hibernated", session.state())
    session.client.stop()
    reply = requests.post(
        f"{url}/v1/namespaces/{NAMESPACE}/code-interpreters/{NAME}/invocations/api/execute",
        headers={"x-agentcube-session-id": session.id},
        json={"command": ["true"]},
        timeout=TIMEOUT_S,
    )
    check("a hibernated session can be ended", reply.status_code == 404, reply.status_code)


def main() -> int:
    """Run the checks against one gateway."""
    url = (sys.argv[1] if len(sys.argv) > 1 else os.environ.get("ROUTER_URL", "http://127.0.0.1:8080")).rstrip("/")
    check = Checks()
    # The SDK creates the session here; it is ended below, whichever check fails.
    client = CodeInterpreterClient(name=NAME, namespace=NAMESPACE, router_url=url, workload_manager_url=url)
    try:
        session = Session(url, client)
        with tempfile.TemporaryDirectory() as folder:
            check_files(check, session, Path(folder))
        check_code(check, session)
        check_others(check, url, session)
    except (requests.RequestException, CommandExecutionError, RuntimeError, OSError, ValueError) as error:
        check(f"the checks run to completion: {error}", False, type(error).__name__)
    finally:
        client.stop()
    print(f"{check.failed} failed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

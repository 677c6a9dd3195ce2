"""Agents: from `wakegate deploy` to the first answer, and what a request and a background task cost beside a plain one.

    scripts/bench agents_bench [--rounds 300] [--tasks 400] [--deploys 5]

Each part has its baseline in the same run:

    deploy    the same program started by hand, until it answers; then deployed for the first time, deployed again as it
              is (no file is stored), and deployed with another line; and the command that only prints its help
    requests  GET behind a port of a plain session; then the same program as an agent, by header, and by a name in the
              body; and a background task, from its request to its result. The kinds take turns
    tasks     requests that are awaited, as many at a time as tasks may run; then as many tasks, from the first request
              to the last result
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loadtest.figures import quantile
from loadtest.local import gateway, until_full

PORT = 8080
PROGRAM = """
import http.server, os
class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    do_POST = do_GET
    def log_message(self, *_): pass
if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8080"))), Agent).serve_forever()
"""
AT_ONCE = 8
COMMAND = (sys.executable, "-m", "gateway", "deploy")
_STEP_S = 0.005


class Client:
    """One keep-alive connection. `headers`: of every request."""

    def __init__(self, url: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def send(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> tuple[bytes, Any]:
        """The body and the fields of an answer."""
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        reply = self._connection.getresponse()
        answer = reply.read()
        assert reply.status == expect, (reply.status, answer)
        return answer, reply.headers


def timed(act: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def by_hand(folder: Path) -> None:
    """Start the program, and wait for its first answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {**os.environ, "PORT": str(port)}
    with subprocess.Popen([sys.executable, str(folder / "agent.py")], env=environ) as process:
        try:
            while True:
                try:
                    Client(f"http://127.0.0.1:{port}").send("GET", "/")
                    return
                except OSError:
                    time.sleep(_STEP_S)
        finally:
            process.kill()


def deploy(url: str, folder: Path, name: str) -> None:
    """As a user does, until the first answer of a new session."""
    environ = {**os.environ, "WAKEGATE_URL": url, "XDG_CONFIG_HOME": str(folder)}
    words = (str(folder / "agent"), "--name", name, "--conversation", "chat")
    subprocess.run([*COMMAND, *words], env=environ, check=True, stdout=subprocess.DEVNULL)
    Client(url).send("GET", f"{invocations(name)}/")


def invocations(name: str) -> str:
    """Where an agent is asked."""
    return f"/v1/namespaces/default/agent-runtimes/{name}/invocations"


def deployments(url: str, folder: Path, count: int) -> dict[str, list[float]]:
    """Seconds of each kind, in turns."""
    agent = folder / "agent"
    agent.mkdir()
    taken: dict[str, list[float]] = {}
    for number in range(count):
        (agent / "agent.py").write_text(f"{PROGRAM}# {number}\n")
        kinds: dict[str, Callable[[], Any]] = {
            "started by hand": lambda: by_hand(agent),
            "the command's --help": lambda: subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL),
            "deployed first": lambda: deploy(url, folder, f"agent-{number}"),  # noqa: B023 — called at once
            "deployed as it is": lambda: deploy(url, folder, f"agent-{number}"),  # noqa: B023
        }
        for name, act in kinds.items():
            taken.setdefault(name, []).append(timed(act))
        (agent / "agent.py").write_text(f"{PROGRAM}# {number}, changed\n")
        taken.setdefault("deployed with a change", []).append(timed(kinds["deployed first"]))
    return taken


def plain_session(url: str) -> tuple[str, str]:
    """A session of a plain runtime with the program behind a port: its id, and the path."""
    client = Client(url, content_type="application/json")
    session = json.loads(client.send("POST", "/v1/sessions", {"runtime": "default/warm"}, expect=201)[0])["id"]
    inside = Client(url, content_type="application/json", x_session_id=session)
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {PROGRAM!r}], start_new_session=True)"
    inside.send("POST", "/api/execute", {"command": ["python3", "-c", start]})
    path = f"/v1/sessions/{session}/ports/{PORT}/"
    while True:
        try:
            inside.send("GET", path)
            return session, path
        except AssertionError:  # nothing listens yet
            time.sleep(_STEP_S)


def finish(client: Client, place: str) -> None:
    """Wait for a task."""
    while json.loads(client.send("GET", f"{place}?wait=30s")[0])["state"] in ("queued", "running"):
        pass


def requests(url: str, name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, in turns."""
    plain, path = plain_session(url)
    agent = f"{invocations(name)}/"
    session = Client(url).send("GET", agent)[1]["x-session-id"]
    at_port, by_header = Client(url, x_session_id=plain), Client(url, x_session_id=session)
    by_name, later = Client(url), Client(url, x_session_id=session, prefer="respond-async")
    kinds: dict[str, Callable[[], Any]] = {
        "plain session, a port": lambda: at_port.send("POST", path, {"chat": "a"}),
        "agent, x-session-id": lambda: by_header.send("POST", agent, {"chat": "a"}),
        "agent, named in the body": lambda: by_name.send("POST", agent, {"chat": "a"}),
        "background task": lambda: finish(by_header, later.send("POST", agent, {}, expect=202)[1]["location"]),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds + 5):
        for kind, act in kinds.items():
            if kind == "background task" and number % 10:
                continue  # waits for ticks of its own
            took = timed(act)
            if number >= 5:
                taken[kind].append(took)
    return taken


def throughput(url: str, name: str, count: int) -> tuple[float, float]:
    """Requests a second that are awaited, and tasks a second, over as many sessions."""
    agent = f"{invocations(name)}/"
    sessions = [Client(url).send("GET", agent)[1]["x-session-id"] for _ in range(AT_ONCE)]

    def awaited(session: str) -> None:
        client = Client(url, x_session_id=session)
        for _ in range(count // AT_ONCE):
            client.send("POST", agent, {})

    def tasks(session: str) -> None:
        client = Client(url, x_session_id=session, prefer="respond-async")
        places = [client.send("POST", agent, {}, expect=202)[1]["location"] for _ in range(count // AT_ONCE)]
        for place in places:
            finish(client, place)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        first = timed(lambda: list(pool.map(awaited, sessions)))
        second = timed(lambda: list(pool.map(tasks, sessions)))
    return count / first, count / second


def table(title: str, taken: dict[str, list[float]]) -> None:
    """p50 and p95 in ms, and the ratio of p50 to that of the first line."""
    base = quantile(next(iter(taken.values())), 0.5)
    print(f"{title:<28} {'p50 ms':>9} {'p95 ms':>9}   ratio")
    for name, values in taken.items():
        p50 = quantile(values, 0.5)
        print(f"{name:<28} {p50 * 1e3:>9.2f} {quantile(values, 0.95) * 1e3:>9.2f}   {p50 / base:.2f}")


async def main(rounds: int, tasks: int, deploys: int) -> None:
    """Measure all of it against one gateway and print the tables."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        async with gateway(folder, 1) as (client, _):
            await until_full(client, 1)
            url = str(client.base_url)
            table("until the first answer", await asyncio.to_thread(deployments, url, folder, deploys))
            name = f"agent-{deploys - 1}"
            table("a request", await asyncio.to_thread(requests, url, name, rounds))
            awaited, done = await asyncio.to_thread(throughput, url, name, tasks)
    print(f"{'through ' + str(AT_ONCE) + ' sessions':<28} {'a second':>9}   ratio")
    print(f"{'awaited requests':<28} {awaited:>9.0f}   1.00")
    print(f"{'background tasks':<28} {done:>9.0f}   {done / awaited:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Agents: deployments, requests and tasks beside plain ones.")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--deploys", type=int, default=5)
    given = parser.parse_args()
    asyncio.run(main(given.rounds, given.tasks, given.deploys))

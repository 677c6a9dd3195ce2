"""Agents that are invoked in the background: by a real gateway, in real sandboxes."""

from __future__ import annotations

import base64
import hmac
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serve import Server, serve
from tests.support.two_gateways import two
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes

# What it is asked it writes into its workspace, so that a test can count the tries, also of a gateway that was killed.
PROGRAM = """
import http.server, json, os, pathlib, time
class Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, b"ready")
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = self.path.partition("?")[0]
        tries = pathlib.Path(os.environ.get("HOME", ".")) / body.get("name", "tries")
        with open(tries, "a") as file:
            file.write("x")
        n = len(tries.read_text())
        said = {"path": self.path, "tries": n, "task": self.headers["x-wakegate-task"], "input": body,
                "cookie": self.headers["cookie"], "attempt": self.headers["x-wakegate-attempt"]}
        if path == "/flaky" and n < 2 or path == "/broken":
            return self.answer(500, b"not yet")
        if path == "/wrong":
            return self.answer(422, b"no such field")
        if path == "/huge":
            return self.answer(200, b"x" * (5 << 20))
        if path in ("/slow", "/once-slow") and (n < 2 or path == "/slow"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for i in range(6000):
                self.wfile.write(b'data: {"step": %d}\\n\\n' % i)
                self.wfile.flush()
                time.sleep(0.1)
        self.answer(200, json.dumps(said).encode())
    def answer(self, status, data):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
"""
INVOCATIONS = "/v1/namespaces/default/agent-runtimes/worker/invocations"
LEASE = ("--task-lease", "2s", "--webhook-allow", "127.0.0.0/8")


def create(server: Server, **own: Any) -> None:
    """The agent, which keeps two sandboxes ready."""
    container = {
        "name": "agent", "image": "x", "command": ["python3", "-c", PROGRAM],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
    }  # fmt: skip
    spec = {
        "targetPort": [{"port": 8080, "protocol": "HTTP"}],
        "podTemplate": {"spec": {"containers": [container]}},
        **({"wakegate": own} if own else {}),
    }
    made = server.client.post("/v1/agents", json={"name": "worker", "spec": spec})
    assert made.status_code == 201, made.text


def invoke(server: Server, path: str, body: Any = None, **headers: str) -> httpx.Response:
    """Ask for a task."""
    fields = {"prefer": "respond-async", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return server.client.post(INVOCATIONS + path, json=body or {}, headers=fields)


def made(server: Server, path: str, body: Any = None, **headers: str) -> str:
    """The path of a new task."""
    answer = invoke(server, path, body, **headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["preference-applied"] == "respond-async"
    return answer.headers["location"]


def ended(server: Server, place: str) -> dict[str, Any]:
    """The task once it is over."""
    wait_until(lambda: shown(server, place)["state"] not in ("queued", "running"), f"the end of {shown(server, place)}")
    return shown(server, place)


def shown(server: Server, place: str) -> dict[str, Any]:
    document: dict[str, Any] = server.client.get(place).raise_for_status().json()
    return document


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway with the agent, for the tests that do not kill it."""
    with serve(tmp_path_factory.mktemp("tasks") / "state", *LEASE) as one:
        every_minute = {"name": "minutely", "cron": "* * * * *", "path": "/run?by=time", "body": {"name": "minutes"}}
        create(one, invocation={"session": "meta.chat"}, schedules=[every_minute])
        yield one


def test_an_invocation_becomes_a_task_and_its_answer_a_result(server: Server) -> None:
    """Path, query and body reach the agent, cookies do not; the session that was made answers to the next request."""
    place = made(server, "/run/it?x=%2F1", {"n": 1}, cookie="a=b")
    task = ended(server, place)
    assert (task["state"], task["attempts"], task["error"]) == ("succeeded", 1, None), task
    said = task["result"]["body"]
    assert (said["path"], said["input"], said["task"], said["cookie"]) == ("/run/it?x=%2F1", {"n": 1}, task["id"], None)
    raw = server.client.get(f"{place}/result")
    assert (raw.headers["content-type"], raw.json()) == ("application/json", said)
    wait_until(lambda: server.state(task["session"])["state"] == "hibernated", "its session costs nothing")
    again = server.client.post(f"{INVOCATIONS}/run", json={}, headers={"x-session-id": task["session"]})
    assert (again.json()["tries"], again.json()["task"]) == (2, None)
    listed = server.client.get("/v1/agents/worker/tasks", params={"state": "succeeded"}).json()
    assert task["id"] in [each["id"] for each in listed["tasks"]]
    assert server.client.delete(place).status_code == 204
    assert server.client.get(place).status_code == 404


def test_a_failure_is_tried_again_and_a_wrong_request_is_not(server: Server) -> None:
    """In the same session; what stays broken is a dead letter, which somebody may have tried again."""
    flaky, broken, wrong = (
        made(server, path, x_wakegate_task_attempts="2") for path in ("/flaky", "/broken", "/wrong")
    )
    assert (ended(server, flaky)["state"], shown(server, flaky)["attempts"]) == ("succeeded", 2)
    dead = ended(server, broken)
    assert (dead["state"], dead["attempts"], dead["error"]) == ("dead", 2, "the agent answered 500")
    assert dead["result"]["body"] == "not yet"
    refused = ended(server, wrong)
    assert (refused["state"], refused["attempts"], refused["result"]["status"]) == ("failed", 1, 422)
    assert ended(server, made(server, "/huge"))["error"].startswith("its answer is larger")
    letters = server.client.get("/v1/agents/worker/tasks?state=dead").json()["tasks"]
    assert dead["id"] in [each["id"] for each in letters]
    assert {each["state"] for each in letters} == {"dead"}
    assert server.client.post(f"{broken}/retry").json()["state"] == "queued"
    assert ended(server, broken)["attempts"] == 2


def test_a_task_that_runs_shows_its_progress_and_is_stopped(server: Server) -> None:
    """Progress is the last event of its stream; the agent's connection ends with the task."""
    place = made(server, "/slow")
    wait_until(lambda: "last" in shown(server, place)["progress"], "its progress is seen")
    assert shown(server, place)["state"] == "running"
    assert server.client.get(f"{place}/result").status_code == 409
    assert server.client.delete(place).status_code == 409
    server.client.post(f"{place}/cancel")
    assert ended(server, place)["state"] == "cancelled"
    timed = made(server, "/slow", x_wakegate_task_timeout="500ms", x_wakegate_task_attempts="1")
    assert (ended(server, timed)["state"], shown(server, timed)["error"]) == (
        "dead", "the agent did not answer within 0.5 s",
    )  # fmt: skip


def test_tasks_of_one_session_run_one_after_the_other(server: Server) -> None:
    """In its sandbox, whose files they share; a session of others' is not found."""
    first = ended(server, made(server, "/run", {"name": "shared"}))
    places = [made(server, "/run", {"name": "shared"}, x_session_id=first["session"]) for _ in range(5)]
    assert sorted(ended(server, each)["result"]["body"]["tries"] for each in places) == [2, 3, 4, 5, 6]
    assert invoke(server, "/run", x_session_id="unknown").status_code == 404
    assert server.client.post(INVOCATIONS + "/run", json={}, headers={"prefer": "wait=5"}).status_code == 200


def test_a_conversation_that_the_body_names_has_one_session(server: Server) -> None:
    """Its requests run in it one after the other, also those that come before it is made; another one replaces it."""
    first, second = ({"name": "shared", "meta": {"chat": chat}} for chat in ("ada", 7))
    places = [made(server, "/run", body) for body in (first, first, second, first)]
    tasks = [ended(server, place) for place in places]
    ada, seven = tasks[0]["session"], tasks[2]["session"]
    assert [task["session"] for task in tasks] == [ada, ada, seven, ada]
    assert ada != seven
    assert sorted(tasks[n]["result"]["body"]["tries"] for n in (0, 1, 3)) == [1, 2, 3]
    assert server.client.delete(f"/v1/sessions/{ada}").status_code < 300
    after = ended(server, made(server, "/run", first))
    assert (after["attempts"], after["result"]["body"]["tries"]) == (1, 1)
    assert ended(server, made(server, "/run", first))["session"] == after["session"] != ada
    unnamed = [ended(server, made(server, "/run", body))["session"] for body in ({}, {"meta": 1})]
    assert len({*unnamed, ada, seven, after["session"]}) == 5
    for wrong in (True, [1], {"a": 1}, "x" * 257):
        refused = invoke(server, "/run", {"meta": {"chat": wrong}})
        assert (refused.status_code, "meta.chat" in refused.text) == (400, True), refused.text


def test_commands_ask_an_agent_and_look_after_its_tasks(server: Server, tmp_path: Path) -> None:
    """Bytes of answers on standard output, remarks beside it, and an exit status for scripts."""

    def wakegate(*words: str, text: str = "") -> tuple[int, str, str]:
        environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words],
            input=text,
            capture_output=True,
            text=True,
            env=environ,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    status, said, remark = wakegate("invoke", "worker", "--path", "/run?a=b", "-d", '{"name": "cli"}')
    assert (status, json.loads(said)["path"], json.loads(said)["task"]) == (0, "/run?a=b", None), remark
    session = remark.split()[-1]
    status, said, remark = wakegate(
        "invoke", "default/worker", "--path", "run", "-d", "@-", "--session", session, "--wait", text='{"name": "cli"}'
    )
    assert (status, json.loads(said)["tries"], remark.split()[0]) == (0, 2, "task"), remark
    task = remark.split()[-1]
    assert wakegate("tasks", "result", "worker", task) == (0, said, "")
    assert json.loads(wakegate("tasks", "show", "worker", task, "-o", "json")[1])["session"] == session
    status, said, _ = wakegate("invoke", "worker", "--async", "--attempts", "1", "--path", "/broken")
    letter = said.strip()
    status, said, remark = wakegate("tasks", "result", "--wait", "worker", letter)
    assert (status, said, "dead" in remark) == (1, "not yet", True)
    assert letter in wakegate("tasks", "list", "worker", "--state", "dead", "-o", "name")[1].split()
    assert wakegate("tasks", "list", "worker")[1].splitlines()[0].split()[:4] == ["ID", "STATE", "AGE", "TRIES"]
    assert wakegate("tasks", "retry", "worker", letter)[1].startswith(f"{letter} queued")
    assert wakegate("tasks", "cancel", "worker", letter)[0] == 0
    assert wakegate("tasks", "show", "worker", "task_unknown")[0] == 4
    assert wakegate("invoke", "nobody")[0] == 4
    assert wakegate("invoke", "worker", "--attempts", "2")[0] == 2
    assert wakegate("invoke", "worker", "-d", "@/nowhere")[0] == 2


def test_a_request_that_is_sent_again_makes_one_task(server: Server) -> None:
    """By its key; the same key with another body is refused, and so is what no task can be."""
    first = invoke(server, "/run", {"n": 1}, idempotency_key="k")
    assert invoke(server, "/run", {"n": 1}, idempotency_key="k").json()["id"] == first.json()["id"]
    assert invoke(server, "/run", {"n": 2}, idempotency_key="k").status_code == 422
    for headers in (
        {"x-wakegate-task-attempts": "0"},
        {"x-wakegate-task-timeout": "-1"},
        {"x-wakegate-task-timeout": "9d"},
    ):
        wrong = server.client.post(INVOCATIONS + "/run", json={}, headers={"prefer": "respond-async", **headers})
        assert wrong.status_code == 400, wrong.text
    large = server.client.post(
        INVOCATIONS + "/run", content=b"x" * (1 << 20) + b"x", headers={"prefer": "respond-async"}
    )
    assert large.status_code == 413 or large.status_code == 400
    elsewhere = INVOCATIONS.replace("worker", "nobody")
    assert server.client.post(elsewhere + "/run", json={}, headers={"prefer": "respond-async"}).status_code == 404


def test_a_webhook_says_that_a_task_is_over_and_is_signed(server: Server) -> None:
    """Again until its receiver takes it; never to an address inside that no operator has opened."""
    received: list[tuple[dict[str, str], bytes]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(503 if len(received) == 1 else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        place = made(server, "/run", x_wakegate_webhook=f"http://127.0.0.1:{receiver.server_port}/hook?a=1")
        wait_until(lambda: shown(server, place)["webhook"]["state"] == "delivered", "it is delivered")
        receiver.shutdown()
    assert shown(server, place)["webhook"]["attempts"] == 2
    (first, body), (second, same) = received
    assert (first["webhook-id"], body) == (second["webhook-id"], same)
    document = json.loads(body)
    assert (document["type"], document["data"]["id"]) == ("task.succeeded", shown(server, place)["id"])
    assert "body" not in document["data"]["result"]
    secret = server.client.get("/v1/agents/worker/webhook-secret").json()["secret"]
    signed = f"{second['webhook-id']}.{second['webhook-timestamp']}.".encode() + same
    expected = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, "sha256")
    assert second["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
    for url in (
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/",
        "ftp://example.com/",
        "http://2130706433/",
    ):
        refused = invoke(server, "/run", x_wakegate_webhook=url)
        assert refused.status_code == 400, url
        assert "x-wakegate-webhook" in refused.text


def test_metrics_show_what_waits_what_runs_and_what_became_of_it(server: Server) -> None:
    """By agent; what waits and runs is counted in the store, so that every gateway shows all of it."""

    def value(name: str, **labels: str) -> float:
        wanted = {"runtime": "agent-runtimes/default/worker", **labels}
        families = text_string_to_metric_families(server.client.get("/metrics").text)
        return sum(each.value for family in families for each in family.samples
                   if each.name == f"wakegate_{name}" and each.labels == wanted)  # fmt: skip

    first = ended(server, made(server, "/run"))
    tries, cancelled = value("task_tries_total"), value("tasks_ended_total", state="cancelled")
    assert value("tasks_ended_total", state="succeeded") >= 1
    places = [made(server, "/slow", x_session_id=first["session"]) for _ in range(2)]
    wait_until(
        lambda: (
            value("tasks", state="running") >= 1 <= value("tasks", state="queued")
            and 0 < value("task_oldest_queued_seconds") <= value("task_oldest_seconds")
        ),
        "one runs, and the other one waits for it",
    )
    assert value("task_tries_total") > tries
    for place in places:
        server.client.post(f"{place}/cancel")
    wait_until(lambda: value("tasks_ended_total", state="cancelled") >= cancelled + 2, "both were stopped")


@pytest.mark.timeout(180)
def test_a_schedule_asks_the_agent_by_itself(server: Server, tmp_path: Path) -> None:
    """Nobody sent it a request; the task says by which schedule it was made."""

    def of_schedule() -> list[dict[str, Any]]:
        tasks = server.client.get("/v1/agents/worker/tasks?state=succeeded&limit=100").json()["tasks"]
        return [each for each in tasks if each["schedule"]]

    # The minute began with the first test of the module: what is left of it is the wait.
    wait_until(of_schedule, "the minute is over, and its task too", within=120.0)
    [task, *_] = of_schedule()
    assert (task["schedule"], task["path"], task["createdBy"]) == ("minutely", "/run?by=time", "schedule minutely")
    said = server.client.get(f"/v1/agents/worker/tasks/{task['id']}").json()["result"]["body"]
    assert said["input"] == {"name": "minutes"}
    [shown] = server.client.get("/v1/agents/worker/schedules").json()["schedules"]
    assert (shown["name"], shown["cron"]) == ("minutely", "* * * * *")
    assert shown["last"] < shown["next"]
    assert (shown["lastTask"][:5], shown["next"] % 60) == ("task_", 0)
    environ = {**os.environ, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "gateway", "tasks", "schedules", "worker"]
    listed = subprocess.run(command, capture_output=True, text=True, env=environ, check=True).stdout
    assert "OUTCOME" in listed
    assert "minutely" in listed


def test_a_task_survives_kill_9_of_its_gateway(tmp_path: Path) -> None:
    """One that ran is begun again, in its session with the files of the first try; one that waited runs."""
    with serve(tmp_path / "state", *LEASE) as server:
        create(server)
        place = made(server, "/once-slow")
        wait_until(lambda: "last" in shown(server, place)["progress"], "it runs")
        waits = made(server, "/run", x_session_id=shown(server, place)["session"])
        # As long as the gateway needs to run another one that is due: this one waits for the one in its session.
        assert ended(server, made(server, "/run"))["state"] == "succeeded"
        assert shown(server, waits)["state"] == "queued"
        server.kill()
    with serve(tmp_path / "state", *LEASE) as server:
        task = ended(server, place)
        assert (task["state"], task["attempts"]) == ("succeeded", 2), task
        both = [task, ended(server, waits)]
        assert sorted(each["result"]["body"]["tries"] for each in both) == [2, 3]  # in either order


class Hooks:
    """A receiver of webhooks: `hang` keeps the first of them unanswered."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.hung = threading.Event()
        self.released = threading.Event()
        hooks = self

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                hooks.ids.append(str(self.headers["webhook-id"]))
                if len(hooks.ids) == 1:
                    hooks.hung.set()
                    hooks.released.wait(60)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.timeout(120)
def test_each_state_of_a_task_survives_kill_9_of_its_gateway(tmp_path: Path) -> None:
    """One between two tries, one whose webhook is on its way or not taken yet, one that is over, cancelled, or kept."""
    hooks = Hooks()
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/"
    try:
        with serve(tmp_path / "state", *LEASE) as server:
            create(server, invocation={"session": "meta.chat"})
            talk = {"name": "talk", "meta": {"chat": "ada"}}
            over = made(server, "/run", talk, idempotency_key="once")
            session = ended(server, over)["session"]
            cancelled = made(server, "/slow", {"name": "cancelled"})
            wait_until(lambda: "last" in shown(server, cancelled)["progress"], "it runs")
            server.client.post(f"{cancelled}/cancel").raise_for_status()
            untaken = made(server, "/run", {"name": "untaken"}, x_wakegate_webhook=closed)
            wait_until(lambda: shown(server, untaken)["webhook"]["attempts"] > 0, "it was not taken")
            on_its_way = made(server, "/run", {"name": "way"}, x_wakegate_webhook=hooks.url)
            assert hooks.hung.wait(60)
            between = made(server, "/broken", {"name": "between"}, x_wakegate_task_attempts="2")
            wait_until(lambda: shown(server, between)["attempts"] == 1 and shown(server, between)["error"], "it failed")
            server.kill()
        with serve(tmp_path / "state", *LEASE) as server:
            again = invoke(server, "/run", talk, idempotency_key="once")
            assert (again.headers["location"], shown(server, over)["result"]["body"]["tries"]) == (over, 1)
            reply = server.client.post(f"{INVOCATIONS}/run", json=talk)
            assert (reply.headers["x-session-id"], reply.json()["tries"]) == (session, 2)
            assert ended(server, cancelled)["state"] == "cancelled"
            task = ended(server, between)
            assert (task["state"], task["attempts"]) == ("dead", 2), task
            wait_until(lambda: shown(server, on_its_way)["webhook"]["state"] == "delivered", "it is sent again")
            assert len(set(hooks.ids)) == 1
            assert len(hooks.ids) == 2
            assert shown(server, on_its_way)["attempts"] == 1
            assert shown(server, untaken)["webhook"]["state"] == "pending"
            assert shown(server, untaken)["state"] == "succeeded"
    finally:
        hooks.released.set()
        hooks.server.shutdown()
        hooks.server.server_close()


@pytest.mark.timeout(120)  # three sandboxes of two gateways are started one after the other, and a lease has to end
def test_gateways_that_share_a_store_run_each_task_once_and_take_over(tmp_path: Path) -> None:
    """They share a Redis; each task is run by one of them, and what one is asked the other one tells."""
    with two(tmp_path, *LEASE) as (a, b, _):
        create(a, invocation={"session": "meta.chat"})
        wait_until(lambda: b.client.get("/v1/agents/worker").status_code == 200, "the other one knows the agent")
        places = [made(gateway, "/run") for gateway in (a, b) for _ in range(4)]
        for place in places:
            assert (ended(b, place)["attempts"], shown(a, place)["result"]["body"]["tries"]) == (1, 1)
        # A conversation that the body names is one session, whichever of them is asked: the other one passes it on.
        talk = {"name": "talk", "meta": {"chat": "ada"}}
        answers = [gateway.client.post(f"{INVOCATIONS}/run", json=talk) for gateway in (a, b, a, b)]
        assert [each.json()["tries"] for each in answers] == [1, 2, 3, 4]
        assert len({each.headers["x-session-id"] for each in answers}) == 1
        place = made(a, "/slow")
        wait_until(lambda: "last" in shown(b, place)["progress"], "it runs")
        # Both take tasks, and either may have this one: the other has to go on with it.
        killed, left = (a, b) if is_busy(a) else (b, a)
        killed.kill()
        wait_until(
            lambda: (shown(left, place)["attempts"], "last" in shown(left, place)["progress"]) == (2, True),
            "it runs anew, in another session: that of a dead gateway stays with it",
            within=60.0,
        )
        left.client.post(f"{place}/cancel")
        assert ended(left, place)["state"] == "cancelled"


def is_busy(server: Server) -> bool:
    """Whether a request is at an agent's sandbox of this gateway."""
    lines = server.client.get("/metrics").text.splitlines()
    busy = [line for line in lines if line.startswith("wakegate_requests_in_flight{") and "worker" in line]
    return any(float(line.rpartition(" ")[2]) for line in busy)

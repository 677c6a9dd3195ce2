"""E2B's own SDKs against a gateway: sandboxes, commands, files, code, pauses; with keys, and with bad input."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotFoundException,
    PtySize,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from e2b_code_interpreter import Sandbox  # type: ignore[import-untyped]

from tests.support.keyed import make_key, serve_with_keys
from tests.support.serve import Server
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A gateway that asks for keys."""
    with serve_with_keys(tmp_path_factory.mktemp("wg"), "--domain", "sandboxes.example") as served:
        yield served


@pytest.fixture(scope="module")
def options(server: Server) -> dict[str, Any]:
    """How a client is pointed here."""
    return {"api_key": make_key(server, "acme"), "api_url": server.url, "sandbox_url": server.url}


@pytest.fixture(scope="module")
def sandbox(options: dict[str, Any]) -> Iterator[Sandbox]:
    """One sandbox for the module."""
    made = Sandbox.create(timeout=600, metadata={"a": "b c"}, envs={"FOO": "1"}, **options)
    yield made
    made.kill()


def test_commands_have_a_home_variables_and_an_exit(sandbox: Sandbox) -> None:
    """Both streams, the working directory, the sandbox's variables under those of the call."""
    result = sandbox.commands.run("echo $FOO $BAR; pwd; echo err >&2", envs={"BAR": "2"})
    assert (result.stdout, result.stderr, result.exit_code) == ("1 2\n/home/user\n", "err\n", 0)
    assert sandbox.commands.run("pwd", cwd="/").stdout == "/\n"
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("exit 3")
    assert failed.value.exit_code == 3
    with pytest.raises(InvalidArgumentException):
        sandbox.commands.run("pwd", cwd="/no/such")


def test_commands_run_on_in_the_background_and_take_input(sandbox: Sandbox) -> None:
    """A started command is listed, joined, given input, and killed once."""
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    assert handle.pid in [each.pid for each in sandbox.commands.list()]
    sandbox.commands.send_stdin(handle.pid, "abc\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "abc\n"
    sleeper = sandbox.commands.run("sleep 1000", background=True)
    assert sandbox.commands.connect(sleeper.pid).pid == sleeper.pid
    assert sleeper.kill()
    assert not sandbox.commands.kill(sleeper.pid)


def test_command_is_killed_at_its_timeout(sandbox: Sandbox) -> None:
    """The process ends with the request that timed out."""
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 1001", timeout=1)
    wait_until(lambda: "sleep 1001" not in str(sandbox.commands.list()), "the command to be killed")


def test_terminal_takes_keys_and_sizes(sandbox: Sandbox) -> None:
    """A pseudo-terminal with a shell, resized while it runs."""
    terminal = sandbox.pty.create(size=PtySize(rows=24, cols=80))
    sandbox.pty.resize(terminal.pid, PtySize(rows=11, cols=22))
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    printed: list[bytes] = []
    terminal.wait(on_pty=printed.append)
    assert b"11 22" in b"".join(printed)


def test_files_are_written_read_listed_moved_and_watched(sandbox: Sandbox) -> None:
    """Relative to the home, in /tmp, and across the two."""
    files = sandbox.files
    assert files.write("a/b.txt", "hello").path == "/home/user/a/b.txt"
    assert files.read("a/b.txt") == "hello"
    assert [(each.name, each.type) for each in files.list("a")] == [("b.txt", FileType.FILE)]
    assert files.get_info("a").permissions == "drwxr-xr-x"
    files.write("/tmp/x.bin", b"\xff\x00")
    assert bytes(files.read("/tmp/x.bin", format="bytes")) == b"\xff\x00"
    assert sandbox.commands.run("cat /home/user/a/b.txt /workspace/a/b.txt").stdout == "hellohello"
    assert files.make_dir("d/e")
    assert not files.make_dir("d/e")
    watcher = files.watch_dir("d", recursive=True)
    assert files.rename("a/b.txt", "/tmp/moved.txt").path == "/tmp/moved.txt"
    assert files.rename("/tmp/moved.txt", "d/e/back.txt").name == "back.txt"
    seen: list[str] = []

    def has_seen() -> bool:
        seen.extend(each.name for each in watcher.get_new_events())
        return "e/back.txt" in seen

    wait_until(has_seen, "the change")
    watcher.stop()
    with pytest.raises(FileNotFoundException):
        files.read("nope")
    files.remove("d")
    assert not files.exists("d")
    assert [each.name for each in files.write_files([{"path": "1", "data": "a"}, {"path": "/tmp/2", "data": "b"}])] == [
        "1",
        "2",
    ]


def test_code_keeps_its_state_and_shows_results(sandbox: Sandbox) -> None:
    """Values and displays, errors, variables of one run, contexts with a directory."""
    run = sandbox.run_code("x = 41\nprint('hi')\nx + 1")
    assert (run.text, run.logs.stdout, run.execution_count) == ("42", ["hi\n"], 1)
    shown = sandbox.run_code("display('d')\nx")
    assert [each.is_main_result for each in shown.results] == [False, True]
    assert sandbox.run_code("import os; os.environ.get('ONCE')", envs={"ONCE": "1"}).text == "1"
    assert sandbox.run_code("os.environ.get('ONCE'), os.environ['FOO']").text == "(None, '1')"
    error = sandbox.run_code("1/0").error
    assert error is not None
    assert error.name == "ZeroDivisionError"
    assert "png" in list(sandbox.run_code("import matplotlib.pyplot as p; p.plot([1]); p.show()").results[0].formats())
    context = sandbox.create_code_context(cwd="/tmp")
    assert sandbox.run_code("import os; os.getcwd()", context=context).text == "/tmp"
    assert sandbox.run_code("echo $((1+1))", language="bash").logs.stdout == ["2\n"]
    sandbox.remove_code_context(context)
    with pytest.raises(NotFoundException):
        sandbox.run_code("1", context=context)


def test_paused_sandbox_wakes_with_files_and_variables(options: dict[str, Any]) -> None:
    """pause() hibernates, a second one says it is paused; connect() and any request wake it."""
    made = Sandbox.create(timeout=300, **options)
    try:
        made.run_code("kept = 7")
        made.files.write("kept.txt", "text")
        assert made.pause()
        assert not made.pause()
        assert made.get_info().state is SandboxState.PAUSED
        again = Sandbox.connect(made.sandbox_id, **options)
        assert again.run_code("kept").text == "7"
        again.pause()
        assert made.files.read("kept.txt") == "text"
        assert made.get_info().state is SandboxState.RUNNING
    finally:
        assert made.kill()
    assert not made.kill()
    assert not made.is_running()


def test_list_filters_by_metadata_and_state(sandbox: Sandbox, options: dict[str, Any]) -> None:
    """The filter is encoded three times by the SDK; private metadata is in no answer."""
    found = Sandbox.list(query=SandboxQuery(metadata={"a": "b c"}), **_control(options)).next_items()
    assert [each.sandbox_id for each in found] == [sandbox.sandbox_id]
    assert found[0].metadata == {"a": "b c"}
    assert Sandbox.list(query=SandboxQuery(metadata={"a": "other"}), **_control(options)).next_items() == []
    paused = SandboxQuery(metadata={"a": "b c"}, state=[SandboxState.PAUSED])
    assert Sandbox.list(query=paused, **_control(options)).next_items() == []


def test_metrics_are_of_now(sandbox: Sandbox) -> None:
    """With the limits of the sandbox, and none in a time that is past."""
    sample = sandbox.get_metrics()[0]
    assert sample.mem_used > 0
    assert sample.cpu_used_pct >= 0
    assert (sample.cpu_count, sample.mem_total) == (1, 1 << 30)
    past = datetime.now(UTC) - timedelta(days=1)
    assert sandbox.get_metrics(start=past - timedelta(days=1), end=past) == []


def test_metadata_and_timeouts_changed_elsewhere_keep_the_sandboxs_variables(
    server: Server, sandbox: Sandbox, options: dict[str, Any]
) -> None:
    """PATCH of the native API replaces the client's metadata alone, and shows nothing that is private."""
    headers = {"authorization": f"Bearer {options['api_key']}"}
    path = f"/v1/sessions/{sandbox.sandbox_id}"
    assert "FOO" not in server.client.get(path, headers=headers).text
    refused = server.client.patch(path, json={"metadata": {"wakegate.private.e2b": "{}"}}, headers=headers)
    assert refused.status_code == 400
    assert server.client.patch(path, json={"metadata": {"a": "b c", "n": "1"}}, headers=headers).status_code == 200
    assert sandbox.commands.run("echo $FOO").stdout == "1\n"
    sandbox.set_timeout(500)


def test_another_tenants_sandbox_does_not_exist(server: Server, sandbox: Sandbox, options: dict[str, Any]) -> None:
    """Neither with another tenant's key, nor without one, nor with another sandbox's token."""
    other = {**options, "api_key": make_key(server, "other")}
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id, **other)
    assert Sandbox.list(**_control(other)).next_items() == []
    with pytest.raises(AuthenticationException):
        Sandbox.create(**{**options, "api_key": "e2b_" + "0" * 40})
    named = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49983"}
    assert server.client.get("/files?path=1", headers=named).status_code == 401
    assert server.client.get("/files?path=1", headers={**named, "x-access-token": "0" * 64}).status_code == 401
    theirs = {**named, "x-api-key": other["api_key"]}
    assert server.client.get("/files?path=1", headers=theirs).status_code == 502


def test_bad_requests_to_a_sandbox_are_refused_in_its_shape(server: Server, sandbox: Sandbox, options: Any) -> None:
    """Half a name, other ports, protobuf, compression, truncated envelopes, sizes of zero: an error each."""
    key = {"x-api-key": options["api_key"]}
    named = {**key, "e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49983"}
    client = server.client
    for headers in (
        {**key, "e2b-sandbox-id": "x"},
        {**key, "e2b-sandbox-port": "1"},
        {**named, "e2b-sandbox-port": "80"},
    ):
        assert client.get("/health", headers=headers).status_code == 400
    gone = client.get("/files?path=1", headers={**named, "e2b-sandbox-id": "no-such"})
    assert (gone.status_code, gone.json()["message"]) == (502, "The sandbox was not found")
    half = client.get("/files?path=1", headers={**named, "e2b-sandbox-id": sandbox.sandbox_id[:-1]})
    assert (half.status_code, half.json()["message"]) == (502, "The sandbox was not found")
    start, stat = "/process.Process/Start", "/filesystem.Filesystem/Stat"
    for content_type in ("application/proto", "text/plain", ""):
        wrong = client.post(stat, headers={**named, "content-type": content_type}, content=b'{"path": "."}')
        assert (wrong.status_code, wrong.json()["code"]) == (501, "unimplemented")
    assert client.post(start, headers={**named, "content-type": "application/proto"}, content=b"").status_code == 501
    stream = {**named, "content-type": "application/connect+json"}
    packed = client.post(stat, headers={**named, "content-encoding": "gzip"}, json={"path": "."})
    assert (packed.status_code, "compressed" in packed.json()["message"]) == (501, True)
    packed = client.post(start, headers={**stream, "connect-content-encoding": "gzip"}, content=b"")
    assert b"compressed" in packed.content
    for body in (b"", b"\0\0\0\0\5{}", struct.pack(">BI", 1, 2) + b"{}"):
        reply = client.post(start, headers=stream, content=body)
        assert b'"error"' in reply.content, reply.content
    update = {"process": {"pid": 1}, "pty": {"size": {"cols": 0, "rows": 0}}}
    reply = client.post("/process.Process/Update", headers=named, json=update)
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_argument")
    opened = orjson.dumps({"process": {"cmd": "sh"}, "pty": {"size": {"cols": 80, "rows": 0}}})
    reply = client.post(start, headers=stream, content=struct.pack(">BI", 0, len(opened)) + opened)
    assert b"pty.size" in reply.content
    for text in ("%25zz", "a%3D%2525ff"):
        assert client.get(f"/v2/sandboxes?metadata={text}", headers=key).status_code == 400
    assert client.post("/filesystem.Filesystem/Nope", headers=named, json={}).status_code == 501
    signed = client.get("/files?path=1&signature=v1_x", headers=key)
    assert (signed.status_code, "E2B_DOMAIN" in signed.json()["message"]) == (400, True)
    assert client.post("/sandboxes", headers=key, json={"templateID": "no-such"}).status_code == 404
    assert client.post("/v2/sandboxes", headers=key, json={"timeout": "x"}).status_code == 400
    assert client.post(f"/sandboxes/{sandbox.sandbox_id}/fork", headers=key, json={}).status_code == 501


def test_sandbox_that_has_ended_is_known_no_more(server: Server, options: dict[str, Any]) -> None:
    """By its timeout as by its client: requests to it, calls and the control plane say so in their own shapes."""
    made = Sandbox.create(timeout=1, **options)
    control = {"x-api-key": options["api_key"]}
    token = {"x-access-token": str(made._envd_access_token)}
    wait_until(
        lambda: server.client.get(f"/sandboxes/{made.sandbox_id}", headers=control).status_code == 404, "its timeout"
    )
    for credential in (control, token):
        named = {**credential, "e2b-sandbox-id": made.sandbox_id, "e2b-sandbox-port": "49983"}
        for reply in (
            server.client.get("/files?path=1", headers=named),
            server.client.post("/filesystem.Filesystem/Stat", headers=named, json={"path": "."}),
            server.client.post("/execute", headers={**named, "e2b-sandbox-port": "49999"}, json={"code": "1"}),
        ):
            assert (reply.status_code, reply.json()["message"]) == (502, "The sandbox was not found")
    assert server.client.post(f"/sandboxes/{made.sandbox_id}/connect", headers=control, json={}).status_code == 404
    assert server.client.delete(f"/sandboxes/{made.sandbox_id}", headers=control).status_code == 404


def test_watch_ends_with_what_it_watches(server: Server, sandbox: Sandbox, options: dict[str, Any]) -> None:
    """A directory that goes ends its stream in order, and its polled watcher; a file cannot be watched at all."""
    sandbox.files.write("goes/a.txt", "x")
    named = {"x-api-key": options["api_key"], "e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49983"}
    stream = {**named, "content-type": "application/connect+json"}

    def envelope(message: dict[str, Any]) -> bytes:
        data = orjson.dumps(message)
        return struct.pack(">BI", 0, len(data)) + data

    watched, polled = "/filesystem.Filesystem/WatchDir", "/filesystem.Filesystem/GetWatcherEvents"
    of_file = server.client.post(watched, headers=stream, content=envelope({"path": "goes/a.txt"}))
    assert b'"error"' in of_file.content
    made = server.client.post("/filesystem.Filesystem/CreateWatcher", headers=named, json={"path": "goes"}).json()
    with server.client.stream("POST", watched, headers=stream, content=envelope({"path": "goes"})) as reply:
        pieces = reply.iter_bytes()
        assert b'"start"' in next(pieces)
        sandbox.files.remove("goes")
        rest = b"".join(pieces)
    assert rest.endswith(b"\x02\0\0\0\x02{}")
    wait_until(lambda: server.client.post(polled, headers=named, json=made).status_code == 404, "the watcher ends")


def test_signed_urls_read_one_file_until_they_expire(server: Server, sandbox: Sandbox) -> None:
    """With the sandbox's name in a header, as a proxy puts it there; another path needs another signature."""
    sandbox.files.write("signed.txt", "text")
    url = httpx.URL(sandbox.download_url("signed.txt", use_signature_expiration=60))
    named = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49983"}
    assert server.client.get(f"/files?{url.query.decode()}", headers=named).text == "text"
    other = url.query.decode().replace("signed.txt", "other.txt")
    assert server.client.get(f"/files?{other}", headers=named).status_code == 401


def test_hosts_of_e2bs_ports_are_its_api_and_no_server(server: Server, sandbox: Sandbox, options: Any) -> None:
    """`49983-ID.domain` and `49999-ID.domain` need no header fields, and a signed URL works there as it is."""
    sandbox.files.write("hosted.txt", "text")
    key, domain = {"x-api-key": options["api_key"]}, f"{sandbox.sandbox_id}.sandboxes.example"
    assert sandbox.get_host(8000).endswith(f"8000-{domain}")
    read = server.client.get("/files?path=hosted.txt", headers={**key, "host": f"49983-{domain}"})
    assert read.text == "text"
    signed = httpx.URL(sandbox.download_url("hosted.txt")).query.decode()
    assert server.client.get(f"/files?{signed}", headers={"host": f"49983-{domain}"}).text == "text"
    assert server.client.get("/files?path=hosted.txt", headers={"host": f"49983-{domain}"}).status_code == 401
    assert server.client.get("/contexts", headers={**key, "host": f"49999-{domain}"}).status_code == 200
    assert server.client.get("/v1/sessions", headers={**key, "host": f"49999-{domain}"}).status_code == 404
    # A header field that says the same as the name does no harm; one that says another thing is refused.
    same = {**key, "host": f"49983-{domain}", "e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49983"}
    assert server.client.get("/files?path=hosted.txt", headers=same).text == "text"
    for other in ({"e2b-sandbox-id": "another"}, {"e2b-sandbox-port": "49999"}):
        refused = server.client.get("/files?path=hosted.txt", headers={**same, **other})
        assert (refused.status_code, "different" in refused.json()["message"]) == (400, True)


def test_client_that_leaves_interrupts_its_run(server: Server, sandbox: Sandbox, options: Any) -> None:
    """The next run does not wait for it, and the variables are still there."""
    sandbox.run_code("before_leaving = 5")
    headers = {
        "x-api-key": options["api_key"],
        "e2b-sandbox-id": sandbox.sandbox_id,
        "e2b-sandbox-port": "49999",
    }
    code = {"code": "print('begun', flush=True)\nimport time; time.sleep(1000)"}
    with server.client.stream("POST", "/execute", json=code, headers=headers) as reply:
        assert "begun" in next(reply.iter_text())
    assert sandbox.run_code("before_leaving", timeout=60).text == "5"


def _control(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("api_key", "api_url")}

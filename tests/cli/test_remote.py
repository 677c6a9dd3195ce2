"""The commands that use a gateway, as a person types them: a real gateway, real sandboxes, a real pty where one is."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml

from gateway.autoscaler.pool import Pool
from gateway.autoscaler.settings import AutoscalerSettings
from gateway.cli.registry import COMMANDS, LOCAL
from gateway.cli.remote import app as remote
from gateway.cli.remote import pools
from tests.support.autoscaler import runtime
from tests.support.redis_server import free_port
from tests.support.serve import Server, serve
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    folder = tmp_path_factory.mktemp("remote")
    flags = ("--warm-pool", "1", "--usage-interval", "1s", "--audit-log", str(folder / "audit.log"))
    with serve(folder / "state", *flags) as running:
        yield running


@pytest.fixture
def environ(server: Server, tmp_path: Path) -> dict[str, str]:
    """A person's environment, with a configuration folder of its own."""
    # Without the width that pytest-xdist gives its workers: tables are cut to it.
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WAKEGATE_") and name not in ("COLUMNS", "LINES")
    }
    return {
        **clean, "WAKEGATE_URL": server.url, "XDG_CONFIG_HOME": str(tmp_path / "config"), "TERM": "xterm",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def wakegate(
    environ: dict[str, str], *words: str, text: str | bytes = "", cwd: Path = ROOT, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, on pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        input=text.encode() if isinstance(text, str) else text,
        capture_output=True,
        env={**environ, **more},
        cwd=cwd,
        timeout=LIMIT,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    )


def on_terminal(environ: dict[str, str], *words: str) -> Any:
    """Run a command on a pty of 24 lines and 100 columns."""
    return pexpect.spawn(
        sys.executable, ["-m", "gateway", *words], env=environ, cwd=str(ROOT), timeout=LIMIT, dimensions=(24, 100)
    )


def test_run_answers_as_the_command_would_here_and_leaves_nothing(server: Server, environ: dict[str, str]) -> None:
    """Its output, its exit status, its standard input byte for byte; the session is gone afterwards."""
    before = server.client.get("/v1/sessions").json()["sessions"]
    done = wakegate(environ, "run", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    done = wakegate(environ, "run", "-i", "sh", "-c", "od -An -tx1", text=b"\x00\xff\n")
    assert done.stdout.split() == ["00", "ff", "0a"]
    assert server.client.get("/v1/sessions").json()["sessions"] == before
    kept = wakegate(environ, "run", "--keep", "-e", "A=b c", "sh", "-c", 'echo "$A" > kept')
    session = kept.stderr.split()[-1]
    assert server.run(session, "cat kept").json()["stdout"] == "b c\n"


def test_sessions_are_made_listed_put_to_sleep_woken_and_ended(server: Server, environ: dict[str, str]) -> None:
    """In each of the four forms of output; ids alone on standard output, so that they can be used."""
    session = wakegate(environ, "create", "--metadata", "for=cli").stdout.strip()
    assert server.state(session)["metadata"] == {"for": "cli"}
    assert wakegate(environ, "ls", "--metadata", "for=cli", "-o", "name").stdout == session + "\n"
    assert [each["id"] for each in json.loads(wakegate(environ, "ls", "-o", "json").stdout)].count(session) == 1
    table = wakegate(environ, "ls").stdout.splitlines()
    assert table[0].split()[:3] == ["ID", "STATE", "RUNTIME"]
    assert any(line.split()[:3] == [session, "active", "default/my-interpreter"] for line in table)
    assert wakegate(environ, "pause", session).returncode == 0
    assert yaml.safe_load(wakegate(environ, "get", session).stdout)["state"] == "hibernated"
    assert wakegate(environ, "wake", session).returncode == 0
    assert wakegate(environ, "rm", session).stdout == f"{session} ended\n"
    assert server.state(session)["state"] == "terminated"


def test_resize_gives_a_session_another_size(server: Server, environ: dict[str, str]) -> None:
    """Asleep, so that it is the same where no control group can be written; it says what the session has then."""
    session = wakegate(environ, "create").stdout.strip()
    wakegate(environ, "pause", session)
    done = wakegate(environ, "resize", session, "--memory", "2Gi", "--cpu", "1500m")
    assert done.stdout == f"{session} has cpu 1.5, memory 2 GiB\n"
    assert server.state(session)["resources"] == {"cpu": 1.5, "memory": 2 << 30}
    refused = wakegate(environ, "resize", session, "--memory", "64Gi")
    assert refused.returncode != 0
    assert "4 GiB at most" in refused.stderr
    assert wakegate(environ, "resize", session).returncode == 2
    assert wakegate(environ, "resize", session, "--reset").stdout == f"{session} has the size of its runtime\n"
    assert server.state(session)["resources"] is None
    changed = server.client.patch(
        f"/v1/sessions/{session}", json={"resources": {"processes": 300}, "metadata": {"for": "resize"}}
    ).json()
    assert (changed["resources"], changed["metadata"]) == ({"processes": 300}, {"for": "resize"})
    wakegate(environ, "rm", session)


def test_logs_show_who_ran_what_between_starts_and_sleeps(server: Server, environ: dict[str, str]) -> None:
    """In the order of time; followed, a command shows while the log runs."""
    session = wakegate(environ, "create").stdout.strip()
    wakegate(environ, "exec", session, "true")
    wakegate(environ, "pause", session)

    def names() -> list[str]:
        return [line.split("  ")[1] for line in wakegate(environ, "logs", session).stdout.splitlines()]

    wait_until(lambda: "session.hibernate" in names(), "the trail to have the sleep")
    found = names()
    assert found.index("command.run") < found.index("session.hibernate")
    argv = [sys.executable, "-m", "gateway", "logs", "-f", session]
    with subprocess.Popen(argv, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        for _ in found:
            follower.stdout.readline()
        wakegate(environ, "exec", session, "true")
        assert any("command.run" in line for line in follower.stdout)
        follower.kill()
    wakegate(environ, "rm", session)


def test_rm_all_asks_and_spares_what_was_used_lately(server: Server, environ: dict[str, str]) -> None:
    """Nothing is ended without a yes, nor by an age that no session has."""
    session = server.session()
    assert wakegate(environ, "rm", "--all", "--older-than", "2h", "-y").returncode == 0
    assert wakegate(environ, "rm", "--all", text="n\n").returncode == 1
    assert wakegate(environ, "rm").returncode == 2
    assert server.state(session)["state"] == "active"
    assert wakegate(environ, "rm", "--all", "-y").returncode == 0
    assert server.state(session)["state"] == "terminated"


def test_exit_statuses_tell_what_kind_of_failure_it_was(server: Server, environ: dict[str, str]) -> None:
    """2 a wrong command line, 3 no gateway, 4 no such thing; 125 of run and exec, whose others are the command's."""
    missing = wakegate(environ, "get", "nosuch")
    assert missing.returncode == 4
    assert "`wakegate ls --state all` shows" in missing.stderr
    assert wakegate(environ, "exec", "nosuch", "true").returncode == 125
    assert wakegate(environ, "ls", WAKEGATE_URL="http://127.0.0.1:1").returncode == 3
    assert wakegate(environ, "run", "true", WAKEGATE_URL="http://127.0.0.1:1").returncode == 125
    wrong = wakegate(environ, "ls", "--stat", "x")
    assert wrong.returncode == 2
    assert "--state" in wrong.stderr
    typo = wakegate(environ, "exce")
    assert typo.returncode == 2
    assert "did you mean exec?" in typo.stderr
    assert wakegate(environ, "pools", "explain", "nosuch").returncode == 4
    assert "Traceback" not in wakegate(environ, "cp", "nosuch-file", "x:y").stderr


def fields_of(document: Any) -> Any:
    """The fields of a document, of a list those of its first."""
    if isinstance(document, list):
        return [fields_of(each) for each in document[:1]]
    return {name: fields_of(each) for name, each in document.items()} if isinstance(document, dict) else None


@pytest.mark.parametrize(
    "words",
    [
        ("ls",), ("get", "ID"), ("create",), ("pools",), ("pools", "ls"), ("pools", "explain", "my-interpreter"),
        ("runtimes", "ls"), ("runtimes", "get", "my-interpreter"), ("tenants", "ls"), ("tenants", "get"), ("usage",),
        ("config",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_lists_or_gets_has_four_forms(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """JSON and YAML say the same; a table has a line of titles and names no field; names are one a line."""
    monkeypatch.setenv("WAKEGATE_URL", server.url)
    session = server.session()
    server.client.put("/v1/tenants/of-forms", json={"limits": {"sessions": 3}}).raise_for_status()

    def said(form: str) -> str:
        assert remote.run([*(session if word == "ID" else word for word in words), "-o", form]) == 0
        return capsys.readouterr().out

    if words == ("usage",):  # which is written down each second here
        wait_until(lambda: json.loads(said("json"))["usage"], "something was used")
    as_json, as_yaml = json.loads(said("json")), yaml.safe_load(said("yaml"))
    assert fields_of(as_yaml) == fields_of(as_json)  # and not what is in them: pools fill between two calls
    names = said("name").splitlines()
    assert names
    assert all(name and "{" not in name and ": " not in name for name in names)
    table = said("table")
    assert not table.startswith(("{", "[", "- "))
    assert len(table.splitlines()) > 1


def test_commands_that_find_nothing_say_so(server: Server, environ: dict[str, str], tmp_path: Path) -> None:
    """On standard error, and succeed: for a script there are no lines."""
    state = str(tmp_path / "state")
    for words in (("ls", "--metadata", "such=none"), ("keys", "ls", "--state-dir", state)):
        done = wakegate(environ, *words)
        assert (done.returncode, done.stdout) == (0, ""), done
        assert done.stderr


def test_wrong_command_line_is_one_line(environ: dict[str, str]) -> None:
    """Of what was wrong and where its help is; a command without words shows the help."""
    for words, what in (
        (("ls", "-o", "wide"), "'wide' is not one of 'table', 'json'"),
        (("get",), "missing argument 'ID'"),
        (("open", "x", "70000"), "less than or equal to 65535"),
    ):
        done = wakegate(environ, *words)
        assert done.returncode == 2
        assert re.fullmatch(rf"wakegate {words[0]}: [^\n]+; see wakegate {words[0]} --help\n", done.stderr), done.stderr
        assert what in done.stderr
    for verb in ([], ["tasks"]):
        done = wakegate(environ, *verb)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: wakegate" in done.stderr.lower()


def test_what_is_not_there_is_named_in_a_users_words(server: Server, environ: dict[str, str]) -> None:
    """Not as a resource of Kubernetes; `open` asks before a browser is shown an error."""
    for words, what in (
        (("get", "none"), "there is no session none"),
        (("open", "none", "80", "--print"), "there is no session none"),
        (("create", "-r", "none"), "there is no runtime default/none"),
    ):
        done = wakegate(environ, *words)
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith(f"wakegate: {what}; ")


def test_reader_that_leaves_ends_a_command(server: Server, environ: dict[str, str]) -> None:
    """With the status of SIGPIPE and without a word, as of `ls | head -1`."""
    for words in (("config", "-o", "json"), ("ls", "--help")):
        reading, writing = os.pipe()
        os.close(reading)
        with subprocess.Popen(
            [sys.executable, "-m", "gateway", *words], stdout=writing, stderr=subprocess.PIPE, env=environ, cwd=ROOT
        ) as running:
            os.close(writing)
            assert running.stderr is not None
            assert running.stderr.read() == b""
        assert running.returncode == 141


def test_shell_is_a_real_terminal_that_can_be_left_and_come_back_to(server: Server, environ: dict[str, str]) -> None:
    """Job control, the size of this terminal also when it changes, Ctrl-C to the command, Ctrl-] away from it."""
    session = server.session()
    shell = on_terminal(environ, "shell", session)
    shell.send("stty size; KEPT=still; tty\r")
    shell.expect("24 100")
    shell.expect("/dev/pts/")
    shell.setwinsize(30, 90)
    shell.expect(r"\$ |# ")
    wait_until(lambda: (shell.send("stty size\r"), shell.expect(["30 90", "24 100"]))[1] == 0, "the new size is there")
    shell.send("cat; echo inter''rupted\r")
    shell.send("typed\r")
    shell.expect("typed")
    shell.send("\x03")
    shell.expect("(?s)interrupted|\\^C")
    shell.send("\x1d")
    shell.expect(r"detached; `wakegate shell \S+ --attach (\S+)`")
    shell.expect(pexpect.EOF)
    assert shell.wait() == 0
    again = on_terminal(environ, "shell", session, "--attach", "last")
    again.send("echo is-$KEPT; exit 5\r")
    again.expect("is-still")
    again.expect(pexpect.EOF)
    assert again.wait() == 5


def test_exec_on_a_terminal_and_its_exit_status(server: Server, environ: dict[str, str]) -> None:
    """The command has a terminal; its words arrive as they were, quotes and all."""
    session = server.session()
    done = on_terminal(environ, "exec", "-it", session, "sh", "-c", 'test -t 0 && echo "on a $0"; exit 4', "t'ty $(x)")
    done.expect_exact("on a t'ty $(x)")
    done.expect(pexpect.EOF)
    assert done.wait() == 4
    refused = wakegate(environ, "exec", "-it", session, "true")
    assert refused.returncode == 2
    assert "needs a terminal" in refused.stderr


def test_interrupt_of_exec_reaches_the_command(server: Server, environ: dict[str, str]) -> None:
    """Once: the command decides."""
    session = server.session()
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "exec", session, "sh", "-c", script],
        stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.read() == "caught\n"
    assert running.returncode == 9


def test_cp_carries_files_folders_and_streams_both_ways(
    server: Server, environ: dict[str, str], tmp_path: Path
) -> None:
    """Bytes and modes are the same; a folder's contents go into the target, with a slash below it."""
    session = server.session()
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "a b.bin").write_bytes(bytes(range(256)))
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    assert wakegate(environ, "cp", str(tree), f"{session}:there/").returncode == 0
    assert wakegate(environ, "cp", f"{session}:there/tree", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "sub" / "a b.bin").read_bytes() == bytes(range(256))
    assert (tmp_path / "back" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert wakegate(environ, "cp", "-", f"{session}:s", text="stream").returncode == 0
    assert wakegate(environ, "cp", f"{session}:s", "-").stdout == "stream"
    assert wakegate(environ, "cp", f"{session}:s", ".", cwd=tmp_path).returncode == 0
    assert (tmp_path / "s").read_text() == "stream"
    there = subprocess.run(
        [sys.executable, "-m", "gateway", "cp", f"{session}:there", "-"], capture_output=True, env=environ, cwd=ROOT
    )
    with tarfile.open(fileobj=io.BytesIO(there.stdout)) as tar:
        assert "tree/sub/a b.bin" in [each.name.removeprefix("./") for each in tar]


def test_cp_takes_paths_as_commands_in_the_session_see_them(
    server: Server, environ: dict[str, str], tmp_path: Path
) -> None:
    """/workspace/x is x; what is elsewhere, or has no name, is refused, and not written into another place."""
    session = server.session()
    (tmp_path / "here").write_text("text")
    assert wakegate(environ, "cp", str(tmp_path / "here"), f"{session}:/workspace/x").returncode == 0
    assert server.run(session, "cat /workspace/x").json()["stdout"] == "text"
    assert wakegate(environ, "cp", f"{session}:/workspace/x", "-").stdout == "text"
    for words, what in (
        ((str(tmp_path / "here"), f"{session}:/etc/x"), "/etc/x is not below /workspace"),
        (("-", f"{session}:dir/"), "standard input has no name"),
        ((f"{session}:x", str(tmp_path / "none" / "x")), f"there is no folder {tmp_path / 'none'}"),
    ):
        done = wakegate(environ, "cp", *words)
        assert done.returncode == 2
        assert what in done.stderr
    assert server.run(session, "find . -type f -printf '%P\\n'").json()["stdout"] == "x\n"


def test_archive_of_a_sandbox_leads_nowhere(server: Server, environ: dict[str, str], tmp_path: Path) -> None:
    """A link in it is left out, and a file is not written through a link that is here."""
    session = server.session()
    server.run(session, f"mkdir d; ln -s {tmp_path}/outside d/link; echo evil > d/file; chmod 4777 d/file")
    (tmp_path / "outside").write_text("untouched")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "file").symlink_to(tmp_path / "outside")
    done = wakegate(environ, "cp", f"{session}:d", str(tmp_path / "back"))
    assert "left out 1 links" in done.stderr
    assert (tmp_path / "outside").read_text() == "untouched"
    assert (tmp_path / "back" / "file").read_text() == "evil\n"
    assert (tmp_path / "back" / "file").stat().st_mode & 0o7022 == 0
    assert not (tmp_path / "back" / "link").exists()
    (tmp_path / "away").mkdir()
    (tmp_path / "back" / "sub").symlink_to(tmp_path / "away")
    server.run(session, "mkdir d/sub; echo evil > d/sub/file")
    assert wakegate(environ, "cp", f"{session}:d", str(tmp_path / "back")).returncode == 1
    assert not list((tmp_path / "away").iterdir())


def test_code_keeps_variables_and_saves_pictures(server: Server, environ: dict[str, str], tmp_path: Path) -> None:
    """An error is exit status 1; a picture goes into a new file where no terminal shows it."""
    session = server.session()
    assert wakegate(environ, "code", session, text="x = 20\n").returncode == 0
    assert wakegate(environ, "code", session, "-c", "x + 1").stdout == "21\n"
    failed = wakegate(environ, "code", session, "-c", "1/0")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    plot = "import matplotlib.pyplot as plt; plt.plot([1, 2])"
    (tmp_path / "wakegate-1.png").write_text("mine")
    done = wakegate(environ, "code", session, "-c", plot, "--save", str(tmp_path))
    assert "saved" in done.stderr
    assert (tmp_path / "wakegate-1.png").read_text() == "mine"
    assert (tmp_path / "wakegate-2.png").read_bytes().startswith(b"\x89PNG")
    on_kitty = on_terminal({**environ, "TERM": "xterm-kitty"}, "code", session, "-c", plot, "--save", str(tmp_path))
    on_kitty.expect(r"\x1b_Gf=100,a=T,q=2,m=1;iVBOR")
    on_kitty.expect(pexpect.EOF)
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_what_a_sandbox_says_moves_no_terminal(server: Server, environ: dict[str, str]) -> None:
    """Escape sequences in metadata, in output of code and in errors are shown, in tables and in JSON, not obeyed."""
    hostile = "a\x1b]0;owned\x07b\u202ec\x9b31m"
    session = server.client.post("/v1/sessions", json={"metadata": {"name": hostile}}).json()["id"]
    for form in ("json", "yaml"):
        shown = wakegate(environ, "get", session, "-o", form).stdout
        assert not set("\x1b\x07\u202e\x9b") & set(shown)
    on_tty = on_terminal(environ, "code", session, "-c", f"print({hostile!r}); {hostile!r}")
    on_tty.expect(pexpect.EOF)
    assert b"owned" in on_tty.before
    assert b"\x1b]0" not in on_tty.before
    assert b"\x07" not in on_tty.before
    missing = wakegate(environ, "cp", f"{session}:\x1b[31mx", "-")
    assert missing.returncode == 4
    assert "\x1b" not in missing.stderr


def test_port_forward_serves_a_port_at_the_root_and_to_this_machine_only(
    server: Server, environ: dict[str, str]
) -> None:
    """Redirects lose the gateway's path; a name that was made to lead here is refused, and so is a foreign page."""
    session = server.session()
    server.run(session, "mkdir dir; echo page > dir/index.html")
    assert wakegate(environ, "exec", "-d", session, "python3", "-m", "http.server", "8000").returncode == 0
    server.client.get("/api/ports?wait=8000&timeout=30s", headers={"x-session-id": session})
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "port-forward", session, "8000:0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, cwd=ROOT,
    ) as refused:  # fmt: skip
        assert refused.wait(LIMIT) == 2  # a port has to be named
    local = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "port-forward", session, f"8000:{local}"],
        stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert f"127.0.0.1:{local}" in running.stdout.readline()
        taken = wakegate(environ, "port-forward", session, f"8000:{local}")
        assert taken.returncode == 1
        assert f"port {local} of this machine cannot be used (address already in use); name another" in taken.stderr
        try:
            assert _get(local, "/dir/", f"127.0.0.1:{local}")[2] == "page\n"
            status, location, _ = _get(local, "/dir", f"localhost:{local}")
            assert (status, location) == (301, "/dir/")
            assert _get(local, "/dir/", "evil.example")[0] == 421
            assert _get(local, "/dir/", f"localhost:{local}", origin="https://evil.example")[0] == 403
        finally:
            running.terminate()


def _get(port: int, path: str, host: str, **headers: str) -> tuple[int, str | None, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    connection.request("GET", path, headers={"host": host, **headers})
    reply = connection.getresponse()
    found = reply.status, reply.getheader("location"), reply.read().decode()
    connection.close()
    return found


def test_table_that_is_watched_renews_itself_without_colour(server: Server, environ: dict[str, str]) -> None:
    """A session that comes later is shown; with NO_COLOR the table has none."""
    watching = on_terminal({**environ, "NO_COLOR": "1"}, "ls", "--watch")
    watching.expect("LAST USE")
    session = server.session()
    watching.expect(session)
    assert not re.search(rb"\x1b\[3[0-9]m", watching.before)
    watching.terminate(force=True)


def test_commands_about_the_gateway_answer(server: Server, environ: dict[str, str], tmp_path: Path) -> None:
    """Pools and why, runtimes, usage, a look of top, settings and where they come from, completion."""
    assert "The pool" in wakegate(environ, "pools", "explain", "my-interpreter").stdout
    assert "default/my-interpreter" in wakegate(environ, "runtimes", "ls").stdout
    assert "SANDBOX" in wakegate(environ, "usage").stdout
    assert "sandboxes" in wakegate(environ, "top", "--once").stdout
    settings = wakegate(environ, "config", "-o", "json", WAKEGATE_PORT="9000", WAKEGATE_STORE="redis://u:pa55word@h/0")
    found = {each["name"]: each for each in json.loads(settings.stdout)}
    assert found["port"] == {"name": "port", "value": 9000, "from": "WAKEGATE_PORT"}
    assert found["host"]["from"] == "default"
    assert "pa55word" not in settings.stdout
    (tmp_path / "bad.yaml").write_text("kind: CodeInterpreter\nmetadata: {name: x}\nspec: {nosuch: 1}\n")
    assert wakegate(environ, "runtimes", "validate", str(tmp_path / "bad.yaml")).returncode == 2
    for shell in ("bash", "zsh", "fish"):
        assert "_WAKEGATE_COMPLETE" in wakegate(environ, "completion", shell).stdout
    words = {"_WAKEGATE_COMPLETE": "complete_bash", "COMP_WORDS": "wakegate po", "COMP_CWORD": "1"}
    assert set(wakegate({**environ, **words}).stdout.split()) == {"pools", "port-forward"}


def test_pools_that_were_not_looked_at_yet_are_shown(server: Server, environ: dict[str, str]) -> None:
    """In the first second of a gateway there is no forecast and no size; and --url may stand behind the command."""
    unseen = Pool.make(runtime(), AutoscalerSettings(), None).explain()
    assert (unseen["pool"], unseen["demand"]) == (None, None)
    assert [cell(unseen) for cell in pools._COLUMNS.values()][2:5] == [0, None, None]
    assert {row["name"] for row in pools._facts(unseen)} == {"runtime", "why", "target", "lead time", "rule"}
    listed = wakegate({**environ, "WAKEGATE_URL": "http://127.0.0.1:1"}, "pools", "--url", server.url, "-o", "name")
    assert listed.stdout == "code-interpreters/default/my-interpreter\n", listed.stderr


def test_bench_times_each_step_and_leaves_nothing(server: Server, environ: dict[str, str]) -> None:
    """As many of each as were asked for; what fails is told, and the rest still counts."""
    before = wakegate(environ, "ls", "-o", "name").stdout
    done = wakegate(environ, "bench", "--sessions", "2", "--at-once", "2", "--requests", "3", "-o", "json")
    assert done.returncode == 0, done.stderr
    steps = {each["step"]: each for each in json.loads(done.stdout)["steps"]}
    assert {name: each["count"] for name, each in steps.items()} == {
        "create": 2, "first command": 2, "command": 4, "hibernate": 2, "wake and command": 2, "end": 2,
    }  # fmt: skip
    assert all(0 < each["p50"] <= each["p95"] <= each["max"] for each in steps.values())
    assert wakegate(environ, "ls", "-o", "name").stdout == before
    refused = wakegate(environ, "bench", "--sessions", "1", "--runtime", "default/none")
    assert (refused.returncode, "1 of them failed" in refused.stdout) == (4, True), refused.stderr


def test_login_remembers_a_key_for_its_own_address_only(
    server: Server, environ: dict[str, str], tmp_path: Path
) -> None:
    """In a file that nobody else reads; --url to another gateway takes no key along."""
    environ = {name: value for name, value in environ.items() if name != "WAKEGATE_URL"}
    assert wakegate(environ, "login", "--url", server.url, "here", text="wk_secret\n").returncode == 0
    file = tmp_path / "config" / "wakegate" / "contexts.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert wakegate(environ, "ls").returncode == 0  # its address is used
    assert "* here" in wakegate(environ, "login", "--list").stdout
    heard: list[bytes] = []

    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def listen() -> None:
            connection, _ = stranger.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 500 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        thread = threading.Thread(target=listen)
        thread.start()
        assert wakegate(environ, "ls", "--url", f"http://127.0.0.1:{stranger.getsockname()[1]}").returncode == 1
        thread.join(LIMIT)
    assert b"wk_secret" not in heard[0]
    assert wakegate(environ, "login", "--forget", "here").returncode == 0
    assert wakegate(environ, "ls", "--context", "here").returncode == 2


def test_serve_imports_nothing_of_these_commands(environ: dict[str, str]) -> None:
    """A gateway starts no slower for them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gateway", "serve", "--help"],
        capture_output=True, text=True, env=environ, cwd=ROOT, timeout=LIMIT,
    )  # fmt: skip
    assert "gateway.cli.parser" in done.stderr
    for module in ("typer", "httpx", "gateway.cli.remote", "wakegate_client"):
        assert not re.search(rf"\| +{re.escape(module)}$", done.stderr, re.MULTILINE), module


def test_help_names_every_command(environ: dict[str, str]) -> None:
    """And each of them has one of its own, with an example or a sentence."""

    text = wakegate(environ, "--help").stdout
    for name in (*COMMANDS, *LOCAL):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name

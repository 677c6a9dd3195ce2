"""Command lines with slips, bytes that are no text, and files that are none: a sentence and the documented status."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.cli.remote import app as remote
from tests.support.serve import Server, serve

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("wrong") / "state", "--warm-pool", "1") as running:
        yield running


@pytest.fixture
def at_home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's empty home, with the gateway's address; the working folder."""
    for name in [each for each in os.environ if each.startswith("WAKEGATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WAKEGATE_URL", server.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wakegate(home: Path, script: str, text: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which $W is the command."""
    return subprocess.run(
        ["bash", "-c", script], input=text, capture_output=True, cwd=home, timeout=LIMIT,
        env={**os.environ, "W": f"{sys.executable} -m gateway", "PYTHONPATH": str(ROOT), **environ},
    )  # fmt: skip


NO_TEXT = "\udcff"  # a byte of a command line that is no UTF-8, as Python keeps it


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("get", "a/b"), 4, "there is no session 'a/b'"),
        (("get", ""), 4, "there is no session ''"),
        (("get", "../x?#"), 4, "there is no session '../x?#'"),
        (("get", NO_TEXT), 4, "there is no session '\\udcff'"),
        (("get", "x" * 500), 4, f"there is no session '{'x' * 64}'"),
        (("rm", "nosuch/../other"), 4, "there is no session"),
        (("exec", "a b", "true"), 125, "there is no session 'a b'"),
        (("exec", "ID", "--"), 2, "there is no command behind it"),
        (("exec", "ID", ""), 2, "the command is an empty word"),
        (("exec", "ID", "echo", NO_TEXT), 125, "bytes that are no text in UTF-8"),
        (("code", "ID", "-c", f"print({NO_TEXT!r})"), 0, ""),  # an escape in the code is text
        (("code", "ID", "-c", NO_TEXT), 2, "bytes that are no text in UTF-8"),
        (("code", "ID", "latin.py"), 2, "latin.py: is no code in UTF-8: invalid continuation byte at byte 5"),
        (("code", "ID", "marked.py"), 0, ""),
        (("code", "ID", "-c", ""), 0, ""),
        (("create", "--metadata", f"{NO_TEXT}=1"), 2, "bytes that are no text"),
        (("ls", "--search", NO_TEXT), 2, "bytes that are no text"),
        (("ls", "--api-key", "wk_secret\nx"), 2, "the API key has characters that no key has"),
        (("ls", "--api-key", "wk_secret\u043a"), 2, "the API key has characters that no key has"),
        (("ls", "--url", "http://[::1"), 2, "is no address of a gateway"),
        (("ls", "--url", f"http://{NO_TEXT}"), 2, "is no address of a gateway"),
        (("ls", "--url", "https://"), 3, "is a gateway running there?"),
        (("tenants", "set", "x", "sessions=NaN"), 1, "limits.sessions: expected a whole number"),
        (("tenants", "set", "x", "sessions=1e999"), 1, "limits.sessions: expected a whole number"),
        (("tenants", "set", "x", f"memory={'9' * 5000}"), 1, "limits.memory"),
        (("completion",), 2, "missing argument 'bash|zsh|fish'. Choose from: bash, zsh, fish; see"),
        (("cp", "ID:", "no/such/folder"), 2, "there is no folder no/such"),
        (("runtimes", "validate", "latin.py"), 2, "latin.py: is not YAML"),
        (("keys", "revoke", NO_TEXT, "--state-dir", "state"), 2, "text that is not Unicode cannot be stored"),
        (("keys", "ls", "--state-dir", "state", "--url", "http://x"), 2, "--state-dir is of the store on this machine"),
        (("keys", "ls", "--url", "URL"), 1, "this gateway has no authentication"),
        (("keys", "create", "--role", "admin", "--expires", "-1h"), 2, "--expires: expected a duration above zero"),
    ],
)  # fmt: skip
def test_slip_is_a_sentence_and_a_status(
    server: Server, at_home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], status: int, said: str
) -> None:
    """A key is never in what is said."""
    session = server.session() if "ID" in "".join(words) else ""
    (at_home / "latin.py").write_bytes(b"# caf\xe9\n")
    (at_home / "marked.py").write_bytes(b"\xef\xbb\xbfprint(1)\n")
    ended = remote.run([server.url if word == "URL" else word.replace("ID", session) for word in words])
    said_by_it = capsys.readouterr().err
    assert (ended, said in said_by_it, said_by_it.count("\n") <= 1) == (status, True, True), said_by_it
    assert "wk_secret" not in said_by_it


@pytest.mark.parametrize("content", [b"\xff{", b"[1]", b'{"contexts": {"a": 5}}', b'{"contexts": {"a": {"url": 5}}}'])
def test_file_of_contexts_that_is_none_is_named(
    at_home: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    """With what to do about it."""
    (at_home / "config" / "wakegate").mkdir(parents=True)
    (at_home / "config" / "wakegate" / "contexts.json").write_bytes(content)
    for words in (["ls"], ["login", "--list"]):
        assert remote.run(words) == 2
        assert "is no file of contexts; delete it, and log in again" in capsys.readouterr().err


def test_help_and_flags_that_come_first_are_understood(at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`help COMMAND` is its --help; a flag before the command is told to go behind it."""
    assert main(["help", "ls"]) == 0
    assert "List sessions, the newest first" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--url", "http://127.0.0.1:1", "ls"])
    assert "ls comes first, its flags behind it" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "imported"), [("ls", b" typer"), ("serve", b" asyncio"), ("doctor", b" asyncio")])
def test_interrupt_while_modules_are_imported_is_no_traceback(at_home: Path, command: str, imported: bytes) -> None:
    """Half a second, on a busy machine several, in which a person notices a wrong word."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "gateway", command], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, cwd=at_home, env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if imported in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert (process.returncode, b"Traceback" in rest) == (130, False), rest[-2000:]


def test_answer_that_breaks_off_says_what_may_have_happened(
    at_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that dies in the middle of an answer is told from one that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as dying:

        def answer() -> None:
            connection, _ = dying.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"ses\r\n')

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv("WAKEGATE_URL", f"http://127.0.0.1:{dying.getsockname()[1]}")
        assert remote.run(["ls"]) == 3
        thread.join(LIMIT)
    said = capsys.readouterr().err
    assert "the answer broke off" in said
    assert "What it had begun it ends: `wakegate ls` shows what there is" in said


def test_closed_and_full_streams_and_other_character_sets_cause_no_traceback(server: Server, at_home: Path) -> None:
    """`>&-` is as /dev/null, a full disk is said, and what a character set lacks is an escape."""
    session = server.session()
    lines = "$W ls >&-; $W ls <&- | tail -1; $W ls 2>&-; $W ls > /dev/full; echo $?; "
    line = lines + f"$W code {session} -c 'print(chr(233))'"
    done = wakegate(at_home, line, PYTHONIOENCODING="ascii")
    assert b"Traceback" not in done.stderr
    assert b"No space left on device\n" in done.stderr
    assert done.stdout.endswith(b"\n1\n\\xe9\n")
    assert done.stdout.count(b"my-interpreter") >= 3
    done = wakegate(at_home, f"$W code {session}; $W login x", text=b"\xff\n")
    assert done.stderr.splitlines()[0].startswith(b"wakegate: standard input: is no code in UTF-8")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["prune", "uninstall", "serve", "doctor"])
def test_folder_that_is_used_for_other_things_is_no_state_directory(
    at_home: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """`--state-dir ~`: it is neither closed to others, nor filled, nor deleted, whatever was typed."""
    home = at_home / "home"
    (home / ".ssh").mkdir(parents=True)
    home.chmod(0o755)
    before = home.stat().st_mode, os.listdir(home)
    flags = {"uninstall": ["--yes"], "serve": ["--port", "0"], "doctor": ["--port", "0"]}.get(verb, [])
    assert main([verb, "--state-dir", str(home), *flags]) == (1 if verb == "doctor" else 2)
    said = capsys.readouterr()
    assert "is used for other things (.ssh)" in said.out + said.err or "has no file `owner`" in said.err
    assert (home.stat().st_mode, os.listdir(home)) == before


def test_prune_makes_nothing_and_uninstall_leaves_what_is_not_ours(
    at_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder that is not there prune makes none; a file that somebody put into a state directory stays."""
    assert main(["prune", "--state-dir", "none"]) == 0
    assert "does not exist" in capsys.readouterr().out
    assert not Path("none").exists()
    state = at_home / "ours"
    state.mkdir()
    (state / "owner").write_text("x")
    (state / "thesis.tex").write_text("mine")
    assert main(["uninstall", "--yes", "--state-dir", str(state)]) == 2
    assert "has more in it than a gateway makes: thesis.tex" in capsys.readouterr().err
    assert (state / "thesis.tex").read_text() == "mine"

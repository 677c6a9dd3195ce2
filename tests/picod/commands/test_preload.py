"""The preloaded interpreter: what runs on it, what does not, and that nothing it does can hurt picod."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from picod.commands import preload
from picod.commands.processes import Children
from picod.snapshot.freeze import Frozen
from picod.userside import baseline, pages
from tests.support.picod import Executor, picod_process, running
from tests.support.preloaded import AT_ONCE, PYTHON, preloaded, server, servers, waiting_child
from tests.support.waiting import wait_until

IS_PRELOADED = "import sys; print('decimal' in sys.modules)"


@pytest.fixture(scope="module")
def picod() -> Iterator[Executor]:
    """A picod that preloads a few modules."""
    with preloaded("decimal,random,uuid,multiprocessing", OMP_NUM_THREADS="2") as executor:
        yield executor


def is_preloaded(picod: Executor, *command: str, **fields: object) -> bool:
    """Whether a command runs in the child that waits."""
    before = waiting_child(picod)
    picod.execute(*(command or ("python3", "-c", "pass")), **fields)
    return waiting_child(picod) != before


@pytest.mark.parametrize("command", [("python3", "-c", "pass"), ("python3", "x.py", "-v"), ("python3", "-m", "x")])
def test_scripts_run_in_a_forked_child_of_picods(picod: Executor, command: tuple[str, ...]) -> None:
    """All three forms run as a direct child of picod in a new session, with the modules imported."""
    (picod.workspace / "x.py").write_text("import os, sys; print(os.getppid(), os.getsid(0) == os.getpid())")
    assert is_preloaded(picod, *command)
    assert picod.execute("python3", "-c", IS_PRELOADED)["stdout"] == "True\n"
    assert picod.execute("python3", "x.py")["stdout"] == f"{picod.process.pid} True\n"


@pytest.mark.parametrize(
    ("command", "env"),
    [
        (("python3", "-u", "-c", "pass"), {}),
        (("python3", "-cpass"), {}),
        (("python3", "-V"), {}),
        (("python3", "-"), {}),
        (("python3",), {}),
        (("python3", "-m", "pip", "--version"), {}),
        ((f"{PYTHON.parent}/../bin/python3", "-c", "pass"), {}),
        (("sh", "-c", "python3 -c pass"), {}),
        (("python3", "-c", "pass"), {"PYTHONUTF8": "1"}),
        (("python3", "-c", "pass"), {"LC_ALL": "C"}),
        (("python3", "-c", "pass"), {"HOME": "/tmp"}),
        (("python3", "-c", "pass"), {"OMP_NUM_THREADS": "1"}),
        (("python3", "-c", "pass", "x" * 120_000, "y" * 120_000), {}),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, tuple) else "".join(value),
)
def test_unusual_commands_start_an_interpreter_of_their_own(
    picod: Executor, command: tuple[str, ...], env: dict[str, str]
) -> None:
    """Flags, other interpreters, variables that an interpreter reads at its start, and very long arguments."""
    assert not is_preloaded(picod, *command, env=env)


def test_streamed_script_is_preloaded_too(picod: Executor) -> None:
    """`stream: true` changes how the output comes, not where the script runs."""
    before = waiting_child(picod)
    reply = picod.client.post(
        "/api/execute", json={"command": ["python3", "-c", "print('live', flush=True)"], "stream": True}
    )

    assert "live" in reply.text
    assert '"exit_code":0' in reply.text.replace(" ", "")
    assert waiting_child(picod) != before


def test_ordinary_variables_keep_a_script_on_the_preloaded_interpreter(picod: Executor) -> None:
    """A variable that no import looked at changes nothing but itself."""
    assert is_preloaded(picod, "python3", "-c", "pass", env={"MY_SETTING": "1", "TZ": "Asia/Tokyo"})


def test_each_script_draws_its_own_random_numbers() -> None:
    """Generators that were seeded at import are seeded anew."""
    code = (
        "import random, uuid, multiprocessing, numpy, tempfile; print(random.random(), uuid.uuid4(), "
        "multiprocessing.current_process().authkey.hex(), numpy.random.rand(), tempfile.mktemp())"
    )
    with preloaded("random,uuid,multiprocessing,numpy,tempfile") as picod:
        lines = [picod.execute("python3", "-c", code)["stdout"].split() for _ in range(3)]

    for drawn in zip(*lines, strict=True):
        assert len(set(drawn)) == 3


def test_many_scripts_at_once_all_run(picod: Executor) -> None:
    """Children are forked as they are wanted, and each answer is its own."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: picod.execute("python3", "-c", f"print({n}, {IS_PRELOADED!r})"), range(24)))
    assert [f"{n} {IS_PRELOADED}\n" for n in range(24)] == [answer["stdout"] for answer in answers]
    wait_until(lambda: len(servers(picod)) == 2, "one server and one child remain")


def test_timeout_kills_a_scripts_whole_tree(picod: Executor) -> None:
    """Including children in other sessions; what was printed is answered."""
    nap = f"300.{int.from_bytes(os.urandom(4), 'big')}"
    code = f"""
import subprocess, sys, time
subprocess.Popen(["sleep", "{nap}"], start_new_session=True)
print("printed", flush=True)
time.sleep(300)
"""
    answer = picod.execute("python3", "-c", code, timeout="1s")

    assert (answer["stdout"], answer["exit_code"]) == ("printed\n", 124)
    assert running(nap) == []
    assert is_preloaded(picod)


def test_daemon_of_a_script_lives_on(picod: Executor) -> None:
    """A daemon that a script leaves behind keeps running, and its exit is not taken for another process's."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '300']).pid)"
    pid = int(picod.execute("python3", "-c", code)["stdout"])
    assert psutil.Process(pid).ppid() == picod.process.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), "it is reaped")


def test_output_beyond_the_limit_is_truncated_as_ever() -> None:
    """Limits on output hold on this path too."""
    with picod_process("--auth", "none", "--max-output", "1000", "--preload", "decimal", *AT_ONCE) as picod:
        waiting_child(picod)
        answer = picod.execute("python3", "-c", "print('x' * 5000)")
    assert (len(answer["stdout"]), answer["stdout_truncated"]) == (1000, True)


def test_idle_helpers_hold_nothing_of_the_workspace(picod: Executor) -> None:
    """Neither their folder nor a descriptor: a workspace is moved in and out under a waiting sandbox."""
    waiting_child(picod)
    for process in servers(picod):
        held = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        assert process.cwd() == "/"
        assert not [path for path in held if path.startswith(str(picod.workspace))]


@pytest.mark.parametrize(
    ("number", "victims"), [(signal.SIGKILL, "server"), (signal.SIGSTOP, "child"), (signal.SIGSTOP, "both")]
)
def test_killed_or_stopped_helpers_cost_no_command(number: signal.Signals, victims: str) -> None:
    """Commands run whatever happened to the server or its child, and there is a server again."""
    with preloaded("decimal") as picod:
        hit = {server(picod).pid} if victims == "server" else {waiting_child(picod)}
        if victims == "both":
            hit = {process.pid for process in servers(picod)}
        for pid in hit:
            os.kill(pid, number)
        for n in range(3):
            assert picod.execute("python3", "-c", f"print({n})")["stdout"] == f"{n}\n"
        wait_until(lambda: picod.execute("python3", "-c", IS_PRELOADED)["stdout"] == "True\n", "it is preloaded again")


def test_script_that_kills_its_parent_and_siblings_affects_no_other_script(picod: Executor) -> None:
    """Hostile code may kill the warm interpreter; picod keeps serving and starts another."""
    code = """
import os, signal
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        try:
            if b"forkserver.py" in open(f"/proc/{name}/cmdline", "rb").read():
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            pass
print("done")
"""
    with preloaded("decimal") as own:
        assert own.execute("python3", "-c", code)["stdout"] == "done\n"
        assert own.execute("python3", "-c", "print(1)")["stdout"] == "1\n"


async def end(children: Children) -> None:
    """Kill what a test's own Children started; kill_all would take every child of the test process."""
    while children._by_pid:
        await children.kill(next(iter(children._by_pid.values())))
    asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)


LIES = {
    "says nothing": "time.sleep(60)",
    "waits in the server": "c.send(b'w'); time.sleep(60)",
    "runs in the server": "c.send(b'w'); c.recv(9999); c.send(b'r'); time.sleep(60)",
    "floods": "\n    for _ in range(100): c.send(b'w' * 1000)\n    time.sleep(60)",
    "closes": "c.close()",
    "ends": "os._exit(0)",
    "is another's child": "os.fork() or (c.send(b'w'), time.sleep(60))",
}


@pytest.mark.parametrize("lie", LIES, ids=str)
async def test_false_reports_of_the_preloaded_server_are_ignored(
    lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing a server says makes picod hand over a command that does not then run in a child of picod's own."""
    program = tmp_path / "liar.py"
    program.write_text(
        "import os, socket, sys, time\n"
        "control = socket.socket(fileno=int(sys.argv[1]))\n"
        "control.send(b'ready')\n"
        "while True:\n"
        "    data, fds, *_ = socket.recv_fds(control, 10, 1)\n"
        "    c = socket.socket(fileno=fds[0]) if fds else os._exit(0)\n"
        f"    {LIES[lie]}\n"
    )
    monkeypatch.setattr(preload, "_SERVER", str(program))
    children = Children()
    env = {b"PATH": str(PYTHON.parent).encode()}
    root = os.open("/", os.O_PATH)
    warm = preload.Preload(children, ["decimal"], env, root, delay=0)
    warm.start()
    async with asyncio.timeout(20):
        while warm._looked_at is None:
            await asyncio.sleep(0)  # each turn: the one that ends is ready for a moment only
    monkeypatch.setattr(preload, "_STEP_TIMEOUT_S", 0.3)
    command = [b"python3", b"-c", b"pass"]
    executable = str(PYTHON).encode()
    with open(os.devnull, "wb") as null:
        where = {"cwd_fd": root, "stdout": null.fileno(), "stderr": null.fileno()}
        assert await warm.run(executable, command, env=env, **where) is None

    await end(children)
    os.close(root)


async def test_whoever_waits_for_an_end_is_told_before_the_kill_returns() -> None:
    """Also where the process is reaped in the very turn of the loop in which the kill looks."""
    children = Children()
    root = os.open("/", os.O_PATH)
    child = children.spawn(b"/bin/true", [b"true"], env={}, cwd_fd=root, stdout=1, stderr=2)
    told: list[int] = []
    child.exited.add_done_callback(lambda done: told.append(done.result()))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # blocks the loop on purpose: nothing is reaped meanwhile
    children._reap()
    await children.kill(child)
    before = list(told)
    await end(children)
    os.close(root)

    assert before == [0]


async def test_frozen_session_spares_quiet_helpers() -> None:
    """A snapshot stops what a command started, not what a command that comes meanwhile would need."""
    children = Children()
    root = os.open("/", os.O_PATH)
    where = {"cwd_fd": root, "stdout": 1, "stderr": 2}
    user, helper = (children.spawn(b"/bin/sleep", [b"sleep", b"300"], env={}, **where) for _ in range(2))  # type: ignore[arg-type]
    children.quiet.add(helper.pid)
    with Frozen(children.quiet):
        states = [psutil.Process(child.pid).status() for child in (user, helper)]
    await end(children)
    os.close(root)

    assert states == [psutil.STATUS_STOPPED, psutil.STATUS_SLEEPING]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ValueError('x')", "cannot import odd: ValueError: x"),
        ("import sys; sys.exit(3)", "cannot import odd: SystemExit: 3"),
        ("print('hello')", "the imports print, which each script would have to: hello"),
        ("import os; open(os.path.expanduser('~/made'), 'w').close()", "the imports write made into the home folder"),
    ],
)
def test_module_that_cannot_be_preloaded_is_logged(
    source: str, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log says why, commands run the ordinary way, and nothing was left in the home folder."""
    python, home = environment(tmp_path), tmp_path / "home"
    home.mkdir()
    (site_of(tmp_path) / "odd.py").write_text(source)
    environ = {"PICOD_COMMAND_ENV": f'{{"PATH": "{python.parent}", "HOME": "{home}"}}'}
    log = ""

    def told() -> bool:
        nonlocal log
        log += capfd.readouterr().err
        return f"picod: preload: off: {reason}" in log

    with picod_process("--auth", "none", "--preload", "odd", *AT_ONCE, environ=environ) as picod:
        wait_until(told, f"the log tells {reason}")
        assert picod.execute("python3", "-c", "print(1)")["stdout"] == "1\n"
        wait_until(lambda: servers(picod) == [], "the server has ended")
    assert os.listdir(home) == []


def test_packages_that_come_later_are_found(tmp_path: Path) -> None:
    """When site-packages changes, scripts start afresh until there is a preloaded interpreter that saw it too."""
    python = environment(tmp_path)
    environ = {"PICOD_COMMAND_ENV": f'{{"PATH": "{python.parent}"}}'}
    with picod_process("--auth", "none", "--preload", "decimal", *AT_ONCE, environ=environ) as picod:
        waiting_child(picod)
        (site_of(tmp_path) / "late.pth").write_text("import sys; sys.from_pth = True\n")
        code = "import sys; print(sys.from_pth, 'decimal' in sys.modules)"
        assert picod.execute("python3", "-c", code)["stdout"] == "True False\n"
        wait_until(lambda: picod.execute("python3", "-c", code)["stdout"] == "True True\n", "it is preloaded anew")


def test_user_site_that_comes_later_is_found(tmp_path: Path) -> None:
    """`pip install --user` makes a folder that a fresh interpreter puts on its path."""
    python = Path(sys.base_prefix) / "bin" / "python3"
    environ = {"PICOD_COMMAND_ENV": f'{{"PATH": "{python.parent}", "HOME": "{tmp_path}"}}'}
    code = "import sys; print([path for path in sys.path if '.local' in path])"
    with picod_process("--auth", "none", "--preload", "decimal", *AT_ONCE, environ=environ) as picod:
        waiting_child(picod)
        assert picod.execute("python3", "-c", code)["stdout"] == "[]\n"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        folder = tmp_path / ".local" / "lib" / version / "site-packages"
        folder.mkdir(parents=True)
        assert picod.execute("python3", "-c", code)["stdout"] == f"['{folder}']\n"


def test_script_in_a_pipe_is_read_once(picod: Executor) -> None:
    """A FIFO is no plain file: the fresh interpreter alone opens it, so that its writer is not cut off."""
    shell = "mkfifo pipe; (echo 'print(1)' > pipe; echo $? > status) & exec sleep 0.01"
    picod.execute("sh", "-c", shell)
    assert picod.execute("python3", "pipe")["stdout"] == "1\n"
    wait_until(lambda: (picod.workspace / "status").exists(), "the writer ends")
    assert (picod.workspace / "status").read_text() == "0\n"


def test_without_modules_no_interpreter_waits() -> None:
    """Nobody pays for what was not asked for."""
    with preloaded("") as picod:
        picod.execute("python3", "-c", "pass")
        assert picod.children() == []


def environment(folder: Path) -> Path:
    """A virtual environment of the test's own; its python3."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")]
    subprocess.run(command, check=True)
    return folder / "venv" / "bin" / "python3"


def site_of(folder: Path) -> Path:
    """The site-packages of the virtual environment in a folder."""
    return next((folder / "venv" / "lib").glob("python*/site-packages"))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="elsewhere each child is forked twice")
def test_script_costs_one_fork(picod: Executor) -> None:
    """No process comes and goes between the preloaded interpreter and a script."""
    helper = server(picod)
    before = faults_of_children(helper.pid)
    for _ in range(3):
        assert is_preloaded(picod)
    assert faults_of_children(helper.pid) == before


def test_script_runs_beside_modules_that_keep_threads() -> None:
    """Such modules may hold locks at any time: the first child is forked with all that the C library does for it."""
    with preloaded("numpy", OPENBLAS_NUM_THREADS="2") as picod:
        assert faults_of_children(server(picod).pid) > 0
        for _ in range(3):
            answer = picod.execute("python3", "-c", "import numpy; a = numpy.ones((500, 500)); print((a @ a)[0, 0])")
            assert (answer["stdout"], answer["exit_code"]) == ("500.0\n", 0)
            waiting_child(picod)


def test_modules_of_a_script_are_distinguished_from_preloaded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it took others out of sys.modules, or put them back."""
    before = baseline.Baseline()
    before.remember()
    last = next(reversed(sys.modules))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert set(before.new_modules()) == set()
    sys.modules["new"] = sys
    assert set(before.new_modules()) == {"new"}
    sys.modules[last] = sys.modules.pop(last)
    assert set(before.new_modules()) == {"new"}
    del sys.modules["decimal" if "decimal" in sys.modules else "json"]
    assert set(before.new_modules()) == {"new"}


def test_only_memory_in_full_use_is_joined_to_large_pages() -> None:
    """Whole blocks of the heap and of unnamed private memory; not what is reserved, nor files, nor what is shared."""
    text = """\
00100000-00700000 rw-p 00000000 00:00 0                                  [heap]
Size:               6144 kB
Rss:                6000 kB
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n\
Rss:                4096 kB
7f0000800000-7f0002800000 rw-p 00000000 00:00 0 \n\
Rss:                3000 kB
7f1000000000-7f1000400000 rw-p 00000000 00:00 0                          /lib/some.so
Rss:                4096 kB
7f2000000000-7f2000400000 rw-s 00000000 00:00 0 \n\
Rss:                4096 kB
7ffc00000000-7ffc00400000 rw-p 00000000 00:00 0                          [stack]
Rss:                4096 kB
VmFlags: rd wr mr mw me gd ac
"""
    assert list(pages.full_blocks(text.splitlines())) == [0x200000, 0x400000, 0x7F0000000000, 0x7F0000200000]


def faults_of_children(pid: int) -> int:
    """Page faults of the children that a process has waited for."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11 - 3])

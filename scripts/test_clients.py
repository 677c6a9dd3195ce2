"""Runs other products' own clients, at old and at their newest versions, against a gateway of this tree.

Each version gets a virtual environment of its own (or a folder of node_modules), which is deleted afterwards. A trial
is a program of scripts/clients; it passes if it ends with 0. Not a part of scripts/test: it downloads packages.

    scripts/test-clients [NAME ...]     only clients whose name begins with one of these
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "scripts" / "clients"
ADMIN = "a" * 40
START_LIMIT_S, INSTALL_LIMIT_S, TRIAL_LIMIT_S = 60.0, 900.0, 180.0
# What AgentScope Runtime 1.0.1 was made for; newer ones lack modules that it imports.
OLD_AGENTSCOPE = ("a2a-sdk<1", "agentscope<2", "mcp<2")


@dataclass(frozen=True)
class Trial:
    """One version of a client. `requirements` are pip's, or npm's for a program in JavaScript.

    `e2b_key`: with the key in E2B's spelling, for a client that takes no other.
    """

    client: str
    version: str
    program: str
    requirements: tuple[str, ...]
    e2b_key: bool = False
    alone: tuple[str, ...] = ()  # installed without what they need: only files of theirs are used


TRIALS = (
    Trial("e2b", "2.7.0", "e2b_core.py", ("e2b==2.7.0",)),
    Trial("e2b", "2.26.0", "e2b_core.py", ("e2b==2.26.0",), e2b_key=True),
    Trial("e2b", "newest", "e2b_core.py", ("e2b",)),
    Trial("e2b-code-interpreter", "2.9.0", "e2b_code.py", ("e2b-code-interpreter==2.9.0", "e2b==2.26.0"), e2b_key=True),
    Trial("e2b-code-interpreter", "newest", "e2b_code.py", ("e2b-code-interpreter",)),
    Trial("@e2b/code-interpreter", "2.7.0", "e2b.mjs", ("@e2b/code-interpreter@2.7.0",)),
    Trial("@e2b/code-interpreter", "newest", "e2b.mjs", ("@e2b/code-interpreter",)),
    Trial("agentcube-sdk", "0.1.0", "agentcube_code.py", ("agentcube-sdk==0.1.0",)),
    Trial("k8s-agent-sandbox", "1.0.6", "agent_sandbox_claim.py", ("k8s-agent-sandbox==1.0.6",)),
    Trial("k8s-agent-sandbox", "newest", "agent_sandbox_claim.py", ("k8s-agent-sandbox",)),
    Trial("agentscope-runtime", "1.0.1", "agentscope_sandbox.py", ("agentscope-runtime==1.0.1", *OLD_AGENTSCOPE)),
    Trial("agentscope-runtime", "newest", "agentscope_sandbox.py", ("agentscope-runtime",)),
    Trial("jupyter-kernel-client", "0.9.0", "jupyter_kernel.py", ("jupyter-kernel-client==0.9.0",)),
    Trial("jupyter-kernel-client", "newest", "jupyter_kernel.py", ("jupyter-kernel-client",)),
    Trial("mcp", "1.30.0", "mcp_tools.py", ("mcp==1.30.0",)),
    Trial("mcp", "newest", "mcp_tools.py", ("mcp",)),
    Trial("openai", "2.0.0", "openai_containers.py", ("openai==2.0.0",)),
    Trial("openai", "newest", "openai_containers.py", ("openai",)),
    Trial("open-webui", "0.12.4", "open_webui_terminal.py", ("aiohttp", "pyyaml"), alone=("open-webui==0.12.4",)),
    Trial("open-webui", "newest", "open_webui_terminal.py", ("aiohttp", "pyyaml"), alone=("open-webui",)),
    Trial("@librechat/agents", "newest", "librechat.mjs", ("@librechat/agents",)),
)


def main(names: list[str]) -> int:
    """Run the trials and print a line of a table for each. Returns 1 if one failed."""
    chosen = [each for each in TRIALS if not names or each.client.startswith(tuple(names))]
    if not chosen:
        print(f"no client of that name; there are {', '.join(sorted({each.client for each in TRIALS}))}")
        return 2
    failed = 0
    with (
        tempfile.TemporaryDirectory(prefix="wakegate-clients-") as folder,
        gateway(Path(folder)) as (url, key, e2b_key),
    ):
        print(f"{'client':24}{'version':20}{'passed':8}", flush=True)
        for number, trial in enumerate(chosen):
            version, error = run(
                trial, Path(folder) / str(number), {"WG_URL": url, "WG_KEY": e2b_key if trial.e2b_key else key}
            )
            skipped = error.startswith("skipped")
            failed += bool(error) and not skipped
            passed = "skipped" if skipped else "no" if error else "yes"
            print(f"{trial.client:24}{version:20}{passed:8}{error}", flush=True)
    return 1 if failed else 0


def run(trial: Trial, folder: Path, variables: dict[str, str]) -> tuple[str, str]:
    """Install a client and run its program. Returns the version that was installed, and the error or nothing."""
    folder.mkdir()
    try:
        install = install_javascript if trial.program.endswith(".mjs") else install_python
        command, version = install(trial, folder)
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=TRIAL_LIMIT_S
        )
        return version, "" if done.returncode == 0 else last_line(done.stderr or done.stdout)
    except FileNotFoundError as error:
        return trial.version, f"skipped: {error.filename} is not on PATH"
    except subprocess.CalledProcessError as error:
        return trial.version, f"not installed: {last_line(error.stderr)}"
    except subprocess.TimeoutExpired as error:
        return trial.version, f"took more than {error.timeout:g} s"
    finally:
        shutil.rmtree(folder)  # now: all of them together fill a small disk


def install_python(trial: Trial, folder: Path) -> tuple[list[str], str]:
    """Make a virtual environment. Returns the command of the trial, and the client's version."""
    setup([sys.executable, "-m", "venv", str(folder / "venv")])
    python = str(folder / "venv" / "bin" / "python")
    setup([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *trial.requirements])
    if trial.alone:
        setup([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *trial.alone])
    # The venv's own packages alone: -I leaves out this folder, whose programs have names like the packages.
    found = setup([python, "-Ic", f"import importlib.metadata as m; print(m.version({trial.client!r}))"])
    return [python, "-I", str(PROGRAMS / trial.program)], found.strip()


def install_javascript(trial: Trial, folder: Path) -> tuple[list[str], str]:
    """Install packages of npm. Returns as `install_python`."""
    setup(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *trial.requirements])
    manifest = json.loads((folder / "node_modules" / trial.client / "package.json").read_text())
    # Node looks for packages from the program's folder upwards, so the program goes to them.
    shutil.copy(PROGRAMS / trial.program, folder)
    return ["node", str(folder / trial.program)], str(manifest["version"])


def setup(command: list[str]) -> str:
    """Run a command of the installation. Raises CalledProcessError, TimeoutExpired."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S).stdout


def last_line(text: str) -> str:
    """The last line of an output that says something, cut to what fits a line of the table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:160] if lines else "it printed nothing"


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[tuple[str, str, str]]:
    """A gateway of this tree while the context lasts: its URL, and a member's key in both spellings."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "admin").write_text(ADMIN)
    log = folder / "gateway.log"
    flags = ["--port", str(port), "--state-dir", str(folder / "state"), "--admin-key-file", str(folder / "admin")]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", *flags], cwd=ROOT, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        yield url, *make_key(url, process, log)
    finally:
        process.terminate()
        process.wait()


def make_key(url: str, process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Wait for the gateway and make a key: its two spellings. Raises SystemExit with the log if it does not start."""
    body, headers = {"role": "member", "tenant": "clients"}, {"authorization": f"Bearer {ADMIN}"}
    ends = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < ends:
        try:
            answer = httpx.post(f"{url}/v1/keys", json=body, headers=headers, trust_env=False).raise_for_status().json()
            return str(answer["key"]), str(answer["e2bKey"])
        except httpx.TransportError:  # it does not listen yet
            time.sleep(0.2)
    raise SystemExit(f"the gateway does not start:\n{log.read_text()[-4000:]}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the gateway and the environments go with it
    raise SystemExit(main(sys.argv[1:]))

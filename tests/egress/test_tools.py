"""Ordinary tools in a sandbox reach what is allowed without any setting for it, and fail at once otherwise."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import Limits, Sandbox, SessionId
from gateway.egress.gate import EgressGate
from tests.support.internet import Internet
from tests.support.local_engine import KEY, execute, python, runtime, serving

pytestmark = pytest.mark.processes

ORIGIN = "https://origin.example.com"


@pytest.fixture(scope="module")
def packages(world: Internet) -> None:
    """An index for pip, a registry for npm, and a repository for git, as files of the world's hosts."""
    simple = world.files / "simple" / "tiny"
    simple.mkdir(parents=True)
    with zipfile.ZipFile(simple / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "answer = 42\n")
        info = "tiny-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    _npm(world.files / "npm")
    source = world.folder / "source"
    for command in (
        ["git", "init", "-q", str(source)],
        [
            "git",
            "-C",
            str(source),
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            "x",
        ],
        ["git", "clone", "-q", "--bare", str(source), str(world.files / "repository.git")],
        ["git", "-C", str(world.files / "repository.git"), "update-server-info"],
    ):
        subprocess.run(command, check=True, capture_output=True)


def _npm(folder: Path) -> None:
    folder.mkdir()
    package = json.dumps({"name": "tiny", "version": "1.0.0"}).encode()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/package.json")
        member.size = len(package)
        archive.addfile(member, io.BytesIO(package))
    (folder / "tiny-1.0.0.tgz").write_bytes(content.getvalue())
    tarball = {
        "tarball": f"{ORIGIN}/files/npm/tiny-1.0.0.tgz",
        "shasum": hashlib.sha1(content.getvalue()).hexdigest(),
    }
    version = {"name": "tiny", "version": "1.0.0", "dist": tarball}
    document = {"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    (folder / "tiny").write_text(json.dumps(document))


@pytest.fixture
async def sandbox(world: Internet, gate: EgressGate, packages: None, tmp_path: Path) -> AsyncIterator[Sandbox]:
    """With egress to origin.example.com, whose authority its tools trust."""
    ca = "/workspace/ca.pem"
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT")
    trust = dict.fromkeys((*names, "NODE_EXTRA_CA_CERTS", "npm_config_cafile"), ca)
    made = runtime(
        egress=("origin.example.com",),
        environment={
            **trust,
            "PIP_INDEX_URL": f"{ORIGIN}/files/simple/",
            "npm_config_registry": f"{ORIGIN}/files/npm/",
        },
        limits=Limits(processes=128),
    )
    async with serving(tmp_path, made, egress=gate) as provider:
        claimed = await provider.claim(KEY, SessionId("one"))
        folder = provider.workspace(claimed.id)
        assert folder is not None
        (folder / "ca.pem").write_bytes(world.ca.read_bytes())
        yield claimed


async def shell(sandbox: Sandbox, script: str) -> dict[str, Any]:
    return await execute(sandbox, "sh", "-c", script, timeout="60s")


async def test_pip_installs_from_an_allowed_index(sandbox: Sandbox) -> None:
    done = await shell(sandbox, "pip install -q tiny && python3 -c 'import tiny; print(tiny.answer)'")
    assert done["stdout"].strip() == "42", done


async def test_pip_says_which_setting_allows_what_is_refused(sandbox: Sandbox) -> None:
    """The proxy's words are in pip's own message, and it does not try for long."""
    done = await shell(sandbox, "pip install -i https://other.example.com/simple/ tiny")
    assert done["exit_code"] != 0
    assert "add other.example.com to spec.wakegate.egress of" in done["stdout"] + done["stderr"], done
    assert done["duration"] < 10  # pip's own five retries wait 15 s and more


async def test_curl_speaks_tls_through_it(sandbox: Sandbox) -> None:
    done = await shell(sandbox, f"curl -sS {ORIGIN}/hello")
    assert json.loads(done["stdout"])["port"] == 443, done


async def test_git_clones(sandbox: Sandbox) -> None:
    done = await shell(sandbox, f"git clone -q {ORIGIN}/files/repository.git r && git -C r log --format=%s")
    assert done["stdout"].strip() == "x", done


async def test_python_clients_find_it_in_the_environment(sandbox: Sandbox) -> None:
    """urllib and requests; what is refused is an error of the proxy that names the setting."""
    code = (
        "import json, requests, urllib.request\n"
        f"print(json.load(urllib.request.urlopen('{ORIGIN}/a'))['path'])\n"
        f"print(requests.post('{ORIGIN}/b', data=b'x' * 100000).json()['body'])\n"
        "print(requests.post('http://origin.example.com/c', data=iter([b'x' * 1000] * 3)).json()['body'])\n"
        "try: requests.get('https://other.example.com/')\n"
        "except requests.exceptions.ProxyError as error: print('add other.example.com to' in str(error))\n"
    )
    assert (await python(sandbox, code)).split() == ["/a", "100000", "3000", "True"]


async def test_httpx_finds_it_in_the_environment(sandbox: Sandbox) -> None:
    """With its usual clients; no package for SOCKS is asked for."""
    import httpx  # of the test's own environment: lent to the sandbox, whose environment has none

    folder = Path(httpx.__file__).parents[1]
    code = (
        f"import sys; sys.path.append({str(folder)!r})\n"
        "import httpx\n"
        f"print(httpx.get('{ORIGIN}/a').json()['path'])\n"
        "try: httpx.get('https://other.example.com/')\n"
        "except httpx.ProxyError as error: print(str(error))\n"
    )
    said = await python(sandbox, code)
    assert said.startswith("/a"), said
    assert "403" in said or "add other.example.com to" in said


async def test_npm_installs_from_an_allowed_registry(sandbox: Sandbox) -> None:
    done = await shell(sandbox, "mkdir p && cd p && npm install --no-audit --no-fund tiny && ls node_modules")
    assert done["stdout"].split()[-1] == "tiny", done


async def test_node_reaches_it_by_connect(sandbox: Sandbox) -> None:
    """Node's own fetch uses the environment from 22.21 and 24.5 on; earlier ones have to be told, as here."""
    code = """
    const http = require("http"), https = require("https"), tls = require("tls");
    const proxy = new URL(process.env.HTTPS_PROXY), host = "origin.example.com";
    http.request({host: proxy.hostname, port: proxy.port, method: "CONNECT", path: host + ":443"})
      .on("connect", (_, socket) => https.get(
        {host, path: "/n", createConnection: () => tls.connect({socket, servername: host})},
        (answer) => { let text = ""; answer.on("data", (d) => text += d); answer.on("end", () => console.log(text)); },
      )).end();
    """
    done = await execute(sandbox, "node", "-e", code)
    assert json.loads(done["stdout"])["path"] == "/n", done


async def test_socks_resolves_names_outside(sandbox: Sandbox) -> None:
    curl = "curl -sS -x socks5h://127.0.0.1:3128"
    done = await shell(sandbox, f"{curl} {ORIGIN}/s && {curl} http://origin.example.com/t")
    assert '"/s"' in done["stdout"], done
    assert '"/t"' in done["stdout"], done


async def test_runtime_without_egress_has_no_proxy(gate: EgressGate, tmp_path: Path) -> None:
    """Nothing listens, nothing is set, and pip answers at once that there is no network."""
    async with serving(tmp_path, runtime(), egress=gate) as provider:
        sandbox = await provider.claim(KEY, SessionId("one"))
        done = await shell(sandbox, "env | grep -ci proxy; cat /proc/net/tcp | wc -l; pip install tiny")
        assert done["stdout"].split()[:2] == ["0", "1"], done
        assert "this sandbox has no network" in done["stderr"]
        assert gate.pid is None

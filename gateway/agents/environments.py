"""Builds the packages of agents, once per list of requirements, in a sandbox that reaches the package index alone.

Installing a package runs code of whoever wrote it, so it happens in a sandbox of a runtime that only the gateway uses.
What comes out is kept read-only beside the bundles, and sandboxes of the agent see it at `manifests.PACKAGES_FOLDER`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import IO
from urllib.parse import urlsplit

import orjson

from gateway.agents.code import CodeStore
from gateway.agents.manifests import PACKAGES_FOLDER
from gateway.agents.requirements import Requirement, explain, read_requirements
from gateway.core.errors import BadRequestError, SettingsError, TooLargeError, UpstreamBrokenError
from gateway.core.identity import Role, acting_as, current
from gateway.core.interfaces import SandboxCaller
from gateway.core.model import Runtime, RuntimeKey, SessionId
from gateway.sessions.lifecycle import Lifecycle

BUILDER = RuntimeKey("wakegate", "agent-packages")
NOBODYS = "(the gateway)"  # no tenant's name: only an administrator sees a runtime of it
INSTALL_S = 600.0
# Installing compiles: more at once would take the cores from sessions that somebody waits for.
AT_ONCE = 2
MAX_ARCHIVE_BYTES = 4 << 30
MAX_BYTES = 4 << 30
# Large stacks of machine learning have tens of thousands of files; many times that is a mistake or an attack.
MAX_FILES = 200_000
_ANSWER_BYTES = 256 << 10
_ARCHIVE = "packages.tar"
# python3 -c SCRIPT REQUIREMENTS INDEX FOLDER [HOST]. Bytecode is compiled here, since the folder is read-only where it
# is used; unchecked, because unpacking gives the sources other times. The end of pip's output is enough.
# An environment that uv made has no pip; Python itself brings one, for new environments.
_SCRIPT = """
import glob, importlib.util, os, subprocess, sys, tarfile
requirements, index, folder, *host = sys.argv[1:]
if not importlib.util.find_spec("pip"):
    bundled = importlib.util.find_spec("ensurepip")
    found = glob.glob(os.path.join(os.path.dirname(bundled.origin), "_bundled", "pip-*.whl")) if bundled else []
    if not found: sys.exit("ERROR: the gateway's --sandbox-python has no pip; install it there")
    os.environ["PYTHONPATH"] = found[0]
os.makedirs("tmp", exist_ok=True)
os.environ["TMPDIR"] = os.path.abspath("tmp")
with open("requirements.txt", "w") as file: file.write(requirements)
pip = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "--no-cache-dir", "--no-compile",
       "--no-warn-script-location", "--progress-bar", "off", "--target", "packages", "--index-url", index]
done = subprocess.run([*pip, *(["--trusted-host", host[0]] if host else []), "-r", "requirements.txt"],
                      stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
print(done.stdout.decode(errors="replace")[-20000:])
if done.returncode: sys.exit(done.returncode)
os.makedirs("packages", exist_ok=True)
subprocess.run([sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash",
                "-s", "packages", "-p", folder, "packages"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
with tarfile.open("packages.tar", "w", dereference=True) as archive: archive.add("packages", ".")
"""


@dataclass(frozen=True, slots=True)
class Built:
    """An environment: its digest, whether it was there already, and the seconds that it took."""

    digest: str
    cached: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class PackageIndex:
    """Where packages come from: a URL as pip takes it."""

    url: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise SettingsError([f"--package-index {self.url}: expected http(s)://HOST/PATH without a password"])

    @property
    def egress(self) -> tuple[str, ...]:
        """The policy of the sandbox that installs: PyPI's preset, or this host."""
        parts = urlsplit(self.url)
        if parts.hostname == "pypi.org":
            return ("pypi",)
        host = str(parts.hostname)
        return (host if parts.port is None else f"{host}:{parts.port}",)

    @property
    def trusted(self) -> tuple[str, ...]:
        """The host, which pip has to be told to trust where it speaks no TLS."""
        parts = urlsplit(self.url)
        return (parts.netloc,) if parts.scheme == "http" else ()


def builder_runtime(index: PackageIndex, key: RuntimeKey = BUILDER) -> Runtime:
    """The runtime of the sandboxes that install packages. No warm ones, and nobody's sessions but the gateway's."""
    # A cluster's NetworkPolicy is made of the manifest.
    manifest = {"spec": {"wakegate": {"egress": list(index.egress)}}}
    return Runtime(key=key, egress=index.egress, tenant=NOBODYS, code_context="off", manifest=manifest)


class EnvironmentBuilder:
    """Builds environments into a CodeStore. `python`: what names the interpreter that they are for."""

    def __init__(
        self,
        code: CodeStore,
        lifecycle: Lifecycle,
        caller: SandboxCaller,
        index: PackageIndex,
        python: str,
        builder: RuntimeKey = BUILDER,
    ) -> None:
        """`builder`: the key of builder_runtime."""
        self._code, self._lifecycle, self._caller = code, lifecycle, caller
        self._index, self._python, self._builder = index, python, builder
        self._builds = _Locks()  # by digest: one that is being built is waited for
        self._tenants = _Locks()  # one installs one list at a time, and cannot take all slots for ten minutes
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def build(self, text: str) -> Built:
        """Install requirements for the caller's tenant, unless that was done before.

        The sandbox counts against the tenant's limits and its egress, as one of its own would.
        Raises BadRequestError with the line that is wrong, TooLargeError, QuotaExceededError, and what creating a
        session and calling a sandbox raise.
        """
        requirements = read_requirements(text)
        if not requirements:
            raise BadRequestError("requirements: names no package")
        started = time.monotonic()
        tenant = current().tenant
        name = await self._name(tenant, requirements)
        # Ten deployments of one list at once install it once, and the other nine find it.
        async with self._builds.hold(name):
            if digest := await self._code.find_environment(name, tenant):
                return Built(digest, True, time.monotonic() - started)
            # The tenant's lock first: whoever waits for its own turn holds no slot that another tenant could use.
            async with self._tenants.hold(tenant), self._slots:
                digest = await self._build(name, requirements)
        return Built(digest, False, time.monotonic() - started)

    async def _name(self, tenant: str, requirements: Sequence[Requirement]) -> str:
        """The name of an environment, of the form of a digest.

        Of its tenant too: another one's code ran where it was built. Keyed, because on one machine whoever can say it
        can use the files, and a list of packages is easily guessed.
        """
        lines = "\n".join(each.text for each in requirements)
        named = "\0".join((tenant, self._index.url, self._python, lines)).encode()
        return "sha256:" + hmac.new(await self._code.secret(), named, hashlib.sha256).hexdigest()

    async def _build(self, name: str, requirements: Sequence[Requirement]) -> str:
        # As an administrator of the caller's tenant: the runtime is nobody's, the limits are the tenant's.
        caller = replace(current(), role=Role.ADMIN, runtimes=frozenset(), scope=None)
        with acting_as(caller):
            opened = await self._lifecycle.create(
                self._builder, ttl=INSTALL_S + 300.0, metadata={"name": "packages of an agent"}
            )
            session_id = opened.session.id
            try:
                lines = "\n".join(each.text for each in requirements) + "\n"
                arguments = ["python3", "-c", _SCRIPT, lines, self._index.url, PACKAGES_FOLDER, *self._index.trusted]
                reply = await self._caller.call(
                    session_id,
                    "POST",
                    "/api/execute",
                    headers={"content-type": "application/json"},
                    body=orjson.dumps({"command": arguments, "timeout": f"{INSTALL_S:g}s"}),
                    timeout=INSTALL_S + 30.0,
                    limit=_ANSWER_BYTES,
                )
                _check(reply.status, reply.body, requirements)
                return await self._fetch(session_id, name)
            finally:
                # Shielded: a client that leaves cancels this, and the sandbox would go on installing at the tenant's
                # cost.
                await asyncio.shield(self._lifecycle.end_unclaimed(session_id))

    async def _fetch(self, session_id: SessionId, name: str) -> str:
        async with AsyncExitStack() as stack:
            file = stack.enter_context(await self._code.scratch_file())
            opened = self._caller.stream(session_id, "GET", f"/api/files/{_ARCHIVE}")
            reply, chunks = await stack.enter_async_context(opened)
            if reply.status != 200:
                raise UpstreamBrokenError(f"the sandbox that installed packages answered {reply.status} for them")
            await _copy(chunks, file)
            file.seek(0)
            return await self._code.keep_environment(
                name, current().tenant, file, max_bytes=MAX_BYTES, max_files=MAX_FILES
            )


class _Locks:
    """A lock for each key, for as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait for the lock of a key, and hold it."""
        self._users[key] += 1
        try:
            async with self._locks.setdefault(key, asyncio.Lock()):
                yield
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]


async def _copy(chunks: AsyncIterator[bytes], file: IO[bytes]) -> None:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_ARCHIVE_BYTES:
            raise TooLargeError(f"the packages are larger than {MAX_ARCHIVE_BYTES} bytes")
        await asyncio.to_thread(file.write, chunk)


def _check(status: int, body: bytes, requirements: Sequence[Requirement]) -> None:
    """Raises BadRequestError if the packages could not be installed, UnavailableError if the index is not reached."""
    try:
        document = orjson.loads(body)
        code, printed, ended = document["exit_code"], str(document.get("stdout", "")), document.get("timed_out")
    except (ValueError, KeyError, TypeError):
        raise UpstreamBrokenError(f"the sandbox that installs packages answered {status}, and no result") from None
    if ended:
        raise BadRequestError(f"requirements: could not be installed within {INSTALL_S:g} s")
    if status != 200 or code != 0:
        raise explain(requirements, printed or str(document.get("stderr", "")))

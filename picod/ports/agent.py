"""An agent behind picod. In a cluster an agent is a container with its own address; on one machine picod starts it.

picod starts the agent's command, answers /health once it is ready, and forwards every request with a token, unchanged,
to the port whose prefix of the path is longest. picod's own API does not exist there: a request to such a sandbox is a
request to the agent. When the agent exits, picod exits too, with the last lines of the agent's log as the reason; while
it does not answer, picod says what it does instead: where it listens, and its last lines.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from picod.commands.background import Process
from picod.commands.command_spec import CommandSpec, encode_env, find_executable
from picod.commands.services import CommandServices
from picod.http.request import Request, RequestError, reason_of
from picod.ports.api import forward
from picod.ports.heads import PortRequest
from picod.ports.listening import Listener, listeners

_EARLY_POLL_S = 0.05  # between the first 200 probes (ten seconds), then the probe's own period, usually seconds
_EARLY_POLLS = 200
_LOG_TAIL_BYTES, _LOG_TAIL_LINES = 2000, 3  # of the agent's log, in the reason for its exit
_FIRST_HINT_S = 2.0  # after which it is said why it is not ready; and again after twice the time
_MAX_SHOWN = 8  # ports in that
_END_S = 0.2  # in which an agent that broke off may turn out to have ended
_EXIT_STATUS = os.EX_SOFTWARE  # of a picod whose agent has exited


@dataclass(frozen=True)
class AgentConfig:
    """`targets`: (path prefix, port), the longest prefix first. The probe is a command, or a port and a path."""

    command: list[bytes]
    working_dir: str
    targets: list[tuple[bytes, int]]
    probe_command: list[bytes]
    probe_port: int
    probe_path: str
    period: float
    timeout: float

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> AgentConfig:
        """Read the document in wire.ENV_AGENT. Raises KeyError or TypeError if it is not such a document."""
        probe = document["probe"]
        return cls(
            command=[os.fsencode(word) for word in document["command"]],
            working_dir=document["working_dir"],
            targets=[(prefix.encode(), int(port)) for prefix, port in document["targets"]],
            probe_command=[os.fsencode(word) for word in probe["command"]],
            probe_port=int(probe["port"]),
            probe_path=probe["path"],
            period=float(probe["period"]),
            timeout=float(probe["timeout"]),
        )


class Agent:
    """The agent of this sandbox. `ready` is set when its probe has succeeded once."""

    def __init__(self, commands: CommandServices, config: AgentConfig) -> None:
        self.ready = asyncio.Event()
        self._commands = commands
        self._config = config
        self._env = encode_env(commands.config.command_env)
        self._folder = config.working_dir or commands.config.workspace
        self._probing: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._before: frozenset[Listener] = frozenset()

    def start(self) -> None:
        """Start the command and its probe. If it cannot be started, picod exits with the reason."""
        try:
            cwd_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._exit(f"its working directory {self._folder}: {reason_of(error)}")
        # Without a network of its own (`--isolation process`) a sandbox sees those of the machine, too.
        self._before = listeners()
        try:
            process = self._process = self._spawn(self._config.command, cwd_fd)
        finally:
            os.close(cwd_fd)
        # In the next turn of the loop: Process._exited, which reads the rest of the log, runs first.
        process.child.exited.add_done_callback(lambda _: asyncio.get_running_loop().call_soon(self._ended))
        self._probing = asyncio.ensure_future(self._probe_until_ready())

    def port_of(self, path: bytes) -> int:
        """The port of the longest prefix of the path, in whole segments: `/a` is not a prefix of `/ab`."""
        path = path.partition(b"?")[0]
        for prefix, port in self._config.targets:
            if prefix == b"/" or path == prefix or path.startswith(prefix + b"/"):
                return port
        return self._config.targets[-1][1]  # no prefix fits: the shortest one's, which is most likely the whole server

    async def end(self) -> None:
        """Wait for a moment whether the agent ends, and this process with it."""
        if self._process is not None:
            await asyncio.wait((self._process.child.exited,), timeout=_END_S)
            await asyncio.sleep(0)

    def _spawn(self, command: list[bytes], cwd_fd: int) -> Process:
        shown = command[0].decode(errors="replace")
        spec = CommandSpec(command, 0.0, ".", dict(self._env))
        executable = find_executable(command[0], self._env.get(b"PATH", b""), cwd_fd)
        if executable is None:
            self._exit(f"{shown}: there is no such program in this sandbox")
        try:
            return self._commands.background.start(
                spec, executable, cwd_fd, name="agent", stdin=False, keeps_awake=False
            )
        except OSError as error:
            self._exit(f"{shown}: {reason_of(error)}")

    def _ended(self) -> None:
        assert self._process is not None
        code = self._process.child.exited.result()
        how = f"exited with status {code}" if code >= 0 else f"was ended by signal {-code}"
        if code == 0 and not self.ready.is_set():
            how += " before it answered; an agent is a server that goes on running"
        self._exit(f"its command {how}: {self._log_tail() or 'no message'}")

    def _log_tail(self) -> str:
        assert self._process is not None
        log = self._process.log
        words = b"".join(piece.data for piece in log.since(log.end - _LOG_TAIL_BYTES))
        return " | ".join(words.decode(errors="replace").strip().splitlines()[-_LOG_TAIL_LINES:])

    def _exit(self, why: str) -> NoReturn:
        print(f"agent: {why}", file=sys.stderr, flush=True)  # noqa: T201 - the gateway shows it
        self._commands.children.kill_all()
        os._exit(_EXIT_STATUS)  # at once: requests that are under way wait for an agent that is gone

    async def _probe_until_ready(self) -> None:
        probes, loop = 0, asyncio.get_running_loop()
        began, hint_after = loop.time(), _FIRST_HINT_S
        while not await self._probe():
            probes += 1
            if loop.time() - began >= hint_after:
                hint_after *= 2
                # The gateway shows the end of this where it gives up.
                print(f"agent: {self._hint()}", file=sys.stderr, flush=True)  # noqa: T201
            await asyncio.sleep(_EARLY_POLL_S if probes < _EARLY_POLLS else self._config.period)
        self.ready.set()

    def _hint(self) -> str:
        """Why it may not be ready, for people."""
        config, found = self._config, sorted(listeners() - self._before)
        log = f"; its log ends: {tail}" if (tail := self._log_tail()) else "; its log is empty"
        if config.probe_command:
            return f"the command of its readiness probe fails{log}"
        wanted = f"port {config.probe_port}"
        if any(port == config.probe_port and _is_reached(address) for address, port in found):
            return f"it listens on {wanted} and does not answer {config.probe_path or 'there'} with 2xx or 3xx{log}"
        shown = ", ".join(f"{address} port {port}" for address, port in found[:_MAX_SHOWN])
        where = f"it listens on {shown}" if shown else "it listens on no port"
        return f"{where}; it has to listen on AGENT_HOST (127.0.0.1 here) and AGENT_PORT, {wanted}{log}"

    async def _probe(self) -> bool:
        config = self._config
        try:
            async with asyncio.timeout(config.timeout):
                if config.probe_command:
                    return await self._succeeds(config.probe_command)
                reader, writer = await asyncio.open_connection("localhost", config.probe_port)
                try:
                    if not config.probe_path:
                        return True
                    head = f"GET {config.probe_path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    writer.write(head.encode())
                    # Kubernetes' rule: 200 to 399 is success. Of `HTTP/1.1 204` these are the two digits that decide.
                    return (await reader.readline())[8:11] in (b" 20", b" 30")
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return False

    async def _succeeds(self, command: list[bytes]) -> bool:
        """Whether a command exits with status 0. Raises OSError if it cannot be started."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        cwd_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            executable = find_executable(command[0], self._env.get(b"PATH", b""), cwd_fd)
            if executable is None:
                return False
            child = self._commands.children.spawn(
                executable, command, cwd_fd=cwd_fd, env=self._env, stdout=null, stderr=null
            )
        finally:
            os.close(null)
            os.close(cwd_fd)
        try:
            return await asyncio.shield(child.exited) == 0
        finally:
            if not child.exited.done():
                await self._commands.children.kill(child)


def _is_reached(address: str) -> bool:
    """Whether a connection to localhost gets there."""
    return address in ("0.0.0.0", "127.0.0.1", "::", "::1", "::ffff:127.0.0.1")  # noqa: S104 - compared, not bound


async def serve(agent: Agent, request: Request) -> None:
    """Forward any request with a token to the agent, with its path unchanged."""
    path: bytes = request.scope["raw_path"]
    target = PortRequest(
        port=agent.port_of(path),
        path=path,
        method=request.method,
        prefix=None,
        upgrade=request.header(b"upgrade").encode("latin-1") if request.offers_upgrade else b"",
        chunked=bool(request.headers(b"transfer-encoding")),
    )
    try:
        await forward(request, target)
    except RequestError:
        # Of an agent that has crashed: with an answer from here the next request would come to a sandbox that ends in
        # this moment, and fail too.
        await agent.end()
        raise

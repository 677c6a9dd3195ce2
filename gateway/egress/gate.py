"""The gateway's side of egress: starts and watches the service, sends it policies, and reads what was reached.

What the service must know is kept here, with a copy of each sandbox's listening socket. So a service that ends, however
it does, is replaced by one that knows the same, and connections made in between wait in the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gateway
from gateway.core.background import Tasks
from gateway.core.backoff import backoff
from gateway.core.errors import WakegateError
from gateway.core.model import Secret
from gateway.core.quota import Part, Wish
from gateway.egress.authority import ensure_authority
from gateway.egress.channel import Channel, Message
from gateway.egress.log import Access, Outcome
from gateway.egress.notation import Grant
from gateway.egress.records import EgressRecords
from gateway.egress.trust import trust_bundle
from gateway.egress.values import read_value

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 5.0
# One that fails at once is started after 0.05, 0.1, 0.2 s and so on: a service that cannot start, such as for want of
# memory, costs one process in 5 s. One that ran is replaced at once, as sandboxes wait.
_STEADY_S = 10.0  # a service that ran for so long did not fail at its start
_END_TIMEOUT_S = 5.0
_CUT = "the egress service ended"
# A name with a dot is asked for as it is before a search domain of this machine is appended: in a cluster, where
# resolv.conf says ndots:5, example.com would be example.com.NAMESPACE.svc.cluster.local to begin with.
_RESOLVER = "ndots:1"


@dataclass(slots=True)
class _Sandbox:
    listener: socket.socket
    grant: Grant


class EgressGate:
    """Call `start` on the event loop. The service runs from the first sandbox with egress on.

    `refused`: networks that no policy opens. `wrapper`: a command that runs the service, in another network namespace.
    `authority`: the folder of the authority with which TLS is ended; None: nowhere. `trusted`: authorities of origins
    besides the machine's, a PEM file. `cache`: the folder of the package cache, its size in bytes, and how many
    services share both.
    `entrance`: a listening socket for sandboxes on other machines, owned by this from now on; see `on_token`.
    """

    def __init__(
        self,
        *,
        refused: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        authority: Path | None = None,
        trusted: Path | None = None,
        cache: tuple[Path, int, int] | None = None,
        entrance: socket.socket | None = None,
    ) -> None:
        self._entrance = entrance
        self._whose: Callable[[str], Awaitable[tuple[str, Grant] | None]] = _nobody
        self._part: Callable[[str, Wish], Awaitable[Part]] | None = None
        self._values: Callable[[Grant], Awaitable[Callable[[Secret], str]]] = _kept_here
        self._tasks = Tasks()
        self.records = EgressRecords()
        self.lines_lost = 0
        self._wrapper, self._authority, self._trusted = wrapper, authority, trusted
        self._arguments = [word for network in refused for word in ("--refuse", network)]
        if authority is not None:
            self._arguments += ["--authority", str(authority)]
        if cache is not None:
            folder, size, shares = cache
            self._arguments += ["--cache", str(folder), "--cache-bytes", str(size), "--cache-shares", str(shares)]
        if trusted is not None:
            self._arguments += ["--trust", str(trusted)]
        self._line_listeners: list[Callable[[Access], None]] = []
        self._cache_listeners: list[Callable[[int, int, int, int], None]] = []
        self._restart_listeners: list[Callable[[], None]] = []
        self._bytes_listeners: list[Callable[[str, int, int], None]] = []
        self._sandboxes: dict[str, _Sandbox] = {}
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._runs: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    def bundle(self, now: float) -> bytes:
        """What sandboxes have to trust, PEM: the machine's authorities, the operator's, and the one with which TLS is
        ended; empty: it is not. `now` in epoch seconds. Blocks. Raises OSError.
        """
        if self._authority is None:
            return b""
        return trust_bundle(ensure_authority(self._authority, now), self._trusted)

    @property
    def pid(self) -> int | None:
        """Of the service, while it runs."""
        return None if self._process is None else self._process.pid

    def on_line(self, listener: Callable[[Access], None]) -> None:
        """Call `listener(line)` with each line of the access log."""
        self._line_listeners.append(listener)

    def on_restart(self, listener: Callable[[], None]) -> None:
        """Call `listener()` when the service has ended and is about to be started again."""
        self._restart_listeners.append(listener)

    def on_bytes(self, listener: Callable[[str, int, int], None]) -> None:
        """Call `listener(session, up, down)` with the bytes that a session has moved since the last call."""
        self._bytes_listeners.append(listener)

    def on_cache(self, listener: Callable[[int, int, int, int], None]) -> None:
        """Call `listener(hits, misses, saved, held)`: since the last call, bytes that came from it, and its size."""
        self._cache_listeners.append(listener)

    def on_token(self, whose: Callable[[str], Awaitable[tuple[str, Grant] | None]]) -> None:
        """Ask `whose(token)` for the sandbox of a connection to the entrance, and what it may reach; None: nobody's.

        It may raise WakegateError, which counts as that.
        """
        self._whose = whose

    def on_secrets(self, values: Callable[[Grant], Awaitable[Callable[[Secret], str]]]) -> None:
        """For connections to the entrance, take the values of a grant's secrets from what `values(grant)` returns.

        An empty value: it cannot be read, or not by this runtime, and its hosts are refused.
        """
        self._values = values

    def on_part(self, part: Callable[[str, Wish], Awaitable[Part]]) -> None:
        """Other gateways serve the same sandboxes: `part(name, wish)` gives the parts of a sandbox's limits that
        connections to the entrance use. It may raise WakegateError, and is asked again then.
        """
        self._part = part

    def start(self) -> None:
        """Serve the entrance, if there is one; else the first sandbox starts the service."""
        if self._entrance is not None and self._runs is None:
            self._runs = asyncio.get_running_loop().create_task(self._run(), name="egress service")

    def leave(self, sandbox: str) -> None:
        """A sandbox that came by the entrance ends, or has no session any more: its connections are closed."""
        if self._channel is not None:
            self._channel.send({"op": "close", "sandbox": sandbox})

    def open(self, sandbox: str, listener: socket.socket, grant: Grant) -> None:
        """Serve the connections of a sandbox from now on. Owns the listener."""
        self.close(sandbox)
        self._sandboxes[sandbox] = _Sandbox(listener, grant)
        if self._runs is None:
            self._runs = asyncio.get_running_loop().create_task(self._run(), name="egress service")
        elif self._channel is not None:
            self._tell_open(sandbox)

    def bind(self, sandbox: str, grant: Grant) -> None:
        """Another grant for a sandbox: it has a session now, or what its session may reach has changed."""
        found = self._sandboxes.get(sandbox)
        if found is None or found.grant == grant:
            return
        # Of the same session: a limit of its tenant has changed, and open connections stay. Of another: what the one
        # before has opened must not be the next one's.
        keep = found.grant.session == grant.session
        found.grant = grant
        if self._channel is not None:
            document = grant.document(_value_of)
            self._channel.send({"op": "bind", "sandbox": sandbox, "grant": document, "keep": keep})

    def close(self, sandbox: str) -> None:
        """The sandbox ends: its connections are closed. An unknown one is no error."""
        found = self._sandboxes.pop(sandbox, None)
        if found is not None:
            found.listener.close()
            if self._channel is not None:
                self._channel.send({"op": "close", "sandbox": sandbox})

    async def aclose(self) -> None:
        """End the service, and with it every connection that it carries."""
        if self._runs is not None:
            self._runs.cancel()
            await asyncio.gather(self._runs, return_exceptions=True)
        await self._tasks.aclose()
        if self._entrance is not None:
            self._entrance.close()
        for name in list(self._sandboxes):
            self.close(name)

    # The process.

    async def _run(self) -> None:
        failures, loop = 0, asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._run_once()
            except OSError as error:
                logger.error("the egress service cannot be started: %s", error)
            self._cut_open()
            failures = 0 if loop.time() - began >= _STEADY_S else failures + 1
            for listener in self._restart_listeners:
                listener()
            logger.warning("the egress service has ended; it is started again")
            await asyncio.sleep(backoff(failures, first=_FIRST_BACKOFF_S, longest=_MAX_BACKOFF_S) if failures else 0)

    async def _run_once(self) -> None:
        """Start the service and wait for its end."""
        ours, theirs = socket.socketpair()
        self._ended.clear()
        with theirs:
            process = self._process = _spawn(theirs.fileno(), self._arguments, self._wrapper)
        try:
            self._channel = Channel(asyncio.get_running_loop(), ours, self._on_message, self._ended.set)
            if self._entrance is not None:
                message = {"op": "listen", "shared": self._part is not None}
                self._channel.send(message, [self._entrance.fileno()])
            for name in self._sandboxes:
                self._tell_open(name)
            await self._ended.wait()
        finally:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            # Shielded: when the gateway ends meanwhile the thread goes on, and no zombie stays.
            await asyncio.shield(asyncio.to_thread(_reap, process))
            self._process = None

    def _tell_open(self, sandbox: str) -> None:
        assert self._channel is not None
        found = self._sandboxes[sandbox]
        message = {"op": "open", "sandbox": sandbox, "grant": found.grant.document(_value_of)}
        self._channel.send(message, [found.listener.fileno()])

    # What it says.

    def _on_message(self, message: Message, _: Sequence[int]) -> None:
        if message["op"] == "log":
            self.lines_lost += message["lost"]
            for document in message["lines"]:
                self._take(Access.of(document))
        elif message["op"] == "who":
            # As many at once as the service has connections that are not known, which it bounds.
            self._tasks.spawn(self._answer(message["number"], message["token"]))
        elif message["op"] == "part":
            self._tasks.spawn(self._answer_part(message["number"], message["name"], Wish(**message["wish"])))
        elif message["op"] == "cache":
            for found in self._cache_listeners:
                found(message["hits"], message["misses"], message["saved"], message["held"])
        elif message["op"] == "bytes":
            self.records.moved(message["session"], message["up"], message["down"])
            for listener in self._bytes_listeners:
                listener(message["session"], message["up"], message["down"])

    async def _answer(self, number: int, token: str) -> None:
        answer = {"op": "whose", "number": number, "sandbox": ""}
        try:
            found = await self._whose(token)
            if found is not None:
                values = await self._values(found[1])
                answer |= {"sandbox": found[0], "grant": found[1].document(values)}
        except WakegateError as error:
            logger.warning("egress: whose a connection is cannot be found out: %s", error)
        if self._channel is not None:
            self._channel.send(answer)

    async def _answer_part(self, number: int, name: str, wish: Wish) -> None:
        part = None
        try:
            if self._part is not None:
                part = await self._part(name, wish)
        except WakegateError as error:
            logger.warning("egress: what other gateways use of a session's limits cannot be found out: %s", error)
        if number and self._channel is not None:
            self._channel.send({"op": "part", "number": number, "part": None if part is None else asdict(part)})

    def _cut_open(self) -> None:
        for line in self.records.open():
            self._take(replace(line, outcome=Outcome.CUT, reason=_CUT))

    def _take(self, line: Access) -> None:
        self.records.add(line)
        for listener in self._line_listeners:
            listener(line)


async def _nobody(_: str) -> tuple[str, Grant] | None:
    return None


async def _kept_here(_: Grant) -> Callable[[Secret], str]:
    return _value_of


def _value_of(secret: Secret) -> str:
    """Empty where it cannot be read: its hosts are then refused."""
    try:
        return read_value(secret)
    except ValueError as error:
        logger.error("secret %s: %s", secret.name, error)
        return ""


def _spawn(fd: int, arguments: Sequence[str], wrapper: Sequence[str]) -> subprocess.Popen[bytes]:
    """A session of its own: a Ctrl-C of the terminal is for the gateway."""
    root = str(Path(gateway.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    return subprocess.Popen(
        [*wrapper, sys.executable, "-m", "gateway.egress", "--fd", str(fd), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path, "RES_OPTIONS": f"{os.environ.get('RES_OPTIONS', '')} {_RESOLVER}"},
        pass_fds=(fd,),
        start_new_session=True,
    )


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end, which the end of its channel brings; kill it if it does not come. Blocks."""
    try:
        process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()

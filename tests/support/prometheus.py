"""A real Prometheus and its promtool, where PROMETHEUS_BIN names a folder with both (scripts/test-prometheus)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.waiting import wait_until


def program(name: str) -> str:
    """The path of prometheus or promtool. Skips the test where it is not installed."""
    folder = os.environ.get("PROMETHEUS_BIN")
    found = shutil.which(name, path=folder) if folder else shutil.which(name)
    if found is None:
        where = f"in PROMETHEUS_BIN={folder}" if folder else "on PATH, and PROMETHEUS_BIN is not set"
        pytest.skip(f"no {name} {where} (scripts/test-prometheus builds one)")
    return found


def promtool(*arguments: str | Path) -> str:
    """What promtool says. Fails the test with that if it is not content."""
    done = subprocess.run([program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"promtool {arguments[0]}:\n{done.stdout}{done.stderr}"
    return done.stdout


class Prometheus:
    """One that runs. `ask` evaluates an expression now."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=20)

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that the expression has now. Fails the test if Prometheus refuses it."""
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def rules(self) -> dict[str, dict[str, Any]]:
        """Each alert rule, as Prometheus has evaluated it, by its name."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the client's connections."""
        self._client.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def prometheus(folder: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """One that scrapes `target` (host:port) each second as the job `wakegate`, and evaluates `rules` as often."""
    path = program("prometheus")
    folder.mkdir()
    document = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "wakegate", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
    address = f"127.0.0.1:{_free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [path, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={address}"], stdout=log, stderr=log,
        )  # fmt: skip
    running = Prometheus(f"http://{address}")
    try:

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            return running.is_ready()

        wait_until(ready, "Prometheus answers", within=60.0)
        yield running
    finally:
        running.close()
        process.kill()
        process.wait()

"""The command line: read settings, start the server, say what it serves."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import uvloop
from structlog.contextvars import bind_contextvars

from gateway import __version__
from gateway.core.errors import SettingsError, WakegateError
from gateway.core.interfaces import RuntimeCatalog
from gateway.core.model import Kind, RuntimeKey
from gateway.core.settings import Settings, add_arguments, load
from gateway.observability import logs
from gateway.serving import supervisor

if TYPE_CHECKING:
    from gateway.app import Gateway

START_FAILED = 2
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="wakegate", description=__doc__)
    parser.add_argument("--version", action="version", version=f"wakegate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="run a gateway",
        description="Run a gateway. Flags win over WAKEGATE_* variables, those over --config.",
    )
    add_arguments(serve)
    serve.add_argument("--as-worker", type=int, default=0, help=argparse.SUPPRESS)  # what supervisor.py starts
    doctor = commands.add_parser(
        "doctor",
        help="say what is missing",
        description="Look at all that a gateway needs with these settings, and say what to mend.",
    )
    add_arguments(doctor)
    replay = commands.add_parser("replay", help="replay traces of claims through pool policies")
    words = sys.argv[1:] if argv is None else argv
    if "replay" in words:
        from gateway.autoscaler.replay import cli as laboratory  # which a gateway does without

        laboratory.add_arguments(replay)
    arguments = parser.parse_args(words)
    try:
        if arguments.command == "replay":
            return laboratory.run(arguments)
        settings = load(vars(arguments), os.environ)
        logs.configure(settings.log_level, "json" if settings.log_format == "json" else "console")
        if settings.workers > 1:
            supervisor.check(settings)
        if arguments.command == "doctor":
            return uvloop.run(_examine(settings))
        if arguments.as_worker:
            return uvloop.run(_serve_as_worker(settings, arguments.as_worker))
        if settings.workers > 1:
            # Workers are started as this process was: by the console script, or by -m from a checkout.
            started = sys.orig_argv[1:] if argv is None else ("-m", "gateway", *argv)
            return uvloop.run(supervisor.supervise(settings, [sys.executable, *started]))
        return uvloop.run(_serve(settings))
    except SettingsError as error:
        for problem in error.problems:
            print(f"wakegate: {problem}", file=sys.stderr)
        return START_FAILED
    except WakegateError as error:
        print(f"wakegate: {error}", file=sys.stderr)
        return START_FAILED
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = error.filename or "the state directory"
        print(
            f"wakegate: {where}: {error.strerror}; free space there, mount it read-write, or name another folder with"
            " --state-dir (WAKEGATE_STATE_DIR)",
            file=sys.stderr,
        )
        return START_FAILED
    except KeyboardInterrupt:
        return 130


async def _examine(settings: Settings) -> int:
    from gateway.doctor import examine, exit_status

    findings = []
    async for finding in examine(settings):
        print(finding, flush=True)
        findings.append(finding)
    return exit_status(findings)


async def _serve(settings: Settings) -> int:
    from gateway.build import build  # the slow import: once the settings are known to be right
    from gateway.serving.server import serving

    gateway = await build(settings)
    async with serving(gateway) as (url, ended):
        print(_banner_of(gateway, url, settings), flush=True)
        await ended
    return 0


async def _serve_as_worker(settings: Settings, number: int) -> int:
    supervisor.end_with_supervisor(settings.drain_timeout)
    bind_contextvars(worker=number)  # log lines of all workers come together on one stderr
    from gateway.build import build
    from gateway.serving.server import serving

    sockets = supervisor.sockets_of(settings, number)
    gateway = await build(supervisor.settings_of(settings, number))
    async with serving(gateway, sockets) as (url, ended):
        print(_banner_of(gateway, url, settings), end=supervisor.READY.decode(), flush=True)
        await ended
    return 0


def _banner_of(gateway: Gateway, url: str, settings: Settings) -> str:
    runtimes = [f"{runtime.key}, warm pool of {runtime.pool.size}" for runtime in gateway.catalog.all()]
    return banner(url, settings, runtimes, gateway.engine_summary().splitlines(), first_key(gateway.catalog))


def first_key(catalog: RuntimeCatalog) -> RuntimeKey:
    """Of what is served, rather what runs commands than an agent; in a cluster there may be nothing yet."""
    keys = sorted((runtime.key for runtime in catalog.all()), key=lambda key: key.kind is Kind.AGENT_RUNTIME)
    return keys[0] if keys else RuntimeKey("default", "my-interpreter")


def banner(url: str, settings: Settings, runtimes: Sequence[str], engine: Sequence[str], first: RuntimeKey) -> str:
    """What a person sees at the start: where it listens, what it serves, how it isolates, and lines to copy."""
    name = f"{first.namespace}/{first.name}"
    invoke = f"{url}/v1/namespaces/{first.namespace}/{first.kind.segment}/{first.name}/invocations/"
    pick = "python3 -c 'import json,sys; print(json.load(sys.stdin)[\"id\"])'"
    lines = [f"  curl -si {invoke}"]  # what an agent takes beyond that is its own affair
    if first.kind is not Kind.AGENT_RUNTIME:
        lines = [
            f"""  curl -s {invoke}api/execute -d '{{"command": ["python3", "-c", "print(\\"Hello\\")"]}}'""",
            f"""  S=$(curl -s {url}/v1/sessions -d '{{"runtime": "{name}"}}' | {pick})""",
            f"""  curl -s {url}/api/execute -H "x-session-id: $S" -d '{{"command": ["uname", "-a"]}}'""",
        ]
    return "\n".join([
        f"Wakegate {__version__} listens on {url}",
        *(f"  {'serves' if not i else '':<10} {line}" for i, line in enumerate(runtimes)),
        *(f"  {word:<10} {text}" for word, _, text in (line.partition(": ") for line in engine)),
        f"  {'state':<10} {settings.state_dir}",
        *([f"  {'workers':<10} {settings.workers} processes share this port"] if settings.workers > 1 else []),
        "Try it:",
        *lines,
    ])  # fmt: skip

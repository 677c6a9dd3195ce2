"""Runs a command: loads and checks the settings first, then imports what the command needs."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

import orjson
import uvloop
from structlog.contextvars import bind_contextvars

from gateway.cli.banner import banner_of
from gateway.cli.lean_imports import without_rich
from gateway.cli.parser import parse
from gateway.core.errors import SettingsError, WakegateError
from gateway.core.settings import Settings
from gateway.core.settings_load import load
from gateway.observability import logs
from gateway.serving import supervisor

logger = logging.getLogger(__name__)

START_FAILED = 2
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
INTERRUPTED, OUTPUT_CLOSED, TERMINATED = 130, 141, 143  # 128 + SIGINT, SIGPIPE, SIGTERM, as shells report them


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. Errors that people can fix are a sentence, without a traceback."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parse(words)
    try:
        return _run(arguments, argv)
    except SettingsError as error:
        for problem in error.problems:
            print(f"wakegate: {problem}", file=sys.stderr)
        return START_FAILED
    except WakegateError as error:
        print(f"wakegate: {error}", file=sys.stderr)
        return START_FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has exited, as in `wakegate doctor | head -1`
        # The interpreter flushes stdout at exit, which would print another BrokenPipeError.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    except OSError as error:
        if error.errno not in _DISK_ERRORS:  # a bug deserves its traceback, a full disk does not
            raise
        where = error.filename or "the state directory"
        print(
            f"wakegate: {where}: {error.strerror}; free space there, mount it read-write, or name another folder with"
            " --state-dir (WAKEGATE_STATE_DIR)",
            file=sys.stderr,
        )
        return START_FAILED


def _run(arguments: argparse.Namespace, argv: Sequence[str] | None) -> int:
    """Run one command. Raises what `main` turns into an exit status."""
    if arguments.command == "replay":
        from gateway.autoscaler.replay import cli as laboratory

        return laboratory.run(arguments)
    settings = load(vars(arguments), os.environ)
    logs.configure(settings.log_level, "json" if settings.log_format == "json" else "console")
    if arguments.command == "audit":
        return _audit(arguments, settings)
    # For each command: the doctor must report what `serve` would refuse.
    if settings.workers > 1:
        supervisor.check(settings)
    match arguments.command:
        case "doctor":
            return uvloop.run(_examine(settings, as_json=arguments.json))
        case "prune":
            return uvloop.run(_prune(settings))
        case "uninstall":
            from gateway.cli.upkeep import uninstall

            print("\n".join(uninstall(settings, confirmed=arguments.yes)))
            return 0
    if arguments.as_worker:
        return uvloop.run(_until_terminated(_serve_as_worker(settings, arguments.as_worker)))
    if settings.workers > 1:
        # Workers are started like this process: by the console script, or by -m from a checkout.
        started = sys.orig_argv[1:] if argv is None else ("-m", "gateway", *argv)
        return uvloop.run(supervisor.supervise(settings, [sys.executable, *started]))
    return uvloop.run(_until_terminated(_serve(settings)))


def _audit(arguments: argparse.Namespace, settings: Settings) -> int:
    from gateway.cli.audit import show_key, verify_files

    if arguments.verb == "key":
        print(show_key(settings.state_dir))
        return 0
    lines, status = verify_files(arguments, settings.state_dir)
    print("\n".join(lines))
    return status


async def _examine(settings: Settings, *, as_json: bool) -> int:
    from gateway.doctor import examine, exit_status

    findings = []
    async for finding in examine(settings):
        print(orjson.dumps(finding.as_dict()).decode() if as_json else finding, flush=True)
        findings.append(finding)
    return exit_status(findings)


async def _prune(settings: Settings) -> int:
    from gateway.cli.upkeep import prune

    async for line in prune(settings):
        print(line, flush=True)
    return 0


async def _check_start(settings: Settings) -> None:
    """Find now what would otherwise fail the first hibernation or call. Raises SettingsError for fatal findings."""
    from gateway.doctor import startup_findings

    problems = []
    async for finding in startup_findings(settings):
        if finding.status == "fail":
            problems.append(f"{finding.what}: {finding.detail}; {finding.fix}")
        elif finding.status == "warn":
            logger.warning("%s: %s; %s", finding.what, finding.detail, finding.fix)
    if problems:
        raise SettingsError(problems)


async def _until_terminated(work: Coroutine[Any, Any, int]) -> int:
    """Run it; SIGTERM undoes a start that is under way. Once it serves, the signal is serving/server.py's."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return TERMINATED


async def _serve(settings: Settings) -> int:
    with without_rich():  # slow nevertheless, so only after the settings were checked
        from gateway.build import build
        from gateway.serving.server import serving

    gateway = await build(settings)
    await _check_start(settings)  # after `build`, whose errors name the setting; before anything listens
    async with serving(gateway) as (url, ended):
        print(banner_of(gateway, url, settings), flush=True)
        await ended
    return 0


async def _serve_as_worker(settings: Settings, number: int) -> int:
    supervisor.end_with_supervisor(settings.drain_timeout)
    bind_contextvars(worker=number)  # all workers log to the same stderr
    with without_rich():
        from gateway.build import build
        from gateway.serving.server import serving

    sockets = supervisor.sockets_of(settings, number)
    gateway = await build(supervisor.settings_of(settings, number))
    async with serving(gateway, sockets) as (url, ended):
        print(banner_of(gateway, url, settings), end=supervisor.READY.decode(), flush=True)
        await ended
    return 0

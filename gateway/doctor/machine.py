"""Checks of this machine for the local engine: port, runtimes, isolation, a sandbox, user code's Python, disk."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.build import interpreter_of, local_provider, runtimes_of
from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError, WakegateError
from gateway.core.model import Kind, PoolSpec, Runtime, SessionId
from gateway.core.settings import Settings
from gateway.core.units import readable_size
from gateway.doctor.finding import Finding
from gateway.serving.sockets import listen

if TYPE_CHECKING:
    from gateway.provider.local import LocalProvider

MIN_DESCRIPTORS = 4096  # each request takes two, a client's connection and one to the sandbox; each sandbox about ten
INTERPRETER_TIMEOUT_S = 30.0
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts")
# Fonts that plots with CJK text or emoji need: (part of a font file's name, Debian package).
FONTS = {"CJK": ("cjk", "fonts-noto-cjk"), "emoji": ("emoji", "fonts-noto-color-emoji")}


def check_port(settings: Settings) -> Finding:
    """Check that the gateway can listen on its host and port."""
    try:
        listen(settings.host, settings.port).close()  # as `serve` does it, so that it fails for the same reasons
    except SettingsError as error:
        return Finding("port", str(error), "end what listens there, or choose another with --port (WAKEGATE_PORT)")
    return Finding("port", f"{settings.host} port {settings.port or '(a free one)'} is free")


async def check_machine(settings: Settings) -> AsyncIterator[Finding]:
    """Check everything that `wakegate serve` uses of this machine, including the start of one sandbox."""
    problems: list[str] = []
    runtimes = runtimes_of(settings, problems)
    for problem in problems:
        yield Finding("runtimes", problem, "correct that manifest or flag")
    if not problems:
        yield Finding("runtimes", f"{len(runtimes)}: {', '.join(str(runtime.key) for runtime in runtimes)}")
    async for finding in check_interpreter(settings):
        yield finding
    async for finding in check_sandboxes(settings, runtimes):
        yield finding
    yield check_disk(settings)
    yield check_descriptors()
    yield check_fonts()


async def check_sandboxes(settings: Settings, runtimes: Sequence[Runtime]) -> AsyncIterator[Finding]:
    """Check isolation and limits, as the start banner lists them, and start and end one sandbox."""
    # In a temporary folder: a running gateway may hold the lock of the state directory.
    with tempfile.TemporaryDirectory(prefix="wakegate-doctor-") as folder:
        provider, _ = local_provider(replace(settings, state_dir=Path(folder)), SystemClock())
        try:
            await provider.start()
        except SettingsError as error:
            yield Finding("isolation", str(error), "follow that advice, then run the doctor again")
            return
        try:
            for line in provider.report.summary().splitlines():
                what, _, detail = line.partition(": ")
                fix = "see docs/hibernation.md, Isolation" if what == "warning" else ""
                yield Finding("isolation" if fix else what, detail, fix, fatal=False)
            interpreters = [runtime for runtime in runtimes if runtime.key.kind is Kind.CODE_INTERPRETER]
            if interpreters:
                yield await _start_one(provider, replace(interpreters[0], pool=PoolSpec()))
        finally:
            await provider.aclose()


async def _start_one(provider: LocalProvider, runtime: Runtime) -> Finding:
    await provider.apply([runtime])
    # Without a warm pool, so that it is a cold start: the one that every session pays when the pool is empty.
    began = time.perf_counter()
    try:
        sandbox = await provider.claim(runtime.key, SessionId("doctor"))
    except WakegateError as error:
        return Finding("sandbox", str(error), "run again with --log-level debug to see the sandbox's own output")
    took = (time.perf_counter() - began) * 1e3
    await provider.release(sandbox.id)
    return Finding("sandbox", f"starts and answers (cold start {took:.0f} ms)")


_PROBE = """
import importlib.util, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name.partition('.')[0]) is None]
print(sys.version.split()[0], *missing)
"""


async def check_interpreter(settings: Settings) -> AsyncIterator[Finding]:
    """Check that user code's Python has the packages that code contexts and `--preload` need."""
    problems: list[str] = []
    folder = interpreter_of(settings, problems)
    for problem in problems:
        yield Finding("sandbox python", problem, "name another with --sandbox-python (WAKEGATE_SANDBOX_PYTHON)")
    if problems:
        return
    program = "python3" if folder is None else str(folder / "bin" / "python3")
    preload = [name.strip() for name in settings.preload.split(",") if name.strip()]
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [program, "-c", _PROBE, "ipykernel", *preload],  # found, not imported: pandas alone takes half a second
            capture_output=True,
            text=True,
            timeout=INTERPRETER_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("sandbox python", f"{program}: {error}", "name another with --sandbox-python", fatal=False)
        return
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        yield Finding("sandbox python", f"{program}: {last}", "name another with --sandbox-python", fatal=False)
        return
    version, *missing = done.stdout.split()
    where = program if folder is not None else f"{program}, the system's"
    yield Finding("sandbox python", f"{where}, Python {version}")
    if "ipykernel" in missing:
        fix = f"{program} -m pip install ipykernel; without it /api/run_code and run_python answer an error"
        yield Finding("code contexts", "the sandbox's Python has no ipykernel", fix, fatal=False)
    if lacking := [name for name in preload if name.partition(".")[0] in missing]:
        fix = f"{program} -m pip install {' '.join(lacking)}, or take it out of --preload (WAKEGATE_PRELOAD)"
        yield Finding("preload", f"the sandbox's Python has no {', '.join(lacking)}", fix, fatal=False)


def check_disk(settings: Settings) -> Finding:
    """Check the free space for workspaces against the reserve."""
    # Warned of at twice the reserve: below the reserve itself sandboxes are already being ended.
    free = shutil.disk_usage(settings.state_dir).free
    shown = f"{readable_size(free)} free in {settings.state_dir}"
    if settings.disk_reserve and free < 2 * settings.disk_reserve:
        reserve = readable_size(settings.disk_reserve)
        fix = f"free space, or lower --disk-reserve ({reserve}): below it the sandbox that fills the disk is ended"
        return Finding("disk", shown, fix, fatal=free < settings.disk_reserve)
    return Finding("disk", shown)


def check_descriptors() -> Finding:
    """Check the limit of open files and sockets."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_DESCRIPTORS:
        return Finding("descriptors", f"{soft} at most", f"ulimit -n {4 * MIN_DESCRIPTORS}", fatal=False)
    return Finding("descriptors", f"{soft} at most")


def check_fonts() -> Finding:
    """Check for CJK and emoji fonts: sandboxes see the system's, and plots without them show boxes."""
    names = " ".join(name.lower() for top in FONT_FOLDERS for _, _, files in os.walk(top) for name in files)
    missing = {what: package for what, (part, package) in FONTS.items() if part not in names}
    if missing:
        fix = f"apt-get install {' '.join(missing.values())} (or your system's packages); plots show boxes without"
        return Finding("fonts", f"none for {' and '.join(missing)}", fix, fatal=False)
    return Finding("fonts", "CJK and emoji are there")

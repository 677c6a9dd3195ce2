"""`wakegate doctor`: checks everything that a gateway with these settings needs, and says how to fix it.

Imports `build` and the packages below it. Start with `examine`: each check yields findings, one line each, and a check
that fails does not stop the others. `startup_findings` are the checks that `wakegate serve` makes as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.core.settings import Settings
from gateway.doctor.access import check_access
from gateway.doctor.certificates import check_certificates
from gateway.doctor.finding import Finding, exit_status
from gateway.doctor.images import check_images
from gateway.doctor.machine import check_interpreter, check_machine, check_port
from gateway.doctor.storage import check_hibernated, check_snapshots, check_state_dir, check_store

__all__ = ["Finding", "examine", "exit_status", "startup_findings"]


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Run every check and yield its findings as they are made."""
    # From what all others need to what is slow: whoever reads along sees the likely cause first.
    found = await check_state_dir(settings)
    yield found
    if found.detail.startswith("--state-dir"):  # it cannot be had, and the others would be made in it
        return
    yield await check_store(settings)
    yield await check_snapshots(settings)
    async for finding in check_hibernated(settings):
        yield finding
    yield check_port(settings)
    for found in check_certificates(settings):
        yield found
    async for finding in check_access(settings):
        yield finding
    if settings.engine == "kubernetes":
        from gateway.doctor.cluster import check_cluster  # its client is slow to load, and not needed for the others

        async for finding in check_images(settings):
            yield finding
        async for finding in check_cluster(settings):
            yield finding
    else:
        async for finding in check_machine(settings):
            yield finding


async def startup_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Checks of what would otherwise fail at the first hibernation or the first call of code."""
    if settings.snapshots:
        yield await check_snapshots(settings)
    if settings.engine == "local":
        async for finding in check_interpreter(settings):
            yield finding

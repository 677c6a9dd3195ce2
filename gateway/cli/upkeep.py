"""`wakegate prune` and `wakegate uninstall`: the state directory of the local engine, tidied or deleted."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.build import build
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.core.units import readable_size


async def prune(settings: Settings) -> AsyncIterator[str]:
    """Tidy up, and report line by line. Raises SettingsError where a gateway runs on the state directory.

    A workspace that no record names is deleted only once it is as old as a hibernated session may get: the record may
    have been lost with a store that came back empty, and then the workspace is all there is of its session.
    """
    if settings.engine != "local":
        raise SettingsError(["wakegate prune is for the local engine; in a cluster the gateways tidy up by themselves"])
    before = _size_of(settings.state_dir)
    gateway = await build(settings)
    await gateway.store.start()
    try:
        await gateway.provider.start()  # ends the processes and control groups of a gateway that was killed
        try:
            await gateway.sessions.recovery.recover_all()  # and what they left goes to the sessions that it belongs to
            limit = gateway.clock.now() - settings.terminated_retention
            ended = [session.id async for session in gateway.store.terminated(limit)]
            for session_id in ended:
                await gateway.store.delete(session_id)
            yield f"deleted {len(ended)} records of ended sessions"
            known = gateway.sessions.sweeper.kept_references
            orphans = await gateway.keeper.delete_orphans(known, settings.hibernated_retention)
            yield f"deleted {orphans} workspaces that no record names"
        finally:
            await gateway.provider.aclose()
    finally:
        await gateway.store.aclose()
    freed = max(before - _size_of(settings.state_dir), 0)
    yield f"freed {readable_size(freed)} in {settings.state_dir}"


def uninstall(settings: Settings, *, confirmed: bool) -> list[str]:
    """Delete the state directory; lines that report what was, or would be. Raises SettingsError if a gateway runs."""
    from gateway.provider.local.safe_delete import delete_children
    from gateway.provider.local.state_dir import StateDir

    state = settings.state_dir
    if not state.exists():
        return [f"{state} does not exist; nothing to delete"]
    if not (state / "owner").exists():
        raise SettingsError(
            [f"{state} is no state directory of a gateway: it has no file `owner`; nothing was deleted"]
        )
    StateDir.open(state).close()  # no gateway runs on it
    what = f"{state} ({readable_size(_size_of(state))}: sessions, records, keys)"
    if not confirmed:
        return [f"would delete {what}", "add --yes to do it"]
    delete_children(str(state))
    shutil.rmtree(state)
    report = [f"deleted {what}"]
    if settings.snapshots:
        report.append(f"left: snapshots in {settings.snapshots}")
    if settings.store:
        report.append("left: records in the session store that --store names")
    report.append(f"left: {Path(__file__).resolve().parents[2]} with its environments; delete that folder as well")
    return report


def _size_of(folder: Path) -> int:
    """Bytes of disk that it takes, without following links."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            pass  # it went away meanwhile
    return total

"""`wakegate prune` and `wakegate uninstall`: clean up or delete the state directory of the local engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.build import build
from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.core.settings.state_dir import OWNER, foreign_names
from gateway.core.units import readable_size


async def prune(settings: Settings) -> AsyncIterator[str]:
    """Clean up, and report line by line. Raises SettingsError if a gateway runs on the state directory.

    An orphaned workspace is deleted only at the age at which a hibernated session expires: its record may have been
    lost with the store, and the workspace is then all that is left of the session.
    """
    if settings.engine != "local":
        raise SettingsError(["wakegate prune is for the local engine; in a cluster the gateways tidy up by themselves"])
    if not settings.state_dir.exists():
        yield f"{settings.state_dir} does not exist; nothing to clean up"
        return
    _require_ours(settings.state_dir, "nothing was changed")
    before = _size_of(settings.state_dir)
    gateway = await build(settings)
    await gateway.store.start()
    try:
        await gateway.provider.start()  # ends the processes and control groups of a gateway that was killed
        try:
            await gateway.sessions.recovery.recover_all()  # so that records name the workspaces that are still needed
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
    """Delete the state directory if `confirmed`. Returns the lines to print. Raises SettingsError if a gateway runs."""
    from gateway.provider.local.safe_delete import delete_children
    from gateway.provider.local.state_dir import StateDir

    state = settings.state_dir
    if not state.exists():
        return [f"{state} does not exist; nothing to delete"]
    # `--state-dir ~` must not delete a home folder, not even one that a gateway has been started on.
    _require_ours(state, "nothing was deleted")
    if names := foreign_names(state):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise SettingsError(
            [f"{state} has more in it than a gateway makes: {shown}; move that away first; nothing was deleted"]
        )
    StateDir.open(state).close()  # raises if a gateway holds the lock
    what = f"{state} ({readable_size(_size_of(state))}: sessions, records, keys)"
    if not confirmed:
        return [f"would delete {what}", "add --yes to do it"]
    # Workspaces may be nested deeper than rmtree can recurse; what is left then is ours, and flat.
    delete_children(str(state))
    shutil.rmtree(state)
    report = [f"deleted {what}"]
    if settings.snapshots:
        report.append(f"left: snapshots in {settings.snapshots}")
    if settings.store:
        report.append("left: records in the session store that --store names")
    report.append(f"left: {Path(__file__).resolve().parents[2]} with its environments; delete that folder as well")
    return report


def _require_ours(state: Path, otherwise: str) -> None:
    if not (state / OWNER).is_file():
        raise SettingsError([f"{state} is not a gateway's state directory: it has no file `{OWNER}`; {otherwise}"])


def _size_of(folder: Path) -> int:
    """The disk space that a folder uses, in bytes, without following links."""
    total = 0
    # os.walk leaves out folders that cannot be read, or were deleted since they were listed.
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                pass  # deleted since the listing
    return total

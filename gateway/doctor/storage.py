"""Checks of what a gateway stores: session records, snapshots, and whether hibernated sessions can wake."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import quote

from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError, SnapshotNotFoundError, WakegateError
from gateway.core.model import SessionId, SnapshotRef, is_snapshot
from gateway.core.settings import Settings, make_state_dir, probe_state_dir
from gateway.doctor.finding import Finding
from gateway.sessions.restorability import restore_problems
from gateway.snapshots import make_snapshot_store
from gateway.snapshots.keys import SnapshotKeys
from gateway.store import make_store


async def check_store(settings: Settings) -> Finding:
    """Check that the session store accepts a write, and for settings that can lose records."""
    url = _store_url(settings)
    try:
        store = make_store(url, SystemClock(), prefix=settings.store_prefix)
        began = time.perf_counter()
        await store.start()
        try:
            await store.ping()  # a write: a replica, or a server that is full, answers reads
            warnings = await store.warnings()
        finally:
            await store.aclose()
    except WakegateError as error:
        return Finding("session store", str(error), "check --store (WAKEGATE_STORE): address, password, network policy")
    took = (time.perf_counter() - began) * 1e3
    if settings.engine == "kubernetes" and url.startswith("sqlite"):
        return Finding(
            "session store", "sqlite, on this machine only",
            "with more than one gateway set WAKEGATE_STORE=redis://...", fatal=False,
        )  # fmt: skip
    if warnings:
        return Finding("session store", "takes a write", " ".join(warnings), fatal=False)
    return Finding("session store", f"takes a write ({took:.0f} ms)")


async def check_state_dir(settings: Settings) -> Finding:
    """Check that the state directory accepts a write."""
    try:
        make_state_dir(settings.state_dir)
    except SettingsError as error:
        return Finding("state directory", str(error), "name another with --state-dir (WAKEGATE_STATE_DIR)")
    problem = probe_state_dir(settings.state_dir)
    fix = "free space there, mount it read-write, or name another with --state-dir (WAKEGATE_STATE_DIR)"
    return Finding("state directory", problem or "takes a write", fix if problem else "")


def _store_url(settings: Settings) -> str:
    return settings.store or f"sqlite:///{quote(str((settings.state_dir / 'wakegate.db').absolute()))[1:]}"


async def check_snapshots(settings: Settings) -> Finding:
    """Put, read and delete a small snapshot."""
    if not settings.snapshots and settings.engine == "local":
        return Finding("snapshots", "none needed: workspaces are parked in the state folder")
    url = settings.snapshots or str(settings.state_dir / "snapshots")
    try:
        keys = SnapshotKeys.read(settings.snapshot_key_file) if settings.snapshot_key_file != Path() else None
        store = make_snapshot_store(url, keys=keys)
        reference = await store.put(SessionId("doctor"), _probe())
        # Written, read and deleted: rights to each are granted apart in object stores.
        read = b"".join([piece async for piece in store.get(reference)])
        await store.delete(reference.key)
    except (WakegateError, OSError) as error:
        fix = "check --snapshots (WAKEGATE_SNAPSHOTS): the folder's owner, or the bucket's name, region and rights"
        return Finding("snapshots", str(error), fix)
    if read != b"wakegate":
        return Finding("snapshots", "the bytes read differ from those written", f"do not use {url}")
    if settings.engine == "kubernetes" and not settings.snapshots:
        return Finding(
            "snapshots", "in the state folder, which ends with the pod",
            "set WAKEGATE_SNAPSHOTS to an object store, or to a folder on a volume", fatal=False,
        )  # fmt: skip
    return Finding("snapshots", "can be put, read and deleted")


async def check_hibernated(settings: Settings) -> AsyncIterator[Finding]:
    """Check that hibernated sessions can wake with these settings, by the head of each one's snapshot."""
    what = "hibernated sessions"
    try:
        snapshots = None
        if settings.snapshots or settings.engine != "local":
            keys = SnapshotKeys.read(settings.snapshot_key_file) if settings.snapshot_key_file != Path() else None
            snapshots = make_snapshot_store(settings.snapshots or str(settings.state_dir / "snapshots"), keys=keys)
        store = make_store(_store_url(settings), SystemClock(), prefix=settings.store_prefix)
        await store.start()
    except WakegateError:
        return  # reported once, by the checks of the store and of snapshots

    async def check(reference: str) -> None:
        if not is_snapshot(reference):
            return  # only the engine knows what is parked; the gateway checks it at its start
        if snapshots is None:
            raise SnapshotNotFoundError("its workspace is a snapshot, and no --snapshots (WAKEGATE_SNAPSHOTS) is set")
        async with aclosing(snapshots.get(SnapshotRef(reference))) as pieces:
            await anext(pieces, b"")

    try:
        async for problem in restore_problems(store, check, ""):
            fix = "set --snapshots and --snapshot-key-file as they were when its workspace was kept"
            yield Finding(what, problem, fix, fatal=False)
    except WakegateError as error:
        yield Finding(what, str(error), "the session store could not be read; run this again", fatal=False)
    finally:
        await store.aclose()


async def _probe() -> AsyncIterator[bytes]:
    yield b"wakegate"

"""What is particular to the sqlite store: its file, its processes, its plans."""

from __future__ import annotations

import asyncio
import fcntl
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.core.errors import StoreUnavailableError
from gateway.core.model import RuntimeKey, SessionId, SessionState
from gateway.store import sqlite_pages
from gateway.store import sqlite_sweeps as statements
from gateway.store.sqlite import SqliteStore
from gateway.store.sqlite_file import SCHEMA_VERSION
from gateway.testing import ManualClock
from tests.support.records import RUNTIME, T0, session

ROOT = Path(__file__).parents[2]
WORKER = [sys.executable, "-m", "tests.support.sqlite_worker"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(path, ManualClock(T0))
    await made.start()
    yield made
    await made.aclose()


async def refusal(path: Path) -> str:
    """What a store says that cannot be opened."""
    with pytest.raises(StoreUnavailableError) as caught:
        await SqliteStore(path, ManualClock(T0)).start()
    return str(caught.value)


async def test_records_survive_a_restart(path: Path) -> None:
    """What one life wrote, touched and held, the next one reads."""
    clock = ManualClock(T0)
    first = SqliteStore(path, clock)
    await first.start()
    stored = await first.put(session())
    await first.touch_many({stored.id: T0 + 5})
    lease = await first.acquire_lease("leader", "a", 60)
    await first.aclose()

    second = SqliteStore(path, clock)
    await second.start()
    found = await second.get(stored.id)
    assert found is not None
    assert (found.version, found.last_active_at) == (1, T0 + 5)
    assert await second.acquire_lease("leader", "b", 60) is None
    assert await second.acquire_lease("leader", "a", 60) == lease
    await second.aclose()


async def test_file_is_for_its_owner_only(store: SqliteStore, path: Path) -> None:
    """A session's id is the right to use it: no file of the store may be read by others."""
    await store.put(session())

    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {
        "sessions.db": 0o600,
        "sessions.db-wal": 0o600,
        "sessions.db-shm": 0o600,
        "sessions.db-lock": 0o600,
    }


async def test_writes_that_wait_share_a_transaction(store: SqliteStore, path: Path) -> None:
    """A hundred puts handed in at once cost far fewer commits than a hundred."""
    with sqlite3.connect(path) as other:
        before = other.execute("PRAGMA data_version").fetchone()[0]
        assert before is not None
        # Keep the writer busy waiting for our lock, so that the hundred are all in its queue when it comes round.
        other.execute("BEGIN IMMEDIATE")
        first = asyncio.create_task(store.put(session("first")))
        await asyncio.sleep(0)
        rest = [asyncio.create_task(store.put(session(f"s{n:03}"))) for n in range(100)]
        await asyncio.sleep(0)
        other.rollback()
        await asyncio.gather(first, *rest)
    other.close()

    wal = (path.parent / "sessions.db-wal").read_bytes()
    # A frame's header (24 bytes before each page) holds the database size in pages if it ends a commit, else 0.
    page = int.from_bytes(wal[8:12], "big")
    salt = wal[16:24]
    frames = [wal[at : at + 24] for at in range(32, len(wal), page + 24)]
    commits = sum(1 for frame in frames if frame[4:8] != bytes(4) and frame[8:16] == salt)
    assert 1 <= commits <= 5


async def test_no_query_scans(store: SqliteStore, path: Path) -> None:
    """Each sweep and listing walks its own index in its own order: no scan, no sorting."""
    db = sqlite3.connect(path)
    plans = {}
    for name in ("IDLE", "EXPIRED", "TERMINATED"):
        statement: str = getattr(statements, name)
        plans[name] = db.execute(f"EXPLAIN QUERY PLAN {statement}", (T0, T0, "", 10)).fetchall()
    for state in (None, SessionState.ACTIVE):
        for runtime in (None, RUNTIME):
            statement, arguments = statements.listing(state=state, runtime=runtime)
            plans[f"{state} {runtime}"] = db.execute(f"EXPLAIN QUERY PLAN {statement}", (*arguments, "", 10)).fetchall()
    db.close()

    steps = {name: [row[3] for row in plan] for name, plan in plans.items()}
    indices = ("idle", "expiry", "terminated", "autoindex_sessions_1", "by_runtime", "by_state", "by_state_and_runtime")
    for (name, plan), index in zip(steps.items(), indices, strict=True):
        assert len(plan) == 1, (name, plan)
        assert plan[0].startswith("SEARCH sessions USING INDEX"), (name, plan)
        assert f"{index} (" in plan[0], (name, plan)


async def test_no_list_by_age_scans(store: SqliteStore, path: Path) -> None:
    """Each of the eight lists walks an index in its own order, or backwards."""
    db = sqlite3.connect(path)
    for tenant in (None, "acme"):
        for ended in (True, False):
            for newest_first in (True, False):
                statement, arguments = sqlite_pages.statement(tenant=tenant, ended=ended, newest_first=newest_first)
                plan = db.execute(f"EXPLAIN QUERY PLAN {statement}", (*arguments, T0, "x", 10)).fetchall()
                assert [row[3].partition(" (")[0] for row in plan] == [plan[0][3].partition(" (")[0]]
                assert plan[0][3].startswith("SEARCH sessions USING INDEX")
    db.close()


async def test_rows_of_an_older_file_are_listed_by_age(path: Path) -> None:
    """Neither columns nor indexes are there; and rows that an older Wakegate adds later have empty columns."""
    for old in ("file", "row"):
        store = SqliteStore(path, ManualClock(T0))
        await store.start()
        await store.put(session(old, tenant="acme", created_at=T0 + len(old)))
        await store.aclose()
        db = sqlite3.connect(path)
        if old == "file":
            found = db.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql LIKE '%created_at%'")
            for (index,) in found.fetchall():
                db.execute(f"DROP INDEX {index}")
            db.execute("DROP INDEX sessions_without_place")
            for column in ("tenant", "created_at"):
                db.execute(f"ALTER TABLE sessions DROP COLUMN {column}")
        else:
            db.execute("UPDATE sessions SET tenant = NULL, created_at = NULL WHERE id = 'row'")
        db.commit()
        db.close()
    store = SqliteStore(path, ManualClock(T0))
    await store.start()
    assert [each.id async for each in store.by_age(tenant="acme")] == ["file", "row"]
    await store.aclose()


async def test_old_claims_are_cleared_from_the_file(path: Path) -> None:
    """History past its horizon takes no room, also of runtimes that nobody claims any more."""
    clock = ManualClock(T0)
    store = SqliteStore(path, clock)
    await store.start()
    await store.record_claims(RUNTIME, {int(T0) - n: 1 for n in range(1200)})
    clock.advance(15 * 86400)
    other = RuntimeKey("default", "other")
    for _ in range(3):
        await store.record_claims(other, {int(clock.now()): 1})
    await store.aclose()

    with sqlite3.connect(path) as db:
        assert db.execute("SELECT DISTINCT runtime FROM claims").fetchall() == [(str(other),)]
    db.close()


async def test_old_leases_are_cleared_from_the_file(path: Path) -> None:
    """Each session has had a lease; those that ended long ago do not pile up."""
    clock = ManualClock(T0)
    store = SqliteStore(path, clock)
    await store.start()
    for n in range(50):
        await store.acquire_lease(f"session:{n}", "a", 10)
    clock.advance(2 * 86400)
    await store.acquire_lease("leader", "a", 10)
    await store.aclose()

    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM leases").fetchall() == [("leader",)]
    db.close()


# Files that cannot be used


async def test_newer_file_is_refused(store: SqliteStore, path: Path) -> None:
    """A downgrade is told before it can do harm."""
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()

    assert "newer Wakegate" in await refusal(path)


async def test_another_programs_database_is_refused(path: Path) -> None:
    """The error says so, and the file is not changed."""
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()

    assert "another program's" in await refusal(path)
    assert path.read_bytes() == before


async def test_file_that_is_no_database_is_refused(path: Path) -> None:
    """With its path and what to do about it."""
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to look like one" * 100)

    text = await refusal(path)
    assert str(path) in text
    assert "is damaged" in text
    assert "backup" in text


async def test_damaged_file_is_refused(store: SqliteStore, path: Path) -> None:
    """Pages overwritten in the middle are noticed at the start, not by the session that lies there."""
    await asyncio.gather(*(store.put(session(f"s{n:04}", reason="x" * 500)) for n in range(300)))
    await store.aclose()
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 3, len(content) // 3 * 2):
        content[at] = 0x5A
    path.write_bytes(content)

    assert "is damaged" in await refusal(path)


async def test_damage_found_later_is_reported_as_damage(store: SqliteStore, path: Path) -> None:
    """A record that is none is the store's failure, never a traceback of the codec."""
    await store.put(session())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE sessions SET record = X'7B7D'")
    db.close()

    with pytest.raises(StoreUnavailableError, match="is damaged"):
        await store.get(SessionId("s1"))


async def test_unreachable_path_is_reported(tmp_path: Path) -> None:
    """A file where the folder should be, a folder where the file should be."""
    (tmp_path / "file").write_text("")
    assert "file/sessions.db: File exists; check the folder" in await refusal(tmp_path / "file" / "sessions.db")
    (tmp_path / "folder").mkdir()
    assert "folder: unable to open database file; check" in await refusal(tmp_path / "folder")


async def test_locked_file_is_reported(store: SqliteStore, path: Path) -> None:
    """Another process that never lets go: an error after the busy timeout, and all is well once it did."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        await store.put(session())
    db.execute("ROLLBACK")
    db.close()

    assert (await store.put(session())).version == 1


# Other processes


@pytest.mark.processes
async def test_killed_writer_loses_no_answered_write(path: Path) -> None:
    """kill -9 at random points, over and over on one file: every answered write is there, and the file is sound."""
    dice = random.Random(7)
    answered: dict[str, int] = {}
    for life in range(10):
        worker = await asyncio.create_subprocess_exec(
            *WORKER, "write", str(path), f"w{life}", stdout=subprocess.PIPE, cwd=ROOT
        )
        assert worker.stdout is not None
        for _ in range(dice.randint(1, 400)):
            line = await worker.stdout.readline()
            assert line, "the worker ended by itself"
            if line != b"open\n":
                name, version = line.split()
                answered[name.decode()] = int(version)
        worker.kill()
        rest, _ = await worker.communicate()
        for line in rest.splitlines(keepends=True):
            if line.endswith(b"\n"):
                name, version = line.split()
                answered[name.decode()] = int(version)

    store = SqliteStore(path, ManualClock(T0))
    await store.start()  # checks the file's integrity as well
    found = {each.id: each.version async for each in store.sessions(limit=10**6)}
    listed = {each.id async for each in store.idle(T0 * 2)}
    await store.aclose()

    assert len(answered) > 100
    assert {name: version for name, version in answered.items() if found.get(SessionId(name), 0) < version} == {}
    assert listed == set(found)


@pytest.mark.processes
async def test_two_processes_share_one_file(path: Path) -> None:
    """Three gateways on one file raise one record's counter against each other: no increment is lost."""
    seeding = SqliteStore(path, ManualClock(T0))
    await seeding.start()
    await seeding.put(session("shared", metadata={"n": "0"}))
    await seeding.aclose()
    workers = [
        await asyncio.create_subprocess_exec(
            *WORKER, "race", str(path), "shared", "60", stdout=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(3)
    ]
    outputs = [await worker.communicate() for worker in workers]
    assert [output[0] for output in outputs] == [b"open\ndone\n"] * 3

    await seeding.start()
    found = await seeding.get(SessionId("shared"))
    await seeding.aclose()
    assert found is not None
    assert (found.metadata["n"], found.version) == ("180", 181)


async def test_stores_that_start_at_once_agree_on_the_file(path: Path) -> None:
    """Whoever creates it, all find it whole: ten stores, each with a thread of its own."""
    for attempt in range(10):
        file = path.with_name(f"{attempt}.db")
        stores = [SqliteStore(file, ManualClock(T0)) for _ in range(10)]
        await asyncio.gather(*(store.start() for store in stores))
        await asyncio.gather(*(store.put(session(f"s{n}")) for n, store in enumerate(stores)))
        assert len([each async for each in stores[0].sessions()]) == 10
        await asyncio.gather(*(store.aclose() for store in stores))


async def test_store_waits_while_another_process_opens_the_file(path: Path) -> None:
    """Two at once would both turn a new file to write-ahead logging, and sqlite would tell one that it is locked."""
    path.parent.mkdir()
    store = SqliteStore(path, ManualClock(T0))
    with open(f"{path}-lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        opening = asyncio.create_task(store.start())
        _, waiting = await asyncio.wait({opening}, timeout=0.3)
        assert waiting == {opening}
    await opening
    await store.ping()
    await store.aclose()


async def test_full_disk_is_an_error_until_there_is_space(tmp_path: Path) -> None:
    """On a real 1 MB disk: writes are refused with the reason, reads go on, and room brings writes back."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=1536k none "$1" && shift && exec "$@"'
    unshare = shutil.which("unshare")
    trial = [str(unshare), "-Urm", "sh", "-c", mount, "sh", str(disk)]
    if unshare is None or subprocess.run([*trial, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of their own (unshare -Urm)")
    worker = await asyncio.create_subprocess_exec(
        *trial, *WORKER, "fill", str(disk / "sessions.db"), stdout=subprocess.PIPE, cwd=ROOT
    )
    output, _ = await worker.communicate()

    opened, refused, reads, healed = output.decode().splitlines()
    assert opened == "open"
    assert "the disk is full; free space" in refused
    assert reads == "reads"
    _, answered, found = healed.split()
    assert int(found) == int(answered) + 1 > 10


async def test_file_that_was_removed_takes_no_record(store: SqliteStore, path: Path) -> None:
    """sqlite would go on writing into it, and each record end with the process; put back, it goes on."""
    await store.put(session("before"))
    away = path.with_name("away")
    path.rename(away)
    for write in (lambda: store.put(session("lost")), store.ping):
        with pytest.raises(StoreUnavailableError, match="was removed while this gateway ran"):
            await write()
    path.write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match="was replaced while"):
        await store.ping()
    away.rename(path)
    await store.put(session("after"))

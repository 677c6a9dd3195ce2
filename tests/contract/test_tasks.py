"""What every store promises about tasks: one suite over memory, sqlite and Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.errors import StaleWriteError
from gateway.core.interfaces import SessionStore
from gateway.core.tasks import NEVER, Added, OpenTasks, QueuedTask, TaskStore
from tests.support.records import T0

QUEUE = "acme/default/greeter"


@pytest.fixture
def tasks(store: SessionStore) -> TaskStore:
    """The tasks of that store."""
    return store.tasks


def task(name: str, due_at: float = T0, **changes: Any) -> QueuedTask:
    """An entry that is due."""
    fields = {"queue": QUEUE, "tenant": "acme", "created_at": T0, "value": {"n": 1}, "keys": ("agent",), **changes}
    return QueuedTask(name, due_at=due_at, **fields)


async def add(tasks: TaskStore, entry: QueuedTask, body: bytes = b"", open_: int = 10, bytes_: int = 1000) -> Added:
    return await tasks.add(entry, body, max_open=open_, max_bytes=bytes_)


async def got(tasks: TaskStore, name: str) -> QueuedTask:
    found = await tasks.get(name)
    assert found is not None
    return found


async def test_a_task_is_kept_as_it_was_added_once(tasks: TaskStore) -> None:
    """With its bytes, of whatever values; a second one of its id changes nothing."""
    entry = task("a", value={"text": "é\x00"}, keys=("agent", "session/ ü"), expires_at=T0 + 0.1)
    assert await tasks.get("a") is None
    assert await tasks.body("a") == await tasks.answer("a") == b""
    assert await add(tasks, entry, b"\x00\xff") is Added.ADDED
    assert await add(tasks, task("a"), b"other") is Added.EXISTS
    assert await tasks.get("a") == replace(entry, version=1)
    assert await tasks.body("a") == b"\x00\xff"


async def test_of_ten_writers_of_a_version_one_succeeds(tasks: TaskStore) -> None:
    """So a task is taken by one gateway; the answer is written with it, or not at all."""
    await add(tasks, task("a"))
    entry = await got(tasks, "a")

    async def write(n: int) -> int:
        try:
            await tasks.write(replace(entry, value={"n": n}), T0, answer=b"%d" % n)
        except StaleWriteError:
            return 0
        return n

    results = await asyncio.gather(*(write(n) for n in range(1, 11)))

    (first,) = [each for each in results if each]
    assert (await got(tasks, "a")).value == {"n": first}
    assert await tasks.answer("a") == b"%d" % first
    await tasks.delete("a")
    with pytest.raises(StaleWriteError):
        await tasks.write(replace(entry, version=2), T0)
    assert await tasks.get("a") is None


async def test_what_is_due_comes_in_its_order_page_by_page(tasks: TaskStore) -> None:
    """By time, then id; what is not due yet, or never, does not; other queues have their own."""
    for name, due_at in (("c", T0), ("a", T0 + 1), ("b", T0), ("late", T0 + 2), ("over", NEVER)):
        await add(tasks, task(name, due_at))
    await add(tasks, task("other", queue="acme/default/other", due_at=T0 + 5))
    assert await tasks.queues(T0 - 1) == []
    assert await tasks.queues(T0 + 1) == [QUEUE]
    assert await tasks.queues(T0 + 9) == [QUEUE, "acme/default/other"]
    assert [each.id for each in await tasks.due(QUEUE, T0 + 1)] == ["b", "c", "a"]
    first = await tasks.due(QUEUE, T0 + 1, limit=1)
    rest = await tasks.due(QUEUE, T0 + 1, after=(first[0].due_at, first[0].id), limit=1)
    assert [each.id for each in (*first, *rest)] == ["b", "c"]
    taken = await tasks.write(replace(await got(tasks, "b"), due_at=T0 + 30), T0)
    assert taken is not None
    assert [each.id for each in await tasks.due(QUEUE, T0 + 1)] == ["c", "a"]
    assert [each.id for each in await tasks.due(QUEUE, T0 + 30)] == ["c", "a", "late", "b"]


async def test_each_of_many_tasks_is_taken_once(tasks: TaskStore) -> None:
    """By takers that look and take at the same time: what one has taken is not due for the others."""
    for n in range(30):
        await add(tasks, task(f"t{n:02}"), open_=100)
    taken: list[str] = []

    async def taker(pause: int) -> None:
        for _ in range(pause):
            await tasks.get("t00")
        while due := await tasks.due(QUEUE, T0, limit=3):
            for entry in due:
                try:
                    if await tasks.write(replace(entry, due_at=T0 + 30, held=True), T0):
                        taken.append(entry.id)
                except StaleWriteError:
                    pass

    await asyncio.gather(*(taker(n) for n in range(8)))

    assert sorted(taken) == [f"t{n:02}" for n in range(30)]


async def test_a_queue_lists_the_newest_first(tasks: TaskStore) -> None:
    """Those of one moment by id, and pages follow each other without gap or repeat."""
    for n, name in enumerate("abcde"):
        await add(tasks, task(name, created_at=T0 + n // 2))
    seen: list[str] = []
    before = None
    while page := await tasks.newest(QUEUE, before=before, limit=2):
        seen += [each.id for each in page]
        before = (page[-1].created_at, page[-1].id)
    assert seen == ["e", "d", "c", "b", "a"]


async def test_a_write_adds_what_a_task_occupies(tasks: TaskStore) -> None:
    """From then on it holds that too, until it is over or deleted; what it does not hold it may leave out."""
    for name in "ab":
        await add(tasks, task(name, keys=("agent", "old")))
    first = await tasks.write(replace(await got(tasks, "a"), held=True, due_at=T0 + 30), T0)
    assert first is not None
    assert await tasks.write(replace(first, held=False, due_at=T0), T0) is not None
    for name in "ab":
        held = replace(await got(tasks, name), held=True, due_at=T0 + 30, keys=("agent", "session s"))
        assert await tasks.write(held, T0) is not None
        assert (await got(tasks, name)).keys == ("agent", "session s")
    assert [await tasks.held(key, T0) for key in ("agent", "old", "session s")] == [2, 0, 2]
    await add(tasks, task("c", keys=("session s",)))
    assert await tasks.write(await got(tasks, "c"), T0, limits={"session s": 2}) is None
    await tasks.delete("a")
    await tasks.write(replace(await got(tasks, "b"), held=False, due_at=NEVER, is_open=False), T0)
    assert [await tasks.held(key, T0) for key in ("agent", "session s")] == [0, 0]
    assert await tasks.write(await got(tasks, "c"), T0, limits={"session s": 1}) is not None


async def test_what_waits_longest_is_told_from_what_runs(tasks: TaskStore) -> None:
    """For an alert: one that has run for hours is no sign of trouble, one that waits as long is."""
    await add(tasks, replace(task("a"), created_at=T0))
    await add(tasks, replace(task("b"), created_at=T0 + 5))
    await tasks.write(replace(await got(tasks, "a"), held=True, due_at=T0 + 30, keys=("agent",)), T0)
    assert await tasks.open() == {QUEUE: OpenTasks(2, T0, T0 + 5)}
    await tasks.write(replace(await got(tasks, "b"), held=True, due_at=T0 + 30, keys=("agent",)), T0)
    assert await tasks.open() == {QUEUE: OpenTasks(2, T0, None)}


async def test_limits_of_open_tasks_and_of_bytes(tasks: TaskStore) -> None:
    """What is over no longer counts as open, but its bytes do until it is deleted."""
    assert await add(tasks, task("a"), b"1234", open_=2, bytes_=10) is Added.ADDED
    assert await add(tasks, task("b"), b"1234", open_=2, bytes_=10) is Added.ADDED
    assert await add(tasks, task("c"), b"", open_=2, bytes_=10) is Added.QUEUE_FULL
    assert await tasks.open() == {QUEUE: OpenTasks(2, T0, T0)}
    over = replace(await got(tasks, "a"), is_open=False, due_at=NEVER)
    assert await tasks.write(over, T0, answer=b"12")
    assert await tasks.open() == {QUEUE: OpenTasks(1, T0, T0)}
    assert await add(tasks, task("c"), b"1", open_=2, bytes_=10) is Added.TENANT_FULL
    assert await add(tasks, task("z", tenant="zeta", queue="zeta/q"), b"1", open_=2, bytes_=10) is Added.ADDED
    await tasks.delete("a")
    await tasks.delete("a")
    assert await add(tasks, task("c"), b"123456", open_=2, bytes_=10) is Added.ADDED


async def test_as_many_hold_a_key_as_may(tasks: TaskStore) -> None:
    """Of many that begin at once too; who gives it back, or lets its time pass, makes room."""
    names = [f"t{n}" for n in range(6)]
    for name in names:
        await add(tasks, task(name, keys=("agent", f"session-{name[-1]}")))

    async def begin(name: str) -> QueuedTask | None:
        entry = replace(await got(tasks, name), held=True, due_at=T0 + 30)
        return await tasks.write(entry, T0, limits={"agent": 2})

    begun = [each for each in await asyncio.gather(*map(begin, names)) if each is not None]
    assert len(begun) == 2
    assert await tasks.held("agent", T0) == 2
    assert await tasks.held("agent", T0 + 30) == 0
    waiting, last, *_ = (name for name in names if name not in {each.id for each in begun})
    assert await begin(waiting) is None
    longer = await tasks.write(replace(begun[0], due_at=T0 + 60), T0 + 1, limits={"agent": 2})  # its own does not count
    assert longer is not None
    assert await tasks.write(replace(begun[1], held=False, due_at=NEVER), T0 + 1)
    assert await begin(waiting) is not None
    late = replace(await got(tasks, last), held=True, due_at=T0 + 90)
    assert await tasks.write(late, T0 + 29, limits={"agent": 2}) is None
    assert await tasks.write(late, T0 + 31, limits={"agent": 2}) is not None


async def test_what_has_expired_is_deleted(tasks: TaskStore) -> None:
    """Not before; open tasks never are."""
    await add(tasks, task("a"), b"1")
    await add(tasks, task("b"), b"1")
    await tasks.write(replace(await got(tasks, "a"), is_open=False, due_at=NEVER, expires_at=T0 + 10), T0)
    assert await tasks.prune(T0 + 9) == 0
    assert await tasks.prune(T0 + 10) == 1
    assert await tasks.get("a") is None
    assert await tasks.body("a") == b""
    assert [each.id for each in await tasks.newest(QUEUE)] == ["b"]


async def test_a_name_stands_for_what_was_first(tasks: TaskStore) -> None:
    """Until it ends, or somebody says what it no longer stands for."""
    assert await tasks.bound("name", T0) == ""
    results = await asyncio.gather(*(tasks.bind("name", f"s{n}", T0 + 600, T0) for n in range(5)))
    assert len(set(results)) == 1
    first = results[0]
    assert await tasks.bind("name", "other", T0 + 600, T0) == first
    assert await tasks.bind("name", "other", T0 + 600, T0, instead_of="another") == first
    assert await tasks.bind("name", "other", T0 + 600, T0, instead_of=first) == "other"
    assert await tasks.bound("name", T0) == "other"
    await tasks.bind("short", "s", T0 + 0.01, T0)
    async with asyncio.timeout(30):
        while await tasks.bound("short", T0 + 1):  # Redis forgets it by its own clock
            await asyncio.sleep(0.01)

"""What is particular to the Redis store: a server that goes away, clocks that disagree, keys, and ways to connect."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.core.clock import SystemClock
from gateway.core.errors import FencedOutError, SettingsError, StaleWriteError, StoreUnavailableError
from gateway.core.model import RuntimeKey, SessionId, SessionState
from gateway.store import redis_dial
from gateway.store.redis import RedisStore
from gateway.store.redis_exchanges import CONNECTIONS
from gateway.testing import ManualClock
from tests.support.records import RUNTIME, T0, session
from tests.support.redis_server import RedisServer, SentinelServer, cluster_port


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """A store as it is in production: leases by the server's clock."""
    made = RedisStore(redis_server.url, SystemClock())
    await made.start()
    yield made
    await made.aclose()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Poll until a condition holds. Raises AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.02)


async def answers(store: RedisStore) -> bool:
    try:
        await store.ping()
    except StoreUnavailableError:
        return False
    return True


async def test_write_after_the_server_closed_is_an_outage_and_a_bug_is_none(store: RedisStore) -> None:
    """uvloop says it with a RuntimeError, which would be an answer of 500 in place of 503."""

    async def closed(client: Any) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    async def broken(client: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(StoreUnavailableError, match="the handler is closed"):
        await store._redis.call(closed)
    with pytest.raises(RuntimeError, match="a bug"):
        await store._redis.call(broken)


async def test_search_goes_on_where_one_script_has_looked_through_enough(store: RedisStore) -> None:
    """Of 4 MiB of records a script takes two; none is left out, twice found, or given another's place."""
    for number in range(40):
        metadata = {"text": "x" * 100_000 + ("Needle" if number % 7 == 0 else "hay")}
        await store.put(session(f"s{number:02}", created_at=T0 + number, metadata=metadata))
    page = await store.search(["needle"], tenant=None, ended=True, after=None, limit=100)
    assert [place[1] for place, _ in page] == [f"s{number:02}" for number in range(39, -1, -1)]
    found = [each for _, each in page if each is not None]
    assert [each.id for each in found] == [f"s{number:02}" for number in range(35, -1, -7)]
    assert all(place == (each.created_at, each.id) for place, each in page if each is not None)


async def test_exchange_that_is_cancelled_never_goes_on(store: RedisStore) -> None:
    """At whichever step of the event loop it is cancelled: the driver alone swallows a quarter of them."""

    async def work() -> None:
        await store.ping()
        done.set()
        await asyncio.sleep(60)

    for _ in range(20):
        for steps in range(30):
            done = asyncio.Event()
            task = asyncio.create_task(work())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            async with asyncio.timeout(20):
                await asyncio.wait([task])
            assert task.cancelled()
    assert await answers(store)


# A server that goes away


async def test_killed_server_is_an_error_until_it_is_back(store: RedisStore, redis_server: RedisServer) -> None:
    """Each call says that the store is away; as soon as it is back, the very next call is served, records and all."""
    stored = await store.put(session())
    lease = await store.acquire_lease("leader", "a", 60)
    assert lease is not None
    redis_server.kill()

    for call in (store.get(stored.id), store.put(stored), store.ping(), store.acquire_lease("leader", "b", 1)):
        with pytest.raises(StoreUnavailableError) as caught:
            await call
        assert caught.value.retry_after
        assert str(redis_server.port) in str(caught.value)
    with pytest.raises(StoreUnavailableError):
        await anext(store.idle(T0 * 2))

    redis_server.start()
    assert await store.get(stored.id) == stored
    assert (await store.put(stored, lease=lease)).version == 2  # its scripts are unknown to the new server
    assert await store.acquire_lease("leader", "b", 1) is None


async def test_many_connections_survive_a_restart(store: RedisStore, redis_server: RedisServer) -> None:
    """Connections that lay in the pool while the server went are not used for anything."""
    await asyncio.gather(*(store.put(session(f"s{n:03}")) for n in range(200)))
    redis_server.kill()
    await asyncio.to_thread(redis_server.start)  # the loop runs on, and is told of the closed sockets

    found = await asyncio.gather(*(store.get(SessionId(f"s{n:03}")) for n in range(200)))
    assert all(found)


async def test_restarts_at_random_points_lose_no_answered_write(store: RedisStore, redis_server: RedisServer) -> None:
    """Writers go on through kills of a server that syncs each write: what was answered is there, and the index true."""
    answered: dict[SessionId, int] = {}
    stop = False

    async def writer(n: int) -> None:
        for round_ in range(10**6):
            if stop:
                return
            record = session(f"w{n}-{round_}")
            try:
                for _ in range(3):
                    record = await store.put(record)
                    answered[record.id] = record.version
            except StoreUnavailableError:
                await asyncio.sleep(0.01)

    writers = [asyncio.create_task(writer(n)) for n in range(4)]
    for kill in range(1, 5):
        goal = kill * 100
        await until(lambda goal=goal: asyncio.sleep(0, len(answered) >= goal), 20)  # type: ignore[misc]
        redis_server.kill()
        await asyncio.to_thread(redis_server.start)
    stop = True
    await asyncio.gather(*writers)

    found = {each.id: each.version async for each in store.sessions(limit=10**6)}
    assert {name for name, version in answered.items() if found.get(name, 0) < version} == set()
    assert {each.id async for each in store.idle(T0 * 2)} == set(found)


async def test_calls_to_a_hanging_server_fail_within_the_deadline(store: RedisStore, redis_server: RedisServer) -> None:
    """A server that hangs with its sockets open: more callers than connections all hear of it, none is left waiting."""
    stored = await store.put(session())
    redis_server.pause()

    started = time.monotonic()
    outcomes = await asyncio.gather(*(store.get(stored.id) for _ in range(500)), return_exceptions=True)
    # 500 callers on 16 connections in turn would take 32 deadlines; this bound is the promise, not a measurement.
    assert time.monotonic() - started < 4
    assert {type(each) for each in outcomes} == {StoreUnavailableError}

    redis_server.resume()
    await until(lambda: answers(store))
    assert await store.get(stored.id) == stored


async def test_driver_gives_up_within_the_deadline_that_the_store_was_given(redis_server: RedisServer) -> None:
    """It says so itself, before the store's own clock has run out: that leaves time for another node."""
    store = RedisStore(redis_server.url, SystemClock(), deadline=0.5)
    await store.start()
    redis_server.pause()
    with pytest.raises(StoreUnavailableError, match="Timeout reading"):
        await store.ping()
    redis_server.resume()
    await store.aclose()


async def test_burst_is_served_over_a_bounded_number_of_connections(
    store: RedisStore, redis_server: RedisServer
) -> None:
    """Dials take CPU of the caller, and one that comes late counts as a server that is away."""
    await asyncio.gather(*(store.get(SessionId(f"s{n}")) for n in range(200)))
    with redis.Redis("127.0.0.1", redis_server.port) as client:
        assert client.info("clients")["connected_clients"] <= CONNECTIONS + 1 <= 17


async def test_store_opened_during_an_outage_recovers(redis_server: RedisServer) -> None:
    """The start says so, and nothing needs to be started again."""
    redis_server.kill()
    store = RedisStore(redis_server.url, SystemClock())
    with pytest.raises(StoreUnavailableError):
        await store.start()

    redis_server.start()
    assert (await store.put(session())).version == 1
    await store.aclose()


async def test_abandoned_calls_leave_the_connection_usable(store: RedisStore) -> None:
    """Callers who are cancelled in the middle do not leave their answer for the next one."""
    for n in range(50):
        await store.put(session(f"s{n}"))
    for n in range(50):
        task = asyncio.create_task(store.get(SessionId(f"s{n}")))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = await store.get(SessionId(f"s{(n + 7) % 50}"))
        assert found is not None
        assert found.id == f"s{(n + 7) % 50}"


async def test_full_server_refuses_writes_and_serves_reads(redis_server: RedisServer, store: RedisStore) -> None:
    """At maxmemory with no eviction: what would need room is refused with the server's reason."""
    stored = await store.put(session())
    with redis.Redis("127.0.0.1", redis_server.port) as admin:
        admin.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailableError, match=r"OOM|memory"):
            await store.put(session("s2"))
        assert await store.get(stored.id) == stored
        admin.config_set("maxmemory", "0")
    assert (await store.put(session("s2"))).version == 1


# Leases and clocks


async def test_leases_hold_between_replicas_whose_clocks_disagree(redis_server: RedisServer) -> None:
    """A replica an hour ahead cannot take what is held, one an hour behind cannot hold it for an hour longer."""
    ahead = RedisStore(redis_server.url, ManualClock(time.time() + 3600))
    behind = RedisStore(redis_server.url, ManualClock(time.time() - 3600))
    await ahead.start()
    await behind.start()

    first = await behind.acquire_lease("leader", "behind", 0.3)
    assert first is not None
    assert await ahead.acquire_lease("leader", "ahead", 0.3) is None
    taken = []

    async def take() -> bool:
        taken.append(await ahead.acquire_lease("leader", "ahead", 60))
        return taken[-1] is not None

    await until(take, 5)
    second = taken[-1]
    assert second is not None
    assert second.fence == first.fence + 1
    assert await behind.renew_lease(first, 60) is None
    with pytest.raises(FencedOutError):
        await behind.put(session(), lease=first)
    await ahead.aclose()
    await behind.aclose()


async def test_racing_stores_wake_once(redis_server: RedisServer) -> None:
    """Ten replicas race for one session's lease and record: one of them gets either."""
    stores = [RedisStore(redis_server.url, SystemClock()) for _ in range(10)]
    for each in stores:
        await each.start()
    stored = await stores[0].put(session(state=SessionState.HIBERNATED))

    leases = await asyncio.gather(*(each.acquire_lease("session:s1", f"g{n}", 30) for n, each in enumerate(stores)))
    puts = await asyncio.gather(
        *(each.put(replace(stored, tenant=f"g{n}")) for n, each in enumerate(stores)), return_exceptions=True
    )

    assert sum(each is not None for each in leases) == 1
    assert sorted(type(each).__name__ for each in puts) == ["Session"] + ["StaleWriteError"] * 9
    for each in stores:
        await each.aclose()


# Keys


def members(server: RedisServer, key: str) -> set[str]:
    with redis.Redis("127.0.0.1", server.port, decode_responses=True) as admin:
        return set(admin.zrange(key, 0, -1))


async def test_indices_hold_no_orphans(store: RedisStore, redis_server: RedisServer) -> None:
    """After every kind of write and deletion each index holds exactly what the records say; nothing is left over."""
    agents = RuntimeKey("other", "agents")
    for n, state in enumerate([*SessionState] * 3):
        stored = await store.put(session(f"s{n}", state=state))
        await store.put(replace(stored, state=[*SessionState][n * 5 % 7], runtime=agents if n % 2 else RUNTIME))
    await store.touch_many({SessionId(f"s{n}"): T0 + n for n in range(30)})
    for n in range(0, 21, 4):
        await store.delete(SessionId(f"s{n}"))
    records = [each async for each in store.sessions()]

    root = "{wakegate}:"
    active = {str(each.id) for each in records if each.state is SessionState.ACTIVE}
    ended = {str(each.id) for each in records if each.state is SessionState.TERMINATED}
    assert members(redis_server, root + "idle") == active
    assert members(redis_server, root + "terminated") == ended
    assert members(redis_server, root + "expiry") == {str(each.id) for each in records} - ended
    assert len(members(redis_server, root + "listing")) == 8 * len(records) - 2 * len(ended)

    for each in records:
        await store.delete(each.id)
    with redis.Redis("127.0.0.1", redis_server.port, decode_responses=True) as admin:
        assert admin.keys() == [root + "schema"]


async def test_records_of_an_older_gateway_are_listed_by_age(store: RedisStore, redis_server: RedisServer) -> None:
    """Before the upgrade, and by one that still runs beside: the next list has them."""
    for number in range(150):
        made = await store.put(session(f"s{number:03}", tenant="acme", created_at=T0 + number))
        if number % 2:
            await store.put(replace(made, state=SessionState.TERMINATED))
    aged = [each for each in members(redis_server, "{wakegate}:listing") if each[0] in "pl"]
    with redis.Redis("127.0.0.1", redis_server.port) as admin:
        admin.zrem("{wakegate}:listing", *aged)
        for number in range(150):
            admin.hdel(f"{{wakegate}}:session:s{number:03}", "tenant", "born")
    assert [each.id async for each in store.by_age(tenant="acme", limit=200)] == [
        f"s{n:03}" for n in range(149, -1, -1)
    ]
    live = [each.id async for each in store.by_age(ended=False, newest_first=False, limit=200)]
    assert live == [f"s{n:03}" for n in range(0, 150, 2)]
    await store.delete(SessionId("s000"))
    assert [each.id async for each in store.by_age(ended=False, newest_first=False, limit=1)] == ["s002"]


async def test_all_keys_begin_with_the_prefix_in_one_hash_tag(redis_server: RedisServer) -> None:
    """So two deployments can share a server, and a script never crosses slots; all history expires by itself."""
    store = RedisStore(redis_server.url, SystemClock(), "team-a")
    other = RedisStore(redis_server.url, SystemClock(), "team-b")
    await store.start()
    await other.start()
    await store.put(session(), lease=await store.acquire_lease("leader", "a", 10))
    await store.record_claims(RUNTIME, {int(time.time()): 1})

    assert await other.get(SessionId("s1")) is None
    assert await other.acquire_lease("leader", "b", 10) is not None
    with redis.Redis("127.0.0.1", redis_server.port, decode_responses=True) as admin:
        keys = set(admin.keys())
        assert {key.split("}")[0] for key in keys} == {"{team-a", "{team-b"}
        assert all(admin.ttl(key) > 6 * 3600 for key in keys if ":claims:" in key)
    await store.aclose()
    await other.aclose()


async def test_newer_schema_is_refused(store: RedisStore, redis_server: RedisServer) -> None:
    """A downgrade is told before it can do harm."""
    with redis.Redis("127.0.0.1", redis_server.port) as admin:
        admin.set("{wakegate}:schema", 2)

    second = RedisStore(redis_server.url, SystemClock())
    with pytest.raises(StoreUnavailableError, match="newer Wakegate"):
        await second.start()
    await second.aclose()


# Ways to connect


async def works(url: str) -> None:
    """A whole small life over this URL."""
    store = RedisStore(url, SystemClock())
    await store.start()
    stored = await store.put(session())
    lease = await store.acquire_lease("leader", "a", 10)
    with pytest.raises(StaleWriteError):
        await store.put(session(), lease=lease)
    await store.touch_many({stored.id: T0 + 1})
    await store.record_claims(RUNTIME, {int(time.time()): 1})
    assert [each.id async for each in store.idle(T0 * 2)] == ["s1"]
    assert [each.id async for each in store.sessions(runtime=RUNTIME)] == ["s1"]
    assert len(await store.claim_history(RUNTIME, 0, bucket=60)) == 1
    await store.delete(stored.id)
    await store.aclose()


async def test_unix_socket_serves(tmp_path: Path, short_path: Path) -> None:
    """A URL unix:///path/to.sock?db=N works."""
    server = RedisServer(tmp_path / "redis", "--unixsocket", str(short_path / "redis.sock")).start()
    try:
        await works(f"unix://{short_path}/redis.sock?db=2")
    finally:
        server.kill()


async def test_password_is_used_and_never_printed(tmp_path: Path) -> None:
    """The right one works; a wrong or missing one is told as such, without the password in the text."""
    server = RedisServer(tmp_path / "redis", "--requirepass", "s3cret/?").start()
    try:
        await works(f"redis://:s3cret%2F%3F@127.0.0.1:{server.port}/0")
        for credentials in (":wr0ng@", ""):
            store = RedisStore(f"redis://{credentials}127.0.0.1:{server.port}/0", SystemClock())
            with pytest.raises(StoreUnavailableError, match=r"refused the password|NOAUTH") as caught:
                await store.start()
            assert "wr0ng" not in str(caught.value) + repr(store)
            await store.aclose()
    finally:
        server.kill()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1 and redis.test: (certificate, key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("redis.test")]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_checks_the_certificate(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rediss:// with the private CA works, by address and by name; without it, or by another name, it is refused.

    TLS ends at a relay: the wheel's redis-server is built without it.
    """
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", redis_server.port)
        await asyncio.gather(copy(reader, downstream), copy(upstream, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as front:
        port = front.sockets[0].getsockname()[1]
        await works(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={cert}")

        async def look_up(host: str, port: int) -> tuple[str, ...]:
            return ("127.0.0.1",)

        monkeypatch.setattr(redis_dial, "look_up", look_up)
        await works(f"rediss://redis.test:{port}/0?ssl_ca_certs={cert}")
        for url in (f"rediss://127.0.0.1:{port}/0", f"rediss://other.test:{port}/0?ssl_ca_certs={cert}"):
            store = RedisStore(url, SystemClock())
            with pytest.raises(StoreUnavailableError, match=r"(?i)certificate"):
                await store.start()
            await store.aclose()


@pytest.fixture
def failover(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer, RedisServer]]:
    """A master, its replica, and a sentinel that knows both."""
    master = RedisServer(tmp_path / "master").start()
    replica = RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port)).start()
    sentinel = SentinelServer(tmp_path / "sentinel", master).start()
    yield master, replica, sentinel
    for server in (sentinel, replica, master):
        server.kill()


async def test_sentinel_leads_to_the_new_master(failover: tuple[RedisServer, RedisServer, RedisServer]) -> None:
    """The master dies; the store follows the sentinel to the replica, finds its records there and writes on."""
    master, replica, sentinel = failover
    # The first sentinel of the list is dead: the next one is asked.
    url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main/0"
    await works(url)
    store = RedisStore(url, SystemClock())
    await store.start()
    stored = await store.put(session())

    with redis.Redis("127.0.0.1", sentinel.port) as watcher, redis.Redis("127.0.0.1", replica.port) as copy:
        await until(lambda: asyncio.sleep(0, watcher.sentinel_master("main")["num-slaves"] == 1), 20)
        await until(lambda: asyncio.sleep(0, bool(copy.exists("{wakegate}:session:s1"))))
    master.kill()

    async def written() -> bool:
        try:
            return (await store.put(stored)).version == 2
        except StoreUnavailableError:
            return False

    await until(written, 30)
    found = await store.get(stored.id)
    assert found is not None
    assert found.version == 2
    await store.aclose()


async def test_cluster_serves_every_call(tmp_path: Path) -> None:
    """Two nodes share the slots; whichever one is asked, each prefix's keys are found where they are."""
    nodes = [
        RedisServer(tmp_path / f"node{n}", "--cluster-enabled", "yes", port=cluster_port()).start() for n in range(2)
    ]
    try:
        admins = [redis.Redis("127.0.0.1", node.port, decode_responses=True) for node in nodes]
        for n, admin in enumerate(admins):
            admin.cluster("ADDSLOTS", *range(n * 8192, (n + 1) * 8192))
        admins[0].cluster("MEET", "127.0.0.1", nodes[1].port)
        for admin in admins:
            await until(lambda admin=admin: asyncio.sleep(0, _formed(admin)), 20)  # type: ignore[misc]
        for node in nodes:
            await works(f"redis+cluster://127.0.0.1:{node.port}")
        homes = set()
        for prefix in ("a", "b", "c", "d"):
            store = RedisStore(f"redis+cluster://127.0.0.1:{nodes[0].port}", SystemClock(), prefix)
            await store.start()
            await store.put(session())
            homes |= {n for n, admin in enumerate(admins) if f"{{{prefix}}}:session:s1" in set(admin.keys())}
            await store.aclose()
        assert homes == {0, 1}
        for admin in admins:
            admin.close()
    finally:
        for node in nodes:
            node.kill()


def _formed(admin: redis.Redis) -> bool:
    """It knows both nodes and a home for every slot."""
    info: Any = admin.cluster("INFO")
    return (info["cluster_state"], info["cluster_known_nodes"], info["cluster_slots_ok"]) == ("ok", "2", "16384")


@pytest.mark.parametrize(
    "url", ["redis+sentinel://127.0.0.1:26379", "redis+sentinel://,/main", "redis+else://x", "redis://h:port/0"]
)
async def test_wrong_url_is_reported(url: str) -> None:
    """Before anything is dialled, with the URL in the text."""
    with pytest.raises(SettingsError, match="store URL"):
        await RedisStore(url, SystemClock()).start()


def test_store_names_its_server_without_secrets() -> None:
    """The repr, which is logged, has the address and no password."""
    shown = repr(RedisStore("redis://user:pw@10.0.0.1:6379/1?sentinel_password=pw2", ManualClock()))
    assert "10.0.0.1:6379" in shown
    assert "pw" not in shown


async def test_claims_that_are_no_counts_are_left_out(store: RedisStore, redis_server: RedisServer) -> None:
    """What another program wrote into a history does not stop those who read it: the counts around it are read."""
    second = int(SystemClock().now()) - 50
    await store.record_claims(RUNTIME, {second: 3})
    async with redis.asyncio.from_url(redis_server.url) as damaging:
        (key,) = [key async for key in damaging.scan_iter("*claims:1:*")]
        wrong = {"soon": "2", str(second + 1): "many", str(second + 2): "-7", str(second + 3): "1.5"}
        for field, value in {**wrong, str(second + 4): "\xff", str(second + 5): "9" * 40}.items():
            await damaging.hset(key, field, value)

    assert await store.claim_history(RUNTIME, 0.0, bucket=1) == [(second, 3)]

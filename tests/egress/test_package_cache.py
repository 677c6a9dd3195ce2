"""Packages that one sandbox downloaded come from the cache for the next, and none can put anything into it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from gateway.core.model import Limits, SessionId
from gateway.egress.gate import EgressGate
from gateway.egress.log import Access, Outcome
from gateway.egress.package_cache import PackageCache
from tests.support.egress import open_proxy
from tests.support.internet import OTHER, Internet
from tests.support.local_engine import KEY, execute, runtime, serving
from tests.support.waiting import eventually

HOST = "files.pythonhosted.org"
URL = f"https://{HOST}:443/packages/a/b/c/sample-1.0-py3-none-any.whl"


Open = Callable[[int], PackageCache]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the cache in the test's folder, for one process: so it closes the one before."""
    made: list[PackageCache] = []

    def open_one(most: int) -> PackageCache:
        while made:
            made.pop().close()
        made.append(PackageCache(tmp_path, most))
        return made[0]

    yield open_one
    for each in made:
        each.close()


async def put(
    cache: PackageCache, url: str, content: bytes, *, announced: int | None = None, whole: bool = True
) -> bool:
    """As the service does when it fetches; whether the cache has it then."""
    fetched = cache.begin(url, len(content) if announced is None else announced)
    if fetched is None:
        return False
    for at in range(0, len(content), 7):
        await fetched.add(content[at : at + 7])
    fetched.end(complete=whole)
    return await get(cache, url) is not None


async def get(cache: PackageCache, url: str) -> bytes | None:
    kept = await cache.find(url)
    if kept is None:
        return None
    try:
        return await kept.read(0)
    finally:
        kept.close()


async def test_file_is_kept_over_a_restart_and_under_its_own_url(tmp_path: Path, opened: Open) -> None:
    cache = opened(10_000)
    assert await put(cache, URL, b"content of a wheel")
    assert await get(cache, URL + "x") is None
    assert (cache.hits, cache.misses) == (1, 1)
    assert await get(opened(10_000), URL) == b"content of a wheel"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").iterdir()} == {0o600}


@pytest.mark.parametrize("change", [b"Content of a wheel", b"content of a whee", b"content of a wheel!", b""])
async def test_file_that_has_changed_on_disk_is_never_given_out(tmp_path: Path, opened: Open, change: bytes) -> None:
    """Its content is hashed before each use; it goes, and is fetched anew."""
    cache = opened(10_000)
    assert await put(cache, URL, b"content of a wheel")
    [file] = (tmp_path / "kept").iterdir()
    file.write_bytes(change)
    assert await get(cache, URL) is None
    assert list((tmp_path / "kept").iterdir()) == []
    assert await put(cache, URL, b"content of a wheel")
    assert cache.bytes == 18


async def test_half_a_file_is_not_kept(tmp_path: Path, opened: Open) -> None:
    """Broken off, shorter or longer than announced; what a killed service left goes at the next start."""
    cache = opened(10_000)
    assert not await put(cache, URL, b"content", whole=False)
    assert not await put(cache, URL, b"content", announced=8)
    assert not await put(cache, URL, b"content", announced=6)
    assert cache.bytes == 0
    assert cache.begin(URL, 100) is not None
    assert len(list((tmp_path / "new").iterdir())) == 1
    cache = opened(10_000)
    assert list((tmp_path / "new").iterdir()) == []
    assert await put(cache, URL, b"content")


async def test_content_has_to_be_what_the_url_says(tmp_path: Path, opened: Open) -> None:
    """PyPI's URLs have the BLAKE2b of the file."""
    cache = opened(10_000)
    digest = hashlib.blake2b(b"content", digest_size=32).hexdigest()
    url = f"https://{HOST}:443/packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/sample-1.0-py3-none-any.whl"
    assert not await put(cache, url, b"poison!")
    assert await put(cache, url, b"content")


async def test_size_is_bounded_and_the_oldest_go_first(tmp_path: Path, opened: Open) -> None:
    """What is being fetched counts; nothing larger than a fourth of it is kept."""
    cache = opened(1000)
    for number in range(4):
        assert await put(cache, f"{URL}{number}", b"x" * 250)
    assert await get(cache, f"{URL}0") is not None
    assert await put(cache, f"{URL}4", b"y" * 250)
    assert await get(cache, f"{URL}1") is None
    assert await get(cache, f"{URL}0") is not None
    assert cache.begin(f"{URL}5", 251) is None
    fetching = [cache.begin(f"{URL}{number}", 250) for number in range(6, 11)]
    assert [each is not None for each in fetching] == [True] * 4 + [False]
    assert cache.begin(f"{URL}6", 250) is None  # another request fetches it
    assert cache.bytes == 1000
    for each in fetching:
        if each is not None:
            each.end(complete=False)
    assert cache.bytes == 0
    assert await put(cache, URL, b"x")


async def test_folder_is_one_process_s_and_never_fills_its_disk(
    tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one would delete what the first fetches. A fourth of a small disk, 1 GiB of a large one, stays free."""
    cache = opened(4_000_000)
    with pytest.raises(BlockingIOError):
        PackageCache(tmp_path, 4_000_000)
    real = os.statvfs(tmp_path)

    def disk(free: int, size: int) -> None:
        fields = list(real[:10])
        fields[1], fields[2], fields[4] = 1, size, free  # in pieces of one byte: f_frsize, f_blocks, f_bavail
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))

    disk(free=5_000_000, size=16_000_000)
    assert cache.begin(URL, 1_000_001) is None
    disk(free=(1 << 30) + 999_999, size=1 << 40)
    assert cache.begin(URL, 1_000_000) is None
    disk(free=(1 << 30) + 1_000_000, size=1 << 40)
    fetched = cache.begin(URL, 1_000_000)
    assert fetched is not None
    fetched.end(complete=False)


# Through the service, and with pip.


@pytest.fixture(scope="module")
def index(world: Internet) -> str:
    """PyPI's two hosts with one package. Returns the path of its wheel."""
    made = world.folder / "sample.whl"
    with zipfile.ZipFile(made, "w") as wheel:
        info = "sample-1.0.dist-info"
        wheel.writestr("sample.py", "answer = 42\n")
        wheel.writestr("sample.bin", bytes(range(256)) * 2000)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "sample.py,,\nsample.bin,,\n")
    content = made.read_bytes()
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    path = f"packages/{digest[:2]}/{digest[2:4]}/{digest[4:]}/sample-1.0-py3-none-any.whl"
    for name, data in (
        (path, content),
        ("packages/other/poison-1.0.tar.gz", b"the true content"),
        (
            "simple/sample/index.html",
            f'<a href="https://{HOST}/{path}#sha256={hashlib.sha256(content).hexdigest()}">sample-1.0-py3-none-any.whl</a>'.encode(),
        ),
    ):
        (world.files / name).parent.mkdir(parents=True, exist_ok=True)
        (world.files / name).write_bytes(data)
    return "/" + path


@pytest.fixture
async def cached_gate(world: Internet, tmp_path: Path) -> AsyncIterator[EgressGate]:
    """A gate whose service keeps packages."""
    made = EgressGate(
        wrapper=world.enter, authority=tmp_path / "egress", trusted=world.ca, cache=(tmp_path / "cache", 10_000_000, 1)
    )
    made.bundle(time.time())
    yield made
    await made.aclose()


def fetched(world: Internet, since: int) -> list[str]:
    """Paths of packages that the origin was asked for."""
    return [each["path"] for each in world.requests()[since:] if each["path"].startswith("/packages/")]


@pytest.mark.processes
async def test_second_pip_install_takes_the_wheel_from_the_cache(
    world: Internet, index: str, cached_gate: EgressGate, tmp_path: Path
) -> None:
    """pip without any setting, in three sandboxes; once the service was killed in betsamplen."""
    before = len(world.requests())
    lines: list[Access] = []
    counted: list[tuple[int, ...]] = []
    cached_gate.on_line(lines.append)
    cached_gate.on_cache(lambda *numbers: counted.append(numbers))
    offered = runtime(egress=("pypi",), limits=Limits(processes=128))
    async with serving(tmp_path, offered, egress=cached_gate) as provider:
        for number in range(3):
            sandbox = await provider.claim(KEY, SessionId(f"s{number}"))
            done = await execute(
                sandbox,
                "sh",
                "-c",
                "pip install -q sample && python3 -c 'import sample; print(sample.answer)'",
                timeout="60s",
            )
            assert done["stdout"].strip() == "42", done
            if number == 1:
                await _kill(cached_gate)
    assert fetched(world, before) == [index]
    await eventually(lambda: sum(line.cached for line in lines if line.outcome is Outcome.CLOSED) == 2, "lines say so")
    assert (sum(each[0] for each in counted), sum(each[1] for each in counted)) == (2, 1)


async def _kill(gate: EgressGate) -> None:
    """kill -9 of the service; returns when another one runs."""
    pid = gate.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: gate.pid not in (None, pid), "another service runs")


def asked(path: str, more: str = "", method: str = "GET", body: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n{body}".encode()


@pytest.mark.processes
async def test_requests_of_a_sandbox_shape_nothing_that_others_get(
    world: Internet, index: str, cached_gate: EgressGate
) -> None:
    """The origin hears the URL alone; what asks for something of its own is neither kept nor found in the cache."""
    path = "/packages/other/poison-1.0.tar.gz"
    headers = "X-Forwarded-Host: evil.example.net\r\nX-Original-URL: /evil\r\nUser-Agent: x\r\nX-Poison: 1\r\n"
    async with open_proxy(cached_gate, "pypi", session="evil") as evil, open_proxy(cached_gate, "pypi") as good:
        for own in (
            asked(path, "Range: bytes=0-2\r\n"), asked(path, "Authorization: x\r\n"), asked(path, "Cookie: a=b\r\n"),
            asked(path, "If-None-Match: x\r\n"), asked(path + "?a=b"), asked(path.replace("poison", "%70oison")),
            asked("/packages/./other/poison-1.0.tar.gz"), asked("/packages//other/poison-1.0.tar.gz"),
            asked(path, "Content-Length: 3\r\n", body="abc"), asked(path, "Content-Length: 4\r\n", "POST", "evil"),
            asked(path, "Content-Length: 4\r\n", "PUT", "evil"), asked(path, method="HEAD"),
        ):  # fmt: skip
            await evil.fetch(f"{HOST}:443", own.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        before = len(world.requests())
        answer = await evil.fetch(f"{HOST}:443", asked(path, headers + "Connection: close\r\n"))
        assert answer.endswith(b"the true content")
        answer = await good.fetch(f"{HOST}:443", asked(path), asked(path, "Connection: close\r\n"))
        assert answer.count(b"X-Wakegate-Egress: cached") == 2
        assert answer.endswith(b"the true content")
    [seen] = world.requests()[before:]
    assert sorted(name for name, _ in seen["headers"]) == ["accept", "accept-encoding", "host", "user-agent"]
    assert ["user-agent", "wakegate-egress"] in seen["headers"]


@pytest.mark.processes
async def test_only_the_preset_ends_tls_to_the_index(world: Internet, index: str, cached_gate: EgressGate) -> None:
    """`any`, or the name, leave its TLS alone; a session's narrower policy still bounds what the cache answers."""
    ca = world.ca.read_text()
    for entry in ("any", HOST):
        async with open_proxy(cached_gate, entry) as proxy, proxy.secure(f"{HOST}:443", trust=ca):
            pass
    async with open_proxy(cached_gate, "pypi") as proxy:
        assert b"200" in await proxy.fetch(f"{HOST}:443", asked(index))
    async with open_proxy(cached_gate, "origin.example.com") as proxy:
        assert b" 403 " in await proxy.ask(f"CONNECT {HOST}:443 HTTP/1.1\r\n\r\n".encode())


@pytest.mark.processes
async def test_download_that_breaks_off_is_not_kept(world: Internet, index: str, cached_gate: EgressGate) -> None:
    """A client that leaves in the middle, and many at once for one file: each gets it whole."""
    large = world.files / "packages" / "large-1.0.zip"
    large.write_bytes(b"0123456789" * 200_000)
    async with open_proxy(cached_gate, "pypi") as proxy:
        async with proxy.secure(f"{HOST}:443") as (reader, writer):
            writer.write(asked("/packages/large-1.0.zip"))
            await reader.readexactly(1000)
        answers = await asyncio.gather(
            *(proxy.fetch(f"{HOST}:443", asked("/packages/large-1.0.zip", "Connection: close\r\n")) for _ in range(8))
        )
    assert all(answer.endswith(b"0123456789" * 200_000) for answer in answers)
    assert OTHER in {each["address"] for each in world.requests()}

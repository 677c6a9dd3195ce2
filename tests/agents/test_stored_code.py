"""The files of agents in a snapshot store: whose they are, how long they stay, what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from gateway.agents.stored_code import KIND, StoredCode
from gateway.core.errors import BadRequestError, TooLargeError
from gateway.snapshots.memory import MemorySnapshots
from gateway.store.memory import MemoryStore
from gateway.testing import ManualClock


class World:
    """One store of files; `again` is another gateway's view of the same."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.snapshots = MemorySnapshots(self.clock)
        self.store = MemoryStore(self.clock)
        self.documents = self.store.documents
        self._folder = folder
        self.code = self.again()

    def again(self) -> StoredCode:
        return StoredCode(self.snapshots, self.documents, self._folder, self.clock)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """Its store is open."""
    made = World(tmp_path)
    await made.store.start()
    return made


def archive(*entries: tuple[str, bytes | None], link: str = "") -> io.BytesIO:
    """None: a folder."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            tar.addfile(member)
    made.seek(0)
    return made


async def test_what_one_gateway_was_sent_another_one_reads(world: World) -> None:
    """Byte by byte as it came, under the digest of that; the same again is not stored again."""
    sent = archive(("app.py", b"print(1)"))
    digest = await world.code.add(sent, "acme")
    assert digest == "sha256:" + hashlib.sha256(sent.getvalue()).hexdigest()
    other = world.again()
    assert await other.has(digest, "acme")
    assert b"".join([piece async for piece in other.read(digest)]) == sent.getvalue()
    assert await other.add(archive(("app.py", b"print(1)")), "acme") == digest
    assert len(world.snapshots.kept) == 1


async def test_a_tenant_uses_what_it_has_sent_itself(world: World) -> None:
    """A digest alone is no right to the files; the files are."""
    digest = await world.code.add(archive(("app.py", b"print(1)")), "acme")
    assert not await world.code.has(digest, "globex")
    assert not await world.code.has("sha256:" + 64 * "0", "acme")
    await world.code.add(archive(("app.py", b"print(1)")), "globex")
    assert await world.code.has(digest, "globex")
    assert await world.code.has(digest, "acme")


@pytest.mark.parametrize(
    "sent",
    [
        io.BytesIO(b"no archive at all"),
        archive(("../out", b"x")),
        archive(("/etc/passwd", b"x")),
        archive(("a", b"x"), ("./a", b"y")),
        archive(("a", b"x"), ("a/b", b"y")),
        archive(("a/b", b"y"), ("a", b"x")),
        archive(("a", b"x"), ("a", None)),
        archive(link="/etc/passwd"),
    ],
    ids=["garbage", "above", "absolute", "twice", "below a file", "over a folder", "file and folder", "link"],
)
async def test_what_a_pod_could_not_unpack_is_refused_when_it_is_sent(world: World, sent: io.BytesIO) -> None:
    """And nothing of it is stored."""
    with pytest.raises(BadRequestError):
        await world.code.add(sent, "acme")
    assert not world.snapshots.kept


async def test_archives_are_bounded(world: World) -> None:
    """In bytes once unpacked, and in files."""
    with pytest.raises(TooLargeError):
        await world.code.keep_environment("e", "acme", archive(("a", b"123")), max_bytes=2, max_files=9)
    with pytest.raises(TooLargeError):
        await world.code.keep_environment("e", "acme", archive(("a", b""), ("b", b"")), max_bytes=9, max_files=1)
    assert not world.snapshots.kept


async def test_an_environment_is_found_by_its_name_until_it_is_swept(world: World) -> None:
    """By its tenant, at every gateway, with one key for names."""
    digest = await world.code.keep_environment("named", "acme", archive(("p.py", b"1")), max_bytes=99, max_files=9)
    other = world.again()
    assert await other.find_environment("named", "acme") == digest
    assert await other.find_environment("another", "acme") == ""
    assert await other.secret() == await world.code.secret()
    world.clock.advance(100.0)
    await world.code.sweep([], world.clock.now() - 10.0)
    assert await other.find_environment("named", "acme") == ""
    assert await other.secret() == await world.code.secret(), "the key is no environment"


async def test_the_sweep_takes_what_no_revision_names_and_nothing_lately_sent(world: World) -> None:
    """Also an archive without a document, which a gateway that was killed has left."""
    used, old, fresh = [archive(("app.py", text)) for text in (b"used", b"old", b"fresh")]
    named = await world.code.add(used, "acme")
    gone = await world.code.add(old, "acme")
    touched = await world.code.add(fresh, "acme")
    lost = await world.code.add(archive(("app.py", b"lost")), "acme")
    await world.documents.delete(KIND, lost)
    world.clock.advance(3600.0)
    assert await world.code.add(archive(("app.py", b"fresh")), "acme") == touched
    await world.code.sweep([named], world.clock.now() - 60.0)
    assert [await world.code.has(each, "acme") for each in (named, gone, touched)] == [True, False, True]
    assert len(world.snapshots.kept) == 2

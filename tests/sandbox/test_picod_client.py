"""What the gateway asks of picod: tokens, answers of all kinds, and what is said when a sandbox misbehaves."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.core.clock import SystemClock
from gateway.core.errors import (
    SnapshotCorruptError,
    SnapshotError,
    SnapshotStoreFullError,
    SnapshotUnsupportedError,
    UpstreamBrokenError,
    UpstreamConnectError,
    UpstreamTimeoutError,
)
from gateway.core.model import Endpoint, Sandbox, SuspendReport, Unsaved
from gateway.runtimes.catalog import StaticCatalog
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from tests.support.keepers import RUNTIME, local
from tests.support.scripted import Call, Script, ScriptedSandbox
from tests.support.snapshots import OPEN, SESSION, executor_of, sandbox_at

Verb = Callable[[PicodExecutor, Sandbox], Awaitable[object]]


async def export(executor: PicodExecutor, sandbox: Sandbox) -> bytes:
    return b"".join([chunk async for chunk in executor.export(sandbox, SESSION)])


async def restore(executor: PicodExecutor, sandbox: Sandbox) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"archive"

    await executor.restore(sandbox, SESSION, chunks())


async def suspend(executor: PicodExecutor, sandbox: Sandbox) -> SuspendReport:
    return await executor.suspend(sandbox, SESSION)


async def resume(executor: PicodExecutor, sandbox: Sandbox) -> None:
    await executor.resume(sandbox, SESSION)


async def busy(executor: PicodExecutor, sandbox: Sandbox) -> bool:
    return await executor.busy(sandbox, SESSION)


VERBS = {"export": export, "restore": restore, "suspend": suspend, "resume": resume}


@pytest.fixture(params=VERBS)
def verb(request: pytest.FixtureRequest) -> Verb:
    return VERBS[request.param]


@asynccontextmanager
async def answering(script: Script) -> AsyncIterator[Sandbox]:
    """A sandbox on TCP whose answers are a script."""
    server = ScriptedSandbox(script)
    await server.start()
    try:
        yield sandbox_at(server.endpoint)
    finally:
        await server.aclose()


JSON = "content-type: application/json\n"


def saying(body: bytes, status: str = "200 OK", fields: str = JSON) -> Script:
    async def script(call: Call) -> None:
        await call.body()
        await call.reply(body, status, fields)

    return script


async def test_real_picod_accepts_the_gateways_tokens_only(tmp_path: Path) -> None:
    """Every verb at a picod that requires a token; one signed by an unknown key is refused with the reason."""
    async with local(tmp_path) as (_, executor, subject):
        old, new = await subject.sandbox("content"), await subject.sandbox()
        await executor.restore(new, SESSION, executor.export(old, SESSION))
        assert subject.read(new) == "content"
        assert await executor.suspend(new, SESSION) == SuspendReport()
        await executor.resume(new, SESSION)

        stranger = KeyRing(tmp_path / "stranger")
        stranger.open()
        refused = PicodExecutor(StaticCatalog([RUNTIME]), TokenIssuer(stranger, SystemClock()))
        for each in (export, restore):
            with pytest.raises(SnapshotError, match=r"rejects this gateway's token: Invalid token; .* key set"):
                await each(refused, new)
        assert subject.read(new) == "content"


async def test_each_call_carries_a_token_for_that_sandbox_unless_it_wants_none(verb: Verb) -> None:
    """One token a call, named by sandbox and session, in one header; authMode none sends nothing."""
    seen: list[list[str]] = []

    async def script(call: Call) -> None:
        await call.body()
        seen.append(call.request.all("authorization"))
        await call.reply(b"{}", fields=JSON)

    class Issuer:
        def issue(self, sandbox_id: str, session_id: str) -> tuple[bytes, float]:
            return f"{sandbox_id}/{session_id}".encode(), 0.0

    async with answering(script) as sandbox:
        await verb(PicodExecutor(StaticCatalog([RUNTIME]), Issuer()), sandbox)
        await verb(executor_of(OPEN), sandbox)
    assert seen == [[f"Bearer sb-1/{SESSION}"], []]


async def test_suspend_reports_what_could_not_be_saved() -> None:
    """Names and reasons as picod gives them, cut to a length; what is not as agreed is left out."""
    entries = b'{"context": "c", "name": "sock", "reason": "%s"}, 5, {"name": 9}' % (b"x" * 1000)
    body = b'{"saved": 7, "unsaved": [%s]}' % entries
    async with answering(saying(body)) as sandbox:
        report = await executor_of().suspend(sandbox, SESSION)
    assert report == SuspendReport(7, (Unsaved("c", "sock", "x" * 300), Unsaved("", "9", "")))

    for nonsense in (b"", b"[]", b"\xff", b'{"saved": "many", "unsaved": {"a": 1}}'):
        async with answering(saying(nonsense)) as sandbox:
            assert await executor_of().suspend(sandbox, SESSION) == SuspendReport()


async def test_sandbox_is_busy_only_if_picod_reports_it() -> None:
    """In the agreed words; an older picod, nonsense and refusals are none of them."""
    for body, status, busy in (
        (b'{"busy": true}', "200 OK", True),
        (b'{"busy": false}', "200 OK", False),
        (b'{"busy": 1}', "200 OK", False),
        (b"ok", "200 OK", False),
        (b'{"busy": true}', "404 Not Found", False),
    ):
        async with answering(saying(body, status)) as sandbox:
            assert await executor_of().busy(sandbox, SESSION) is busy, body


async def test_executor_without_suspend_has_nothing_to_save() -> None:
    """404, as an older or foreign picod answers."""
    async with answering(saying(b"404 page not found", "404 Not Found")) as sandbox:
        assert await executor_of().suspend(sandbox, SESSION) == SuspendReport()
        await executor_of().resume(sandbox, SESSION)


@pytest.mark.parametrize("verb", ["export", "restore"], indirect=True)
async def test_executor_without_snapshots_is_an_error_that_says_what_to_do(verb: Verb) -> None:
    """501 SNAPSHOT_UNSUPPORTED, naming the runtime and the setting."""
    async with answering(saying(b"no", "404 Not Found")) as sandbox:
        with pytest.raises(SnapshotUnsupportedError, match=r"default/kept .*wakegate\.hibernation to off") as caught:
            await verb(executor_of(), sandbox)
    assert caught.value.status == 501


async def test_refusal_carries_picods_own_words(verb: Verb) -> None:
    """Cut to a line and a length, without control characters; a redirect is one more refusal."""
    said = b'{"error": "no space\\nleft\\u001b[31m on device%s"}' % (b"x" * 1000)
    async with answering(saying(said, "507 Insufficient Storage")) as sandbox:
        with pytest.raises(SnapshotError, match=r"no space left \[31m on device") as caught:
            await verb(executor_of(), sandbox)
        assert len(str(caught.value)) < 450
    async with answering(saying(b"", "302 Found", "location: http://127.0.0.1:1/\n")) as sandbox:
        with pytest.raises(SnapshotError, match=r"no reason given \(status 302\)"):
            await verb(executor_of(), sandbox)


async def test_refused_archive_is_a_damaged_snapshot() -> None:
    """400 of picod: what was stored cannot be unpacked."""
    async with answering(saying(b'{"error": "the archive is refused: x"}', "400 Bad Request")) as sandbox:
        with pytest.raises(SnapshotCorruptError, match="sb-1 cannot unpack the snapshot: the archive is refused: x"):
            await restore(executor_of(), sandbox)


async def test_restore_on_a_full_disk_says_that_it_is_full() -> None:
    """507 of picod: not a failure of the gateway's (500), and once there is room the same request succeeds."""
    async with answering(saying(b'{"error": "no space left on device"}', "507 Insufficient Storage")) as sandbox:
        with pytest.raises(SnapshotStoreFullError, match="sb-1 cannot import the workspace: no space left on device"):
            await restore(executor_of(), sandbox)


async def test_answer_of_another_server_is_no_snapshot() -> None:
    """A server of the user's that answers every path, with a page or with a stream that does not end."""

    async def streaming(call: Call) -> None:
        await call.body()
        await call.send("HTTP/1.1 200 OK\ncontent-type: text/event-stream\n\ndata: 1\n\n")
        await asyncio.Event().wait()

    for script in (streaming, saying(b'{"saved": 5}', fields="content-type: text/html\n")):
        async with answering(script) as sandbox:
            assert await executor_of().suspend(sandbox, SESSION) == SuspendReport()
            await executor_of().resume(sandbox, SESSION)


@pytest.mark.parametrize("verb", [export, restore, suspend, resume, busy])
async def test_answer_that_comes_too_slowly_is_given_up(verb: Verb) -> None:
    """Each byte comes in time, and all of them would take for ever."""

    async def script(call: Call) -> None:
        await call.body()
        await call.send(f"HTTP/1.1 200 OK\n{JSON}\n")
        while True:
            await call.send(b" ")
            await asyncio.sleep(0.01)

    async with answering(script) as sandbox:
        with pytest.raises(
            UpstreamTimeoutError, match=r"sb-1 (did not answer /api/\S+ within 0\.3 s|exports its .* too slowly)"
        ):
            await verb(executor_of(answer_timeout=0.3, idle_timeout=0.3), sandbox)


async def test_slow_reader_of_an_export_is_not_the_sandboxs_fault() -> None:
    """A snapshot store that takes longer than the sandbox may: what the sandbox gave at once is read to its end."""
    async with answering(saying(b"x" * 300_000)) as sandbox:
        received = 0
        async for chunk in executor_of(idle_timeout=0.3).export(sandbox, SESSION):
            received += len(chunk)
            if received == len(chunk):
                await asyncio.sleep(0.4)  # the store; what is waited for is that time passes
        assert received == 300_000


@pytest.mark.parametrize("verb", ["restore", "suspend", "resume"], indirect=True)
async def test_endless_answer_is_cut(verb: Verb) -> None:
    """A sandbox that never stops talking costs a megabyte and its connection."""
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.body()
        await call.send("HTTP/1.1 200 OK\ncontent-type: application/json\n\n")
        while True:
            await call.send(b"x" * 65536)
            sent += 65536

    async with answering(script) as sandbox:
        await verb(executor_of(), sandbox)
    assert sent < 16 << 20


async def test_unfolding_answer_is_not_unfolded() -> None:
    """What says that it is compressed is taken as it comes."""
    async with answering(saying(b"not gzip at all", fields=JSON + "content-encoding: gzip\n")) as sandbox:
        assert await export(executor_of(), sandbox) == b"not gzip at all"
        assert await executor_of().suspend(sandbox, SESSION) == SuspendReport()


async def test_truncated_export_is_an_error() -> None:
    """A stream that ends early, in each way it can, is an error after what had come."""

    async def chunked(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n5\nhello\n")
        call.abort()

    async def counted(call: Call) -> None:
        await call.send("HTTP/1.1 200 OK\ncontent-length: 10\n\nhello")
        await call.close()

    async def nothing(call: Call) -> None:
        call.abort()

    for script in (chunked, counted, nothing):
        async with answering(script) as sandbox:
            with pytest.raises(UpstreamBrokenError, match="sandbox sb-1 closed the connection"):
                await export(executor_of(), sandbox)


async def test_silent_sandbox_is_given_up(verb: Verb) -> None:
    """It took the request and says nothing."""

    async def script(call: Call) -> None:
        await asyncio.Event().wait()

    async with answering(script) as sandbox:
        with pytest.raises(UpstreamTimeoutError, match="sb-1 hit the idle timeout"):
            await verb(executor_of(idle_timeout=0.2), sandbox)


async def test_sandbox_without_a_listener_is_reported_as_gone(verb: Verb, short_path: Path) -> None:
    """A socket without a listener, none at all, and a closed port: nothing was sent, as nothing listens."""
    server = ScriptedSandbox()
    await server.start(short_path / "closed.sock")
    await server.aclose()
    if not (short_path / "closed.sock").exists():
        (short_path / "closed.sock").touch()
    closed = ScriptedSandbox()
    await closed.start()
    await closed.aclose()
    for endpoint in (Endpoint(uds=str(short_path / "closed.sock")), Endpoint(uds="/nowhere.sock"), closed.endpoint):
        with pytest.raises(UpstreamConnectError, match="sandbox sb-1 cannot be reached") as caught:
            await verb(executor_of(), sandbox_at(endpoint))
        assert caught.value.no_listener


async def test_source_of_a_restore_fails_in_its_own_words() -> None:
    """What the store raises in the middle comes through, and the sandbox does not see an end."""
    bodies: list[bytes] = []

    async def script(call: Call) -> None:
        try:
            bodies.append(await call.body())
        finally:
            call.abort()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise SnapshotCorruptError("it is damaged")

    async with answering(script) as sandbox:
        with pytest.raises(SnapshotCorruptError, match="it is damaged"):
            await executor_of().restore(sandbox, SESSION, chunks())
    assert bodies == []


async def test_nothing_stays_open_at_a_sandbox(verb: Verb) -> None:
    """No descriptor of ours after a call, whether it ended well or not."""
    bad_script = saying(b"{}", "500 Internal Server Error")
    async with answering(saying(b"{}")) as good, answering(bad_script) as bad:
        await verb(executor_of(), good)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await verb(executor_of(), good)
            with pytest.raises(SnapshotError):
                await verb(executor_of(), bad)
        for _ in range(100):
            if len(os.listdir("/proc/self/fd")) <= before:
                break
            await asyncio.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= before

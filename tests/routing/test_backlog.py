"""More claims than starts can keep up with: 429 with a time to come back, never a 5xx."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.core.errors import QueueFullError
from gateway.routing.target import Target
from gateway.runtimes.catalog import default_runtime
from gateway.sessions.admission import Admission, Backlog
from gateway.testing import ScriptedProvider
from tests.support.scripted import KEY, OpenScripted, Served, served
from tests.support.waiting import eventually

ON_UVLOOP = True
NEW = Target(None, KEY, b"/")


@pytest.fixture
def short_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are held for two seconds, whatever starts take."""
    monkeypatch.setattr(Admission, "hold_time", lambda *_: 2.0)


def slow(gateway: Served, seconds: float) -> None:
    gateway.provider.cold_seconds = seconds


async def test_spike_that_starts_cannot_keep_up_with_gets_429(tmp_path: Path, short_hold: None) -> None:
    """Some are served within the hold; all others hear 429 and when to come back, whether they waited or not."""
    async with served(tmp_path, ScriptedProvider(), runtimes=[default_runtime(0)]) as gateway:
        slow(gateway, 0.1)
        spike = [gateway.gateway.activator.reserve(NEW) for _ in range(100)]
        results = await asyncio.gather(*spike, return_exceptions=True)
        refused = [each for each in results if isinstance(each, Exception)]
        assert 1 <= len(refused) < 100
        assert {getattr(each, "code", repr(each)) for each in refused} == {"OVERLOADED"}
        assert all(1 <= (getattr(each, "retry_after", 0) or 0) <= 30 for each in refused)


async def test_known_queue_refuses_at_once_who_would_wait_in_vain(tmp_path: Path, short_hold: None) -> None:
    """Once its rate is known nobody is held only to be sent away."""
    async with served(tmp_path, ScriptedProvider(), runtimes=[default_runtime(0)]) as gateway:
        slow(gateway, 0.1)
        waiting = [asyncio.ensure_future(gateway.gateway.activator.reserve(NEW)) for _ in range(100)]
        await eventually(lambda: gateway.provider.claims >= 9, "the queue's rate is known")
        with pytest.raises(QueueFullError, match="held for"):
            await gateway.gateway.activator.reserve(NEW)

        await asyncio.gather(*waiting, return_exceptions=True)


async def test_starts_that_serve_nobody_are_no_overload(open_gateway: OpenScripted, short_hold: None) -> None:
    """Nobody was served meanwhile: something is wrong, and 504 says so."""
    gateway, _ = await open_gateway()
    gateway.provider.hold = asyncio.Event()
    answers = await asyncio.gather(
        gateway.ask(f"GET /a HTTP/1.1\nhost: h\nx-wakegate-runtime: {KEY.name}"),
        gateway.ask("POST /v1/sessions HTTP/1.1\nhost: h\ncontent-length: 28", b'{"runtime":"my-interpreter"}'),
    )
    assert [(answer.status, answer.json["code"]) for answer in answers] == [(504, "ACTIVATION_TIMEOUT")] * 2


def test_backlog_knows_its_rate_only_while_it_queues() -> None:
    """Nine served in nine seconds with others behind: a second each; a new queue has forgotten."""
    backlog = Backlog()
    for _ in range(12):
        backlog.joined(100.0)
    assert backlog.expected_wait(105.0) is None
    for _ in range(9):
        backlog.left(served=True)
    assert backlog.expected_wait(109.0) == pytest.approx(4.0)
    for _ in range(3):
        backlog.left(served=False)
    assert backlog.moves
    backlog.joined(200.0)
    assert (backlog.moves, backlog.expected_wait(230.0)) == (False, None)

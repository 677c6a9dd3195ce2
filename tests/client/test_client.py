"""Both clients against a real gateway with a real sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest

from tests.support.serve import Server, serve
from wakegate_client import APIError, AsyncClient, Client, UnreachableError
from wakegate_client.answers import EventReader


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gateway for the module."""
    with serve(tmp_path_factory.mktemp("client") / "state", "--warm-pool", "1") as running:
        yield running


def test_client_uses_a_session_from_its_making_to_its_end(server: Server) -> None:
    """Commands, files, events, hibernation; an ended session is an APIError with the gateway's words."""
    with Client(server.url) as gateway:
        session = gateway.create_session(metadata={"for": "test"})["id"]
        assert gateway.execute(session, ["echo", "hello"])["stdout"] == "hello\n"
        gateway.write_file(session, "a b/c.txt", b"content")
        assert gateway.read_file(session, "a b/c.txt") == b"content"
        body = {"command": ["sh", "-c", "echo out; exit 3"], "stream": True}
        with gateway.events("POST", "/api/execute", session, json=body) as events:
            found = list(events)
        assert [each.name for each in found] == ["start", "stdout", "exit"]
        assert found[-1].data["exit_code"] == 3
        assert gateway.hibernate(session)["state"] == "hibernated"
        assert gateway.wake(session)["state"] == "active"
        assert session in [each["id"] for each in gateway.list_sessions(limit=1)]
        assert gateway.caller()["role"] == "admin"
        gateway.end_session(session)
        with pytest.raises(APIError, match=r"not found|ended") as refused:
            gateway.execute(session, ["true"])
    assert refused.value.status in (404, 410)


async def test_async_client_answers_the_same(server: Server) -> None:
    """Also its events."""
    async with AsyncClient(server.url) as gateway:
        session = (await gateway.create_session())["id"]
        assert (await gateway.execute(session, ["echo", "hello"]))["stdout"] == "hello\n"
        async with gateway.events(
            "POST", "/api/execute", session, json={"command": ["true"], "stream": True}
        ) as events:
            assert [each.name async for each in events][-1] == "exit"
        assert session in [each["id"] async for each in gateway.list_sessions(limit=1)]
        await gateway.end_session(session)


def test_address_where_nothing_answers_is_one_error() -> None:
    """It names the address."""
    with Client("http://127.0.0.1:1") as gateway, pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1"):
        gateway.runtimes()


def test_event_of_any_size_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that sends one line of data after the other fills no memory here."""
    monkeypatch.setattr("wakegate_client.answers.MAX_EVENT_CHARS", 100)
    reader = EventReader()
    with pytest.raises(UnreachableError, match="too large"):
        list(chain.from_iterable(reader.feed("data: 0123456789") for _ in range(100)))

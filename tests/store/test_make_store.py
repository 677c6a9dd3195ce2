"""make_store: from a URL to a store, and errors for wrong URLs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.core.errors import SettingsError
from gateway.store import make_store
from gateway.store.redis import RedisStore
from gateway.store.sqlite import SqliteStore
from gateway.testing import ManualClock
from tests.support.records import session


async def test_sqlite_url_names_a_file(tmp_path: Path) -> None:
    """Absolute, with any characters the URL may escape."""
    store = make_store(f"sqlite://{tmp_path}/a%20b/sessions.db", ManualClock())
    assert isinstance(store, SqliteStore)
    await store.start()
    await store.put(session())
    await store.aclose()

    assert (tmp_path / "a b" / "sessions.db").is_file()


def test_sqlite_url_may_be_relative() -> None:
    """The path is relative to the working directory."""
    assert f"{os.sep}" not in repr(make_store("sqlite:sessions.db", ManualClock()))


@pytest.mark.parametrize(
    "url",
    [
        "redis://h/0",
        "rediss://:pw@h:1/2",
        "unix:///x.sock",
        "redis+sentinel://:pw@a,b:2/main/1",
        "rediss+sentinel://a/main",
        "redis+cluster://h:1",
    ],
)
def test_redis_urls_name_redis(url: str) -> None:
    """Every form, without dialling."""
    assert isinstance(make_store(url, ManualClock(), prefix="p"), RedisStore)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "postgres://:pw@h/db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://relative/path",
        "redis+sentinel://a",
        "redis+x://a",
        "redis://:pw@h:port",
    ],
)
def test_wrong_url_is_reported_without_its_password(url: str) -> None:
    """A setting that cannot be meant stops the start."""
    with pytest.raises(SettingsError, match="store URL") as caught:
        make_store(url, ManualClock())
    assert "pw" not in str(caught.value)

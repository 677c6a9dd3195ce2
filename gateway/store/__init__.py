"""Session records, leases and the history of claims: one interface, two engines (sqlite, Redis), a cache in front.

Imports `core` only. Start with `make_store` below; what each method promises stands in `core.interfaces.SessionStore`.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from gateway.core.clock import Clock
from gateway.core.errors import SettingsError
from gateway.core.interfaces import SessionStore


def make_store(url: str, clock: Clock, *, prefix: str = "wakegate") -> SessionStore:
    """The store a URL names, not yet open: `sqlite:///absolute/path` (or `sqlite:relative/path`), or Redis.

    Redis takes the forms of redis_client; `prefix` begins its keys. Raises SettingsError for any other URL.
    """
    # Drivers are loaded when they are asked for: redis-py alone costs a gateway on sqlite start time and memory.
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        from gateway.store.sqlite import SqliteStore

        path = unquote(urlsplit(url).path)
        if urlsplit(url).netloc or path in ("", "/"):
            raise SettingsError([f"store URL {url}: name a file, as in sqlite:///var/lib/wakegate/sessions.db"])
        return SqliteStore(Path(path), clock)
    if scheme.partition("+")[0] in ("redis", "rediss", "unix"):
        from gateway.store.redis import RedisStore
        from gateway.store.redis_client import make_client

        make_client(url)  # dials nothing: a wrong URL is an error of the start
        return RedisStore(url, clock, prefix)
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    raise SettingsError([f"store URL {shown}: begin it with sqlite:, redis:, rediss: or unix:"])

"""Session records, leases and the history of claims, in sqlite or Redis, with a cache for shared stores.

Imports `core` only. Start with `make_store` below; `core.interfaces.SessionStore` documents each method.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from gateway.core.clock import Clock
from gateway.core.errors import SettingsError
from gateway.core.interfaces import SessionStore


def make_store(url: str, clock: Clock, *, prefix: str = "wakegate") -> SessionStore:
    """Create the store that a URL names, without opening it: `sqlite:///PATH`, `sqlite:RELATIVE/PATH`, or Redis.

    redis_client lists the forms of Redis URLs; `prefix` starts all keys. Raises SettingsError for any other URL.
    """
    # Drivers are imported on demand: redis-py would cost a gateway on sqlite start time and memory.
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

        make_client(url)  # does not connect, but raises for a wrong URL, so that the start fails and not a request
        return RedisStore(url, clock, prefix)
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    raise SettingsError([f"store URL {shown}: begin it with sqlite:, redis:, rediss: or unix:"])

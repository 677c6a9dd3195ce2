"""Creates a Redis client that fails fast from a URL: one server, TLS, Sentinel or a cluster.

redis://[[user]:password@]host[:port][/db]           one server
rediss://...                                         the same over TLS; ?ssl_ca_certs=FILE names a private CA
unix://[[user]:password@]/path/to.sock[?db=0]        a unix socket
redis+sentinel://[[user]:password@]host[:port],host[:port]/master[/db]
                                                     the master that Sentinel reports; the password is the server's,
                                                     ?sentinel_password= is for the sentinels
redis+cluster://[[user]:password@]host[:port]        a cluster, by any of its nodes
rediss+sentinel:// and rediss+cluster://             the same over TLS
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from gateway.core.errors import SettingsError
from gateway.store.redis_dial import NamedConnection, NamedTLSConnection, Names

DEADLINE_S = 1.0  # for one exchange, including connecting
# Shares of the deadline after which the driver itself gives up, so that it can still try another node.
_DIAL_SHARE = 0.8  # look-up and connecting, tried twice (redis_dial.py); half of 1 s leaves time for a second node
_ANSWER_SHARE = 0.8  # a script takes well under a millisecond
_SENTINEL_PORT = 26379

Close = Callable[[], Awaitable[None]]


def make_client(url: str, deadline: float = DEADLINE_S) -> tuple[Any, Close]:
    """A client, which connects on first use, and a function that closes it. Raises SettingsError for a wrong URL.

    `deadline`: seconds that the caller allows for each exchange.
    """
    scheme = url.partition("://")[0]
    base, _, topology = scheme.partition("+")
    try:
        if base in ("redis", "rediss") and topology == "sentinel":
            return _sentinel(url, deadline, tls=base == "rediss")
        if base in ("redis", "rediss") and topology == "cluster":
            cluster = RedisCluster.from_url(
                # Not the whole cluster: all keys of a store share one hash tag, so one node's slots are enough.
                base + url[len(scheme) :],
                **_options(deadline),
                require_full_coverage=False,
            )
            return cluster, cluster.aclose
        client = _one_server(url, deadline)
    except ValueError as error:
        raise SettingsError([f"store URL {redacted(url)}: {error}"]) from error
    return client, client.aclose


def _one_server(url: str, deadline: float) -> Any:
    options = {**_options(deadline), **parse_url(url)}
    if "path" in options:
        del options["socket_keepalive"]  # unix sockets do not have this option
    else:
        tls = options.get("connection_class") is SSLConnection
        options |= {"connection_class": NamedTLSConnection if tls else NamedConnection, "names": Names()}
    return Redis.from_pool(ConnectionPool(**options))


def redacted(url: str) -> str:
    """The URL without password and options, for log lines and errors."""
    parts = urlsplit(url)
    _, at, hosts = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{'***@' if at else ''}{hosts}{parts.path}"


def _options(deadline: float) -> dict[str, Any]:
    # No retries in the driver: a write whose answer was lost may have been applied, and only the caller can find out.
    # The driver still detects a stale pooled connection, and reconnects, before it sends anything.
    return {
        "socket_timeout": _ANSWER_SHARE * deadline,
        "socket_connect_timeout": _DIAL_SHARE * deadline,
        "socket_keepalive": True,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # RESP3 costs a HELLO per connection, and brings nothing that is used here
    }


def _sentinel(url: str, deadline: float, *, tls: bool) -> tuple[Any, Close]:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    sentinels = [_host_and_port(text) for text in hosts.split(",")]
    master, _, db = parts.path.strip("/").partition("/")
    if not master:
        raise ValueError("name the master after the sentinels, as in redis+sentinel://host:26379/mymaster")
    # The driver parses options and credentials from a plain URL; its host is never connected to.
    plain = parse_url(
        f"{'rediss' if tls else 'redis'}://{credentials}{'@' if credentials else ''}unused/{db}?{parts.query}"
    )
    options: dict[str, Any] = {**plain, **_options(deadline)}
    options.pop("host", None)
    connection_class = options.pop("connection_class", None)
    sentinel_options = _options(deadline)
    for name in ("username", "password"):
        if f"sentinel_{name}" in options:
            sentinel_options[name] = options.pop(f"sentinel_{name}")
    if connection_class is not None:
        tls_options = {name: value for name, value in options.items() if name.startswith("ssl")}
        options["ssl"] = True
        sentinel_options |= {"ssl": True, **tls_options}
    sentinel = Sentinel(sentinels, sentinel_kwargs=sentinel_options, **options)  # type: ignore[no-untyped-call]
    client = sentinel.master_for(master)

    async def close() -> None:
        await client.aclose()
        for each in sentinel.sentinels:
            await each.aclose()

    return client, close


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is not host:port")
    return unquote(parts.hostname), parts.port or _SENTINEL_PORT

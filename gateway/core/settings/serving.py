"""What clients meet: where the gateway listens, and how long it holds and waits for requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.field import setting


@dataclass(frozen=True)
class Listening:
    """Where the gateway listens, and which proxies, pages and names it takes requests from."""

    host: str = setting("127.0.0.1", "address to listen on", kind="text")
    port: int = setting(8080, "port to listen on; 0 picks a free one", kind="int", low=0, high=65535)
    workers: int = setting(
        1,
        "gateway processes that share the port; more than 1 needs --engine kubernetes and a Redis",
        kind="int",
        low=1,
    )
    worker_port: int = setting(
        0,
        "extra port of worker 1 alone, for /metrics; worker 2 uses the next port, and so on (default: none)",
        kind="int",
        low=0,
        high=65535,
    )
    tls_cert: Path = setting(
        Path(), "certificate for https, PEM, followed by those that issued it; looked at for changes every 5 s",
        kind="path", metavar="FILE",
    )  # fmt: skip
    tls_key: Path = setting(Path(), "private key of --tls-cert, PEM, not encrypted", kind="path", metavar="FILE")
    tls_client_ca: Path = setting(
        Path(), "certificates that issue clients' certificates, PEM; clients without one are then refused",
        kind="path", metavar="FILE",
    )  # fmt: skip
    max_connections: int = setting(
        0,
        "client connections open at once; beyond that the longest idle ones are closed (default: the limit of file"
        " descriptors less a reserve for sandboxes: a quarter of it, at least 256)",
        kind="int",
        low=0,
    )
    allowed_origins: str = setting(
        "",
        "origins of web pages that may use the gateway and read its answers (CORS), comma-separated (its own pages"
        " always may; those of this machine may use it)",
        kind="text",
        metavar="URLS",
    )
    allowed_hosts: str = setting(
        "",
        "host names that requests may use for the gateway, comma-separated, besides this machine's and --host; * allows"
        " any (default: any, unless it listens on loopback)",
        kind="text",
        metavar="NAMES",
    )
    strip_headers: str = setting(
        "x-api-key,api-key,x-auth-request-user,x-auth-request-email,x-auth-request-groups,x-auth-request-access-token,"
        "x-auth-request-preferred-username,x-auth-request-redirect,x-forwarded-access-token,x-forwarded-user,"
        "x-forwarded-email,x-forwarded-groups,x-forwarded-preferred-username,x-amzn-oidc-accesstoken,"
        "x-amzn-oidc-data,x-amzn-oidc-identity,x-goog-iap-jwt-assertion,x-goog-authenticated-user-email,"
        "x-goog-authenticated-user-id,cf-access-jwt-assertion,cf-access-authenticated-user-email,cf-access-client-id,"
        "cf-access-client-secret,remote-user,remote-groups,remote-email,remote-name,x-authentik-jwt,"
        "x-authentik-username,x-authentik-email,x-authentik-groups,x-pomerium-jwt-assertion,x-vouch-user,"
        "x-vouch-idp-accesstoken,x-vouch-idp-idtoken,x-ms-token-aad-access-token,x-ms-token-aad-id-token,"
        "x-ms-client-principal,x-ms-client-principal-id,x-ms-client-principal-name,tailscale-user-login,"
        "tailscale-user-name,x-forwarded-client-cert,ssl-client-cert",
        "request headers that are not forwarded to sandboxes, comma-separated; replaces the default",
        kind="text",
        metavar="NAMES",
    )
    trusted_proxies: str = setting(
        "",
        "addresses and networks of the proxies in front, comma-separated, whose X-Forwarded-* and Forwarded fields say"
        " who the client is and by which name and scheme it came (default: no address is trusted)",
        kind="text",
        metavar="NETWORKS",
    )
    domain: str = setting(
        "",
        "domain below which ports of sessions have host names, https://PORT-SESSION.DOMAIN; no other name below it is"
        " served (default: ports are reached by path only)",
        kind="text",
        metavar="NAME",
    )


@dataclass(frozen=True)
class Waiting:
    """How many requests may wait, and how long each step of an exchange may take."""

    hold_per_session: int = setting(1024, "requests that may wait for one session's sandbox", kind="int", low=1)
    hold_total: int = setting(8192, "requests that may wait for sandboxes in total", kind="int", low=1)
    slots_per_sandbox: int = setting(256, "requests in flight to one sandbox; further ones queue", kind="int", low=1)
    connect_timeout: float = setting(5.0, "timeout for connecting to a sandbox", kind="duration", low=0.001)
    request_head_timeout: float = setting(
        30.0, "timeout for receiving a request's head from a client", kind="duration", low=0.001
    )
    request_idle_timeout: float = setting(
        60.0, "idle timeout of a client that is sending a request body", kind="duration", low=0.001
    )
    client_read_timeout: float = setting(
        300.0, "idle timeout of a client that reads nothing of its response", kind="duration", low=0.001
    )
    response_idle_timeout: float = setting(
        3600.0, "idle timeout of a sandbox that has not finished its response", kind="duration", low=0.001
    )
    request_timeout: float = setting(
        0.0, "timeout for a whole exchange, both directions; 0: no timeout", kind="duration", low=0
    )
    keep_alive_timeout: float = setting(
        75.0, "how long an idle client connection stays open", kind="duration", low=0.001
    )
    shutdown_delay: float = setting(
        1.0,
        "how long after SIGTERM requests are still accepted; readiness fails, and each response closes its connection",
        kind="duration",
        low=0,
    )
    drain_timeout: float = setting(
        30.0, "how long requests in flight may take after shutdown_delay", kind="duration", low=0
    )

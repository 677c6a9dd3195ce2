"""Variables by which tools in a sandbox find the proxy, and whom to trust: of no engine's own."""

from __future__ import annotations

from collections.abc import Mapping

from picod import wire

PROXY = f"http://127.0.0.1:{wire.EGRESS_PORT}"
_LOCAL = "localhost,127.0.0.1,::1"
# ALL_PROXY is the HTTP one too: with a socks5h:// there, httpx raises at once unless a further package is installed.
_NAMED = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY, "NO_PROXY": _LOCAL}
PROXIES: Mapping[str, str] = {
    **_NAMED,
    **{name.lower(): value for name, value in _NAMED.items()},
    # What is refused fails the same way however often it is tried; a connection that breaks is tried once more.
    "PIP_RETRIES": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "npm_config_proxy": PROXY,
    "npm_config_https_proxy": PROXY,
    "npm_config_noproxy": _LOCAL,
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "100",
    "npm_config_update_notifier": "false",
    "npm_config_cache": "/tmp/.npm",  # noqa: S108 - not in the workspace, which is kept
    "NODE_USE_ENV_PROXY": "1",  # Node's own fetch and http, from Node 22.21 and 24.5 on
    "GIT_TERMINAL_PROMPT": "0",  # a repository that wants a password fails at once
}
_TRUSTING = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "DENO_CERT",
)  # fmt: skip


def trust(bundle: str) -> dict[str, str]:
    """The variables that name a file of authorities. `bundle`: its path in the sandbox."""
    return dict.fromkeys(_TRUSTING, bundle)

"""Names of request fields by what becomes of them: they end at this hop, or go on as they came.

Lower case, as ASGI has them.
"""

from __future__ import annotations

HOP_BY_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip

# What proxies say of a request besides X-Forwarded-For, -Host and -Proto. It means nothing to the gateway, yet
# applications behind it believe it, so it comes from a trusted proxy or not at all.
PROXY_FIELDS = frozenset((
    b"x-forwarded-by", b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-scheme", b"x-forwarded-server",
    b"x-forwarded-ssl", b"x-real-ip",
))  # fmt: skip

# What picod makes use of. A CodeInterpreter runs hostile code and gets no other field of a client's, so no credentials.
PLAIN = frozenset((
    b"accept", b"accept-charset", b"accept-encoding", b"accept-language", b"cache-control", b"content-disposition",
    b"content-encoding", b"content-language", b"content-range", b"content-type", b"idempotency-key", b"if-match",
    b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"pragma", b"range",
    b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-protocol", b"sec-websocket-version",
    b"traceparent", b"tracestate", b"user-agent", b"x-wakegate-relayed",
))  # fmt: skip

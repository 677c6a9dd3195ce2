"""Where MCP clients get a token, if an OpenID Connect issuer is trusted: OAuth protected-resource metadata.

A client that is refused with 401 reads the address of this document in WWW-Authenticate, and in the document the
issuers whose tokens are accepted; it then has its user log in there.

Source: RFC 9728, and the MCP specification's part on authorization.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.core.errors import NotFoundError

RESOURCE = "/mcp"
WELL_KNOWN = "/.well-known/oauth-protected-resource"


class ResourceMetadata:
    """The documents of one gateway, at WELL_KNOWN and below it for the path of the resource."""

    def __init__(self, issuers: Sequence[str]) -> None:
        """`issuers`: the URLs of those that the gateway trusts; none: it has no document."""
        self._issuers = issuers

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"get_resource_metadata": self._get, "get_mcp_resource_metadata": self._get}

    def challenge(self, scope: Scope) -> bytes | None:
        """The WWW-Authenticate of a 401 to this request; None: the usual one."""
        if not self._issuers or scope["path"] != RESOURCE:
            return None
        address = URL(scope=scope).replace(path=WELL_KNOWN + RESOURCE, query="")
        return f'Bearer realm="wakegate", resource_metadata="{address}"'.encode("ascii", "replace")

    async def _get(self, request: Request) -> Response:
        if not self._issuers:
            raise NotFoundError("this gateway takes API keys only: no OpenID Connect issuer is set (--oidc-issuer)")
        return JSON({
            "resource": str(request.url.replace(path=RESOURCE, query="")),
            "authorization_servers": list(self._issuers),
            "bearer_methods_supported": ["header"],
            "resource_name": "Wakegate",
        })  # fmt: skip

"""What Open WebUI asks of the server itself: whether it is there, what it can do, what models are told."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.api.open_terminal import description

_FEATURES = {"terminal": True, "notebooks": False, "system": True}


class ServerAPI:
    """The handlers; none needs a sandbox."""

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {
            "open_terminal_health": self._health,
            "open_terminal_config": self._config,
            "open_terminal_system": self._system,
            "open_terminal_openapi": self._openapi,
        }

    async def _health(self, _: Request) -> Response:
        return JSON({"status": "ok"})

    async def _config(self, _: Request) -> Response:
        return JSON({"features": _FEATURES})

    async def _system(self, _: Request) -> Response:
        return JSON({"prompt": description.PROMPT})

    async def _openapi(self, _: Request) -> Response:
        return Response(description.document(), media_type="application/json")

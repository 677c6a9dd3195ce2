"""The console: its page and files for browsers at / and /console/, and the session that it logs in with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import Handler
from gateway.api.http import JSON
from gateway.api.keys import KeysAPI
from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, ConflictError
from gateway.core.identity import current
from gateway.core.units import rfc3339
from gateway.identity.console_sessions import COOKIE, LIFETIME_S

PREFIX = "/console/"
_TYPES = {
    "html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "mjs": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8", "svg": "image/svg+xml", "txt": "text/plain; charset=utf-8",
}  # fmt: skip
# No inline script or style, nothing from elsewhere, no frame around it; frames in it are servers in sandboxes.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    # Pages of sandboxes may have this origin: one that opens the console gets no hold of its window.
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",
    "vary": "accept",
}


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    kind: str
    etag: str


@lru_cache(maxsize=1)
def _files() -> dict[str, _File]:
    """Every file of the console by its path below PREFIX. Read once: no path of a request ever reaches the disk."""
    found: dict[str, _File] = {}
    root = files("gateway.console")
    for folder, prefix in ((root / "static", ""), (root / "vendor", "vendor/")):
        for each in folder.iterdir():
            ending = each.name.rpartition(".")[2]
            if ending in _TYPES and each.is_file():
                data = each.read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
                found[prefix + each.name] = _File(data, _TYPES[ending], etag)
    return found


def takes(scope: Any) -> bool:
    """Whether a request is a browser's for the page, or for one of its files.

    A program that asks / without naming text/html gets what it always got.
    """
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    if scope["path"] == "/":
        return any(name == b"accept" and b"text/html" in value.lower() for name, value in scope["headers"])
    path: str = scope["path"]
    return path.startswith(PREFIX) and path.removeprefix(PREFIX) in _files()


async def serve(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request that `takes` is true for."""
    path: str = scope["path"]
    file = _files()["index.html" if path == "/" else path.removeprefix(PREFIX)]
    headers = {**_HEADERS, "etag": file.etag}
    known = next((value for name, value in scope["headers"] if name == b"if-none-match"), b"")
    if known.decode("latin-1") == file.etag:
        await Response(status_code=304, headers=headers)(scope, receive, send)
        return
    await Response(file.data, headers={**headers, "content-type": file.kind})(scope, receive, send)


class ConsoleAPI:
    """Logging in and out of the console. `keys` has the authenticator, where requests need a key."""

    def __init__(self, keys: KeysAPI, clock: Clock) -> None:
        self._keys, self._clock = keys, clock

    def handlers(self) -> dict[str, Handler]:
        """The handler of each operation of openapi/table.py, by its name."""
        return {"create_console_session": self._login, "delete_console_session": self._logout}

    async def _login(self, request: Request) -> Response:
        """Make a cookie and a token of the API key that the request has."""
        authenticator = self._keys.authenticator
        if authenticator is None:
            raise ConflictError("this gateway asks for no key, so there is nothing to log in to")
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not current().key_id or not credential.strip().startswith("wk_"):
            raise BadRequestError("send an API key as 'Authorization: Bearer wk_...' to log in with it")
        cookie, token = authenticator.open_console(credential.strip())
        document = {"token": token, "expiresAt": rfc3339(self._clock.now() + LIFETIME_S)}
        return JSON(document, 201, {"set-cookie": _cookie(cookie, int(LIFETIME_S)), "cache-control": "no-store"})

    async def _logout(self, _: Request) -> Response:
        return Response(status_code=204, headers={"set-cookie": _cookie("", 0)})


def _cookie(value: str, age: int) -> str:
    return f"{COOKIE}={value}; Path=/; Max-Age={age}; Secure; HttpOnly; SameSite=Strict"

"""Ids and links of a session's files. An id is the path itself, encoded, so that nothing has to be kept."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from gateway.api.tools.results import Original

_PREFIX = "cfile_"


def file_id(path: str) -> str:
    """The id of a path relative to the workspace."""
    return _PREFIX + base64.urlsafe_b64encode(path.encode()).rstrip(b"=").decode()


def path_of(identifier: str) -> str | None:
    """The path again; None if that can be no id of ours, or names what is not below the workspace."""
    if not identifier.startswith(_PREFIX) or len(identifier) > 8192:
        return None
    text = identifier.removeprefix(_PREFIX)
    try:
        path = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    parts = path.split("/")
    return None if "\0" in path or any(part in ("", ".", "..") for part in parts) else path


def content_url(base_url: str, session_id: str, path: str) -> str:
    """The URL of a file's bytes, which needs no session header."""
    return f"{base_url.rstrip('/')}/v1/containers/{session_id}/files/{file_id(path)}/content"


@dataclass(frozen=True, slots=True)
class Link:
    """Where a client finds a picture. `path` is relative to the workspace."""

    url: str
    path: str
    mime: str
    size: int  # bytes

    def document(self, call_id: str) -> dict[str, Any]:
        """One entry of the answer's `files`."""
        return {"tool_call_id": call_id, "url": self.url, "path": self.path, "mime_type": self.mime, "bytes": self.size}

    def line(self) -> str:
        """As text shows it."""
        return f"[{self.mime}, {self.size} bytes: {self.url} , in the workspace as {self.path}]"


def link_of(base_url: str, session_id: str, original: Original) -> Link:
    """Where a picture's file is served."""
    return Link(content_url(base_url, session_id, original.path), original.path, original.mime, original.size)

"""Ids and links of a session's files. An id is the encoded path, so no table of ids has to be stored anywhere."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from gateway.api.tools.results import Original

_PREFIX = "cfile_"


def file_id(path: str) -> str:
    """Encode a path relative to the workspace as a file id."""
    return _PREFIX + base64.urlsafe_b64encode(path.encode()).rstrip(b"=").decode()


def path_of(identifier: str) -> str | None:
    """Decode a file id; None if it is malformed or names nothing below the workspace."""
    # A path has at most 4,096 bytes, which base64 makes 5,462 characters.
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
        """The link as an entry of the answer's `files`."""
        return {"tool_call_id": call_id, "url": self.url, "path": self.path, "mime_type": self.mime, "bytes": self.size}

    def line(self) -> str:
        """The link as a line of text for a model."""
        # A space before the comma: clients that detect URLs in text would take the comma as part of it.
        return f"[{self.mime}, {self.size} bytes: {self.url} , in the workspace as {self.path}]"


def link_of(base_url: str, session_id: str, original: Original) -> Link:
    """The link to the file that a picture was made from."""
    return Link(content_url(base_url, session_id, original.path), original.path, original.mime, original.size)

"""Ids of a session's files, as OpenAI's clients pass them around: the path itself, so that nothing has to be kept."""

from __future__ import annotations

import base64
import binascii

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

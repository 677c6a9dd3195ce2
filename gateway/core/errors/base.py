"""What every error knows, and what of its text clients are told."""

from __future__ import annotations

import math
import re
from typing import Any

# An absolute path of at least two parts, other than those that clients use themselves: API routes, and folders of
# sandboxes, which are the workspace, an agent's files and packages, and a skill.
# Slashes after a word, a colon or a dot do not count, so `http://host/v1/x` and `a/b/c` stay readable.
_CLIENTS_OWN = r"workspace\b|app/|opt/agent/|skill/|v1/|api/|mcp\b"
_HOST_PATH = re.compile(rf"(?<![\w/.:])(?:file://)?/(?!{_CLIENTS_OWN})[^\s'\",;:()/]+/[^\s'\",;:()]*")


class WakegateError(Exception):
    """Base of all errors that the gateway raises itself.

    `status` is an HTTP status, `code` a stable identifier for programs, `retry_after` seconds or None.
    """

    status = 500
    code = "INTERNAL"
    retry_after: float | None = None

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = retry_after

    @property
    def details(self) -> dict[str, Any]:
        """What a native answer's body says for programs, beside the text and the code."""
        return {}

    @property
    def fields(self) -> dict[str, str]:
        """Header fields of its answer, besides Retry-After."""
        return {}

    @property
    def retry_after_seconds(self) -> int | None:
        """The value of Retry-After: whole seconds, at least one, and never earlier than `retry_after`."""
        return None if self.retry_after is None else max(1, math.ceil(self.retry_after))


def public_message(error: WakegateError) -> str:
    """The error's text for clients. A 5xx may name files of the gateway's host; those go to the logs only."""
    return without_host_paths(str(error)) if error.status >= 500 else str(error)


def without_host_paths(text: str) -> str:
    """A text for clients that may quote an error of this host, without the paths in it."""
    return _HOST_PATH.sub("<path>", text)


class UnavailableError(WakegateError):
    """A dependency of this request is unavailable; retrying may succeed."""

    status = 503
    code = "UNAVAILABLE"
    retry_after = 1.0

"""How E2B's and Open Terminal's clients name files of a whole sandbox, as paths of picod's API. Pure.

Their home is /home/user. Here that folder is the session's workspace under another name, so what is in it is reached as
the workspace, which hibernates; anything else as the sandbox's whole file system.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from urllib.parse import quote

HOME = "/home/user"
_WORKSPACES = (HOME, "/workspace")
MAX_PATH_BYTES = 4096


class PathError(ValueError):
    """A path that names nothing; the message is for the client."""


@dataclass(frozen=True, slots=True)
class FilePath:
    """A file of a sandbox. `absolute` is what the client sees; `inner` and `root` are what picod is asked for."""

    absolute: str
    inner: str
    root: str

    @property
    def query(self) -> str:
        """`path=...&root=...`, percent-encoded."""
        return f"path={quote(self.inner, safe='')}&root={self.root}"

    @property
    def target(self) -> str:
        """The request target below /api/files/, with a query."""
        return f"/api/files/{quote(self.inner.lstrip('/'))}?root={self.root}"

    @property
    def name(self) -> str:
        """The last component; `/` for the root."""
        return posixpath.basename(self.absolute) or "/"


def resolve(path: str, base: str = HOME) -> FilePath:
    """The file that a client names, by an absolute path or relative to `base`. Raises PathError."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise PathError("path is not valid UTF-8") from None
    if size > MAX_PATH_BYTES or "\0" in path:
        raise PathError(f"path: expected at most {MAX_PATH_BYTES} bytes, without NUL")
    if path == "~" or path.startswith("~/"):
        path = HOME + path[1:]
    absolute = posixpath.normpath(posixpath.join(base, path))
    absolute = "/" + absolute.lstrip("/")  # normpath keeps two slashes in front, as POSIX allows
    # By the text alone, links are not followed: picod resolves them below the root that is named here.
    for folder in _WORKSPACES:
        if absolute == folder or absolute.startswith(folder + "/"):
            return FilePath(absolute, absolute[len(folder) + 1 :] or ".", "workspace")
    return FilePath(absolute, absolute, "system")

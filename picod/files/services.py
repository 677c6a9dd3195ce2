"""What the handlers of files share in one picod."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from picod.config import PicodConfig
from picod.filesystem.paths import Workspace
from picod.http.request import RequestError

if TYPE_CHECKING:
    from picod.filesystem.system import SystemTree
    from picod.http.request import Request


@dataclass
class FileServices:
    """The workspace and its limits; `watchers` is the number of clients that are following changes."""

    config: PicodConfig
    workspace: Workspace
    watchers: int = 0

    def tree(self, request: Request) -> Workspace:
        """The tree that a request's paths are in: the workspace, or with `?root=system` all of the sandbox.

        Raises RequestError 400 for another value.
        """
        root = request.query("root")
        if root not in ("", "workspace", "system"):
            raise RequestError(400, f"root must be workspace or system, not {root[:40]!r}")
        return self.system if root == "system" else self.workspace

    @cached_property
    def system(self) -> SystemTree:
        """The sandbox's whole file system; opened on first use, as most sessions stay in their workspace."""
        from picod.filesystem.system import SystemTree

        return SystemTree()

"""What the handlers of files share in one picod."""

from __future__ import annotations

from dataclasses import dataclass

from picod.config import PicodConfig
from picod.filesystem.paths import Workspace


@dataclass
class FileServices:
    """The workspace and its limits; `watchers` is the number of clients that are following changes."""

    config: PicodConfig
    workspace: Workspace
    watchers: int = 0

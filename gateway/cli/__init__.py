"""The command `wakegate`: serve, doctor, prune, uninstall, replay.

Imports everything below it, what is slow to load only where a command needs it. Start with `command`.
"""

from __future__ import annotations

from gateway.cli.command import main

__all__ = ["main"]

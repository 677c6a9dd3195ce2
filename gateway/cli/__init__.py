"""The command line `wakegate`: serve, doctor, prune, uninstall, replay.

May import every other package; slow imports are inside the functions that need them. Start with `command`.
"""

from __future__ import annotations

from gateway.cli.command import main

__all__ = ["main"]

"""Whether there is room for more files: the one place that says why not, for all writers of picod's own."""

from __future__ import annotations

import errno
import os


class Room:
    """`full`: why nothing more may be written, for people; "" while there is room."""

    def __init__(self) -> None:
        self.full = ""

    def require(self) -> None:
        """Raise OSError EDQUOT while a volume is over its limit."""
        if self.full:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


room = Room()

"""Change the command line and the environment that /proc shows for this process."""

from __future__ import annotations

import io
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from picod.userside.native import Long, native
else:
    from native import Long, native

# From linux/prctl.h. All fields of the map are set at once, which needs no privilege; single ones would.
_PR_SET_MM, _PR_SET_MM_MAP, _NO_FD = 35, 14, 0xFFFFFFFF


class ProcessMap:
    """Makes /proc/PID/cmdline and environ, which `pkill -f`, ps and psutil read, show those of the script.

    prctl(PR_SET_MM_MAP) needs no privilege as long as it leaves the executable alone. Where the kernel lacks it
    (CONFIG_CHECKPOINT_RESTORE), they go on showing the server's.
    """

    def __init__(self) -> None:
        self._leaked: list[bytes] = []
        self._sbrk, self._prctl = native("sbrk"), native("prctl")
        try:
            with io.FileIO("/proc/self/stat") as file:
                fields = file.read(4096).rpartition(b")")[2].split()
            # start_code, end_code, start_data, end_data, start_brk, start_stack in proc(5); fields[0] is its field 3.
            self._fields = [int(fields[number - 3]) for number in (26, 27, 45, 46, 47, 28)]
        except (OSError, ValueError, IndexError):
            self._fields = []

    def rename(self, argv: Sequence[bytes], environment: Sequence[tuple[bytes, bytes]]) -> None:
        """Show this command line and environment, which stay in memory for the life of the process."""
        if not self._fields:
            return
        shown = (b"".join(word + b"\0" for word in argv), b"".join(k + b"=" + v + b"\0" for k, v in environment))
        self._leaked += shown  # never freed: the kernel reads these addresses as long as the process lives
        head = bytes.__basicsize__ - 1  # of the object, before its bytes
        ends = [value for text in shown for value in (id(text) + head, id(text) + head + len(text))]
        for _ in range(3):  # the map includes the end of the heap: again, if an allocation has moved it meanwhile
            end = self._sbrk(0)
            fields = [*self._fields[:5], end, self._fields[5], *ends, 0]
            packed = b"".join(field.to_bytes(8, sys.byteorder) for field in fields)
            packed += (0).to_bytes(4, sys.byteorder) + _NO_FD.to_bytes(4, sys.byteorder)
            self._prctl(_PR_SET_MM, Long(_PR_SET_MM_MAP), packed, Long(len(packed)), Long(0))
            if self._sbrk(0) == end:
                return

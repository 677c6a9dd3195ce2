"""The descriptors that a process is started with: pipes, or a pseudo-terminal that is all three."""

from __future__ import annotations

import fcntl
import os
import struct
import termios


class Stdio:
    """Both ends, by stream: `ours` are picod's, `theirs` are for the process and are closed once it has them."""

    def __init__(self) -> None:
        self.ours: dict[str, int] = {}
        self.theirs: dict[str, int] = {}

    def open_pipes(self, *, stdin: bool) -> None:
        """A pipe for `stdout` and `stderr`, and for `stdin` if it is wanted. Raises OSError."""
        for stream in ("stdout", "stderr"):
            self.ours[stream], self.theirs[stream] = os.pipe2(os.O_CLOEXEC)
        if stdin:
            self.theirs["stdin"], self.ours["stdin"] = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.ours["stdin"], False)

    def open_terminal(self, cols: int, rows: int) -> None:
        """A pseudo-terminal of that size; its output is the stream `pty`. Raises OSError."""
        self.ours["stdin"], terminal = os.openpty()
        # Under one name, though the process has it as stdout and stderr too: it is to be closed once.
        self.theirs["stdin"] = terminal
        set_size(terminal, cols, rows)
        self.ours["pty"] = os.dup(self.ours["stdin"])  # a copy: reading ends and closes apart from writing
        os.set_blocking(self.ours["stdin"], False)

    def output(self, stream: str) -> int:
        """The descriptor that the process writes this stream to; a terminal takes all of them."""
        return self.theirs.get(stream, self.theirs.get("stdin", -1))

    def close_ours(self) -> None:
        """Where the process could not be started."""
        for fd in self.ours.values():
            os.close(fd)
        self.ours.clear()

    def close_theirs(self) -> None:
        """What picod keeps open of the process's ends would keep a reader from ever seeing the end."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs.clear()


def set_size(fd: int, cols: int, rows: int) -> None:
    """Tell a pseudo-terminal the size of its window."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

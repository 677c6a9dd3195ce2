"""`wakegate serve` with mines in its seams: it kills itself or others, or fills its disk, at the n-th step from now.

A step is the moment before, or after, a call on the store, its ledger, the keeper or the provider that changes
something. The product knows nothing of it: parts are wrapped where interfaces.py puts the seams.

    kill -USR1 PID    reads what is to be done, and n, from the file STATE_DIR/../NAME.mine and arms: "kill n" itself,
                      "sandboxes n" all of them, "redis n PID" the server of its store, "fill n" its disk
    kill -USR2 PID    disarms, and empties the disk again; the file then says how many steps were left
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gateway.build
from gateway.app.gateway import Engine, Gateway
from gateway.cli import main
from gateway.core.settings import Settings
from gateway.sandbox.signing_keys import KeyRing

# Reads change nothing, and beats come at any time: mines on them would make the same n mean different things.
_VERBS = frozenset(
    ("put", "delete", "keep", "park", "restore", "rollback", "checkpoint", "claim", "release", "reserve", "settle")
)
_PIECES = (1 << 20, 4096)  # how a disk is filled: first by megabytes, then by single blocks


class Mine:
    """Counts steps down once armed; the last one does what it was armed with."""

    def __init__(self, state: Path, provider: Any) -> None:
        self._provider = provider
        self._order = Path(f"{state}.mine")
        Path(f"{state}.pid").write_text(str(os.getpid()))  # where bubblewrap gives it a disk it is not the child
        self._filler = state / "filler"
        self._act: Callable[[], None] = lambda: None
        self.left = 0

    def arm(self) -> None:
        """Read what is to be done, and when."""
        what, steps, *more = self._order.read_text().split()
        self._act = {
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "redis": lambda: os.kill(int(more[0]), signal.SIGKILL),
            "sandboxes": self.end_sandboxes,
            "fill": self.fill,
        }[what]
        self.left = int(steps)

    def disarm(self) -> None:
        """Undo it, and leave a word of whether it was reached."""
        left, self.left = self.left, 0
        self._filler.unlink(missing_ok=True)
        self._order.write_text(f"left {left}")

    def step(self) -> None:
        """One step."""
        if self.left > 0:
            self.left -= 1
            if self.left == 0:
                self._act()

    def end_sandboxes(self) -> None:
        """Kill the outermost process of each, warm ones too; the engine hears of it later."""
        for sandbox in self._provider._registry.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(sandbox.process.pid, signal.SIGKILL)

    def fill(self) -> None:
        """Take all that the disk of the state directory has left."""
        with open(self._filler, "wb") as file:
            size = 0
            for piece in _PIECES:
                try:
                    while True:
                        os.posix_fallocate(file.fileno(), size, piece)
                        size += piece
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise


class Mined:
    """A part with a mine before and after each call that changes something."""

    def __init__(self, part: Any, mine: Mine) -> None:
        self._part = part
        self._mine = mine

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._part, name)
        if name == "quotas":
            return Mined(attribute, self._mine)
        if name not in _VERBS or not inspect.iscoroutinefunction(attribute):
            return attribute

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._mine.step()
            answer = await attribute(*args, **kwargs)
            self._mine.step()
            return answer

        return call


async def build_mined(settings: Settings) -> Gateway:
    """What gateway.build.build makes, with the same parts behind mines."""
    plain = await _build(settings)
    mine = Mine(settings.state_dir, plain.provider)
    signal.signal(signal.SIGUSR1, lambda *_: mine.arm())
    signal.signal(signal.SIGUSR2, lambda *_: mine.disarm())
    keys = KeyRing(settings.state_dir / "keys", settings.token_algorithm)
    keys.open()
    # Any: a Mined has the methods of the part behind it, which no type says.
    provider: Any = Mined(plain.provider, mine)
    keeper: Any = Mined(plain.keeper, mine)
    store: Any = Mined(plain.store, mine)
    return Gateway(
        settings,
        Engine(provider=provider, keeper=keeper, keys=keys, summary=plain.engine.summary),
        runtimes=plain.catalog.all(),
        store=store,
        clock=plain.clock,
        shared=plain.sessions.records.shared,
        me=plain.sessions.membership.me,
    )


_build = gateway.build.build

if __name__ == "__main__":
    with mock.patch.object(gateway.build, "build", build_mined):
        raise SystemExit(main(sys.argv[1:]))

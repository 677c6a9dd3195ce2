"""`wakegate serve` with mines in its seams: a gateway that can be told to kill -9 itself at the n-th step from now.

A step is the moment before, or after, a call on the store, the keeper or the provider that changes something. The
product knows nothing of it: parts are wrapped where interfaces.py puts the seams.

    kill -USR1 PID    reads n from the file STATE_DIR/../NAME.mine and arms
"""

from __future__ import annotations

import inspect
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import gateway.build
from gateway.app.gateway import Gateway
from gateway.cli import main
from gateway.core.settings import Settings
from gateway.sandbox.signing_keys import KeyRing

# Reads change nothing, and beats come at any time: mines on them would make the same n mean different things.
_VERBS = frozenset(("put", "delete", "keep", "restore", "rollback", "checkpoint", "claim", "release"))


class Mine:
    """Counts steps down once armed."""

    def __init__(self) -> None:
        self.left: int | None = None

    def step(self) -> None:
        """One step; the last one kills."""
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Mined:
    """A part with a mine before and after each call that changes something."""

    def __init__(self, part: Any, mine: Mine) -> None:
        self._part = part
        self._mine = mine

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._part, name)
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
    mine = Mine()
    file = Path(f"{settings.state_dir}.mine")
    signal.signal(signal.SIGUSR1, lambda *_: setattr(mine, "left", int(file.read_text())))
    keys = KeyRing(settings.state_dir / "keys", settings.token_algorithm)
    keys.open()
    parts: dict[str, Any] = {
        "store": Mined(plain.store, mine), "provider": Mined(plain.provider, mine), "keeper": Mined(plain.keeper, mine)
    }  # fmt: skip
    return Gateway(
        settings,
        runtimes=plain.catalog.all(),
        shared=plain.sessions.records.shared,
        me=plain.sessions.membership.me,
        keys=keys,
        clock=plain.clock,
        engine_summary=plain.engine_summary,
        **parts,
    )


_build = gateway.build.build

if __name__ == "__main__":
    with mock.patch.object(gateway.build, "build", build_mined):
        raise SystemExit(main(sys.argv[1:]))

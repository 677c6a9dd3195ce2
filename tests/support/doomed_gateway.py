"""A stand-in for a gateway that is about to be killed: claims a sandbox, starts a stubborn process in it, tells, waits.

Arguments: folder, isolation, a word that marks the stubborn process.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway.core.model import SessionId
from tests.support.local_engine import KEY, execute, filled, runtime, serving


async def main(folder: Path, isolation: str, word: str) -> None:
    """Start a provider and a command in a sandbox, then wait for ever to be killed."""
    async with serving(
        folder, runtime(warm=2), isolation="process" if isolation == "process" else "bubblewrap"
    ) as provider:
        await filled(provider)
        sandbox = await provider.claim(KEY, SessionId("doomed"))
        # Leaves its session and process group, and holds none of picod's pipes.
        await execute(
            sandbox, "sh", "-c", f"setsid -f sh -c 'while :; do sleep 1; done' {word} </dev/null >/dev/null 2>&1"
        )
        # The refill as well: of a start that is under way bwrap itself may leave a process, which the next life ends.
        await filled(provider)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))

"""How long a request is held, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.core.errors import ActivationTimeoutError
from tests.support.activator import world
from tests.support.scripted import KEY

VIRTUAL_TIME = True


@pytest.mark.parametrize("fresh", [True, False])
async def test_hold_ends_after_its_time(tmp_path: Path, fresh: bool) -> None:
    """Ten seconds without history; the error says that nothing was sent, and the place is free again."""
    async with world(tmp_path) as w:
        session = await w.lost()
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ActivationTimeoutError, match="was not sent"):
            await (w.reserve(None, KEY) if fresh else w.reserve(session))
        assert loop.time() - began == pytest.approx(10.0, abs=0.1)
        assert w.activator.held == 0

"""A real `python -m picod` on a unix socket, one for each test module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.picod import Executor, picod_process


@pytest.fixture(scope="module")
def picod() -> Iterator[Executor]:
    """A picod that asks for no token."""
    with picod_process("--auth", "none") as executor:
        yield executor

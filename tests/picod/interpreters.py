"""A real picod whose contexts run on the interpreter environment of sandboxes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.picod.conftest import ROOT, Executor, picod_process

SANDBOX_BIN = ROOT / ".venv-sandbox" / "bin"


@contextlib.contextmanager
def interpreter_process(home: Path, *flags: str) -> Iterator[Executor]:
    """A picod whose `python3` is the sandbox environment's and whose HOME is `home`."""
    env = {"PATH": f"{SANDBOX_BIN}:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
    with picod_process("--auth", "none", *flags, environ={"PICOD_COMMAND_ENV": json.dumps(env)}) as executor:
        yield executor


def run_code(picod: Executor, code: str, **fields: Any) -> dict[str, Any]:
    """Run code and return its 200 answer."""
    reply = picod.client.post("/api/run_code", json={"code": code, **fields})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer

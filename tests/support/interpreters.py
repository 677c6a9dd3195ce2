"""A real picod whose contexts run on the interpreter environment of sandboxes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.support.picod import ROOT, Executor, picod_process

SANDBOX_BIN = ROOT / ".venv-sandbox" / "bin"


@contextlib.contextmanager
def interpreter_process(home: Path, *flags: str, path: str = str(SANDBOX_BIN)) -> Iterator[Executor]:
    """A picod whose `python3` is the sandbox environment's (or that in `path`) and whose HOME is `home`."""
    env = {"PATH": f"{path}:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
    with picod_process("--auth", "none", *flags, environ={"PICOD_COMMAND_ENV": json.dumps(env)}) as executor:
        yield executor


def run_code(picod: Executor, code: str, **fields: Any) -> dict[str, Any]:
    """Run code and return its 200 answer."""
    reply = picod.client.post("/api/run_code", json={"code": code, **fields})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


class Event(NamedTuple):
    """One server-sent event, its data parsed."""

    id: str
    kind: str
    data: Any


def events(reply: httpx.Response) -> Iterator[Event]:
    """The events of a stream, as they come."""
    fields: dict[str, str] = {}
    for line in reply.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Event(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


def printed(heard: list[Event], stream: str = "stdout") -> str:
    """What the events say was printed."""
    return "".join(event.data["text"] for event in heard if event.kind == stream)

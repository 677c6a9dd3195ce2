"""envd's process service: start, join, list, input, signals, size of the terminal.

Source: github.com/e2b-dev/infra, packages/envd/spec/process/process.proto.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import orjson

from gateway.api.e2b.connect import Batch, ConnectError, bytes_of, number_of, object_of, text_of
from gateway.api.e2b.sandbox import SandboxClient, read_error
from gateway.api.sandbox_json import BadAnswerError, count_of, objects_of
from gateway.api.sandbox_json import text_of as answer_text
from gateway.api.sandbox_paths import HOME, PathError, resolve
from gateway.api.tools.run_events import read_batches
from gateway.core.errors import UpstreamBrokenError

Message = Mapping[str, Any]

KEEPALIVE: Message = {"event": {"keepalive": {}}}
KEEPALIVE_S = 90.0  # of silence, where the client does not ask for another interval
_MAX_KEEPALIVE_S = 300.0
_MAX_ARGUMENTS = 4096
# By name in proto3's JSON, by number from clients that send enums as numbers.
_SIGNALS = {"SIGNAL_SIGKILL": "KILL", "SIGNAL_SIGTERM": "TERM", 9: "KILL", 15: "TERM"}
_STREAMS = ("stdout", "stderr", "pty")


async def start(sandbox: SandboxClient, message: Message, timeout: float | None) -> AsyncGenerator[Batch, None]:
    """Start a process and follow it to its end, or to `timeout` seconds, at which it is killed. Raises ConnectError."""
    spec = object_of(message, "process")
    arguments = spec.get("args") or []
    if (
        not isinstance(arguments, list)
        or len(arguments) > _MAX_ARGUMENTS
        or not all(isinstance(a, str) for a in arguments)
    ):
        raise ConnectError("invalid_argument", "process.args: expected a list of texts")
    command = text_of(spec, "cmd")
    if not command:
        raise ConnectError("invalid_argument", "process.cmd: missing")
    try:
        cwd = resolve(text_of(spec, "cwd") or HOME).absolute
    except PathError as error:
        raise ConnectError("invalid_argument", f"process.cwd: {error}") from None
    # From the weakest on: what the user of E2B's templates has, what the sandbox was created with, what the call says.
    body: dict[str, Any] = {
        "command": [command, *arguments],
        "working_dir": cwd,
        "env": {"HOME": HOME, "USER": "user", "LOGNAME": "user", **sandbox.record.envs, **_envs(spec)},
        # Absent is true, as process.proto has it for SDKs that are older than the field.
        "stdin": message.get("stdin") is not False,
        "name": text_of(message, "tag")[:200],  # picod's own bound
    }
    if message.get("pty") is not None:
        body["terminal"] = _size(object_of(message, "pty"))
    if timeout is not None:
        body["timeout"] = f"{timeout:.3f}s"
    async for batch in _follow(sandbox, "POST", "/api/processes/stream", orjson.dumps(body)):
        yield batch


async def join(sandbox: SandboxClient, message: Message) -> AsyncGenerator[Batch, None]:
    """Follow a process that runs, or ended a moment ago. Raises ConnectError."""
    name = await _selected(sandbox, message)
    async for batch in _follow(sandbox, "GET", f"/api/processes/{name}/stream", b""):
        yield batch


async def list_running(sandbox: SandboxClient, _: Message) -> Message:
    """The processes that run."""
    document = await sandbox.require("GET", "/api/processes")
    return {
        "processes": [_describe(each) for each in objects_of(document, "processes") if each.get("state") == "running"]
    }


async def send_input(sandbox: SandboxClient, message: Message) -> Message:
    """Write to a process's stdin, or to its terminal."""
    await write_input(sandbox, await _selected(sandbox, message), object_of(message, "input"))
    return {}


async def stream_input(sandbox: SandboxClient, messages: AsyncIterator[Message]) -> Message:
    """Write a stream of inputs, the first message of which names the process."""
    name = ""
    async for message in messages:
        if "start" in message:
            name = await _selected(sandbox, object_of(message, "start"))
        elif "data" in message:
            if not name:
                raise ConnectError("invalid_argument", "the first message must be `start`")
            await write_input(sandbox, name, object_of(object_of(message, "data"), "input"))
    return {}


async def write_input(sandbox: SandboxClient, name: str, given: Message) -> None:
    """Write one input. Raises ConnectError."""
    data = bytes_of(given, "pty" if "pty" in given else "stdin")
    if data:
        await sandbox.require("POST", f"/api/processes/{name}/stdin", data)


async def close_stdin(sandbox: SandboxClient, message: Message) -> Message:
    """Let a process read end of file."""
    await sandbox.require("POST", f"/api/processes/{await _selected(sandbox, message)}/stdin?eof=true", b"")
    return {}


async def send_signal(sandbox: SandboxClient, message: Message) -> Message:
    """Process/SendSignal, which knows SIGKILL and SIGTERM only."""
    asked = message.get("signal")
    signal = _SIGNALS.get(asked) if isinstance(asked, str | int) else None
    if signal is None:
        raise ConnectError("invalid_argument", "signal: expected SIGNAL_SIGKILL or SIGNAL_SIGTERM")
    name = await _selected(sandbox, message)
    status, document = await sandbox.call("POST", f"/api/processes/{name}/signal", {"signal": signal})
    if status in (404, 409):  # it ended already: for the client that is the same as a process that is not there
        raise ConnectError("not_found", f"process {name} does not run")
    if status != 200:
        raise ConnectError("internal", answer_text(document, "error", "the signal could not be sent"))
    return {}


async def update(sandbox: SandboxClient, message: Message) -> Message:
    """Set the size of a process's terminal."""
    size = _size(object_of(message, "pty"))
    await sandbox.require("POST", f"/api/processes/{await _selected(sandbox, message)}/resize", size)
    return {}


def read_keepalive(text: str | None) -> float:
    """Keepalive-Ping-Interval in seconds; anything that is no number is the default."""
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 6):
        return KEEPALIVE_S
    return min(max(1.0, float(text)), _MAX_KEEPALIVE_S)


async def _follow(sandbox: SandboxClient, method: str, target: str, body: bytes) -> AsyncIterator[Batch]:
    last: Batch | None = None
    async with sandbox.stream(method, target, body) as (reply, chunks):
        if reply.status != 200:
            raise await read_error(reply, chunks)
        async for events in read_batches(chunks):
            if last is not None:
                continue  # to the answer's end, which comes with the exit: only then can its connection be used again
            messages = [{"event": each} for name, data, _ in events if (each := _event(name, data)) is not None]
            exit_data = next((data for name, data, _ in events if name == "exit"), None)
            if exit_data is None:
                yield Batch(messages)
            elif exit_data.get("timed_out"):
                yield Batch(messages[:-1])
                raise ConnectError("deadline_exceeded", "the process ran longer than its timeout and was killed")
            else:
                last = Batch(messages, is_last=True)
    if last is None:
        raise UpstreamBrokenError("the sandbox's stream ended before the process did")
    yield last


def _event(name: str, data: Mapping[str, Any]) -> Message | None:
    """An event of picod's in E2B's form; None: it has none."""
    if name == "start":
        return {"start": {"pid": count_of(data, "pid")}}
    if name in _STREAMS:
        return {"data": {name: answer_text(data, "data")}}
    return {"end": _end(data)} if name == "exit" else None


async def _selected(sandbox: SandboxClient, message: Message) -> str:
    """The process that a message names, by pid or tag, as picod knows it. Raises ConnectError."""
    selector = object_of(message, "process")
    if "pid" in selector:
        return str(number_of(selector, "pid"))
    tag = text_of(selector, "tag")
    if not tag:
        raise ConnectError("invalid_argument", "process: expected pid or tag")
    document = await sandbox.require("GET", "/api/processes")
    found = [each for each in objects_of(document, "processes") if each.get("name") == tag]
    if not found:
        raise ConnectError("not_found", f"no process has the tag {tag[:64]!r}")
    return str(count_of(found[-1], "pid"))  # the latest, where a tag was used again


def _describe(process: Mapping[str, Any]) -> Message:
    command = process.get("command")
    if not isinstance(command, list) or not command or not all(isinstance(each, str) for each in command):
        raise BadAnswerError("the sandbox's answer: command is not a list of texts")
    # picod tells no process's environment, in which there may be secrets.
    config = {"cmd": command[0], "args": command[1:], "envs": {}, "cwd": answer_text(process, "working_dir", "")}
    tag = answer_text(process, "name", "")
    return {"config": config, "pid": count_of(process, "pid"), **({"tag": tag} if tag else {})}


def _end(data: Mapping[str, Any]) -> Message:
    """How a process ended, in the words of Go's os/exec."""
    signal = answer_text(data, "signal", "")
    if signal:
        # The SDKs show `error` to people as it is, so it is what they know from E2B.
        words = {"SIGKILL": "killed", "SIGTERM": "terminated", "SIGINT": "interrupt"}.get(signal, signal)
        status = f"signal: {words}"
        return {"exitCode": -1, "exited": False, "status": status, "error": status}
    code = count_of(data, "exit_code")
    ended = {"exitCode": code, "exited": True, "status": f"exit status {code}"}
    return {**ended, "error": f"exit status {code}"} if code else ended


def _envs(spec: Message) -> dict[str, str]:
    envs = object_of(spec, "envs")
    for name, value in envs.items():
        if not isinstance(value, str):
            raise ConnectError("invalid_argument", f"process.envs.{name[:64]}: expected text")
    return dict(envs)


def _size(pty: Message) -> dict[str, int]:
    size = object_of(pty, "size")
    sides = {"cols": number_of(size, "cols"), "rows": number_of(size, "rows")}
    if not all(1 <= side <= 4096 for side in sides.values()):
        raise ConnectError("invalid_argument", "pty.size: expected cols and rows from 1 to 4096")
    return sides

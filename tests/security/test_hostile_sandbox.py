"""What a sandbox sends in picod's place: whatever it is, its own session fails and the others are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import orjson
import pytest

from gateway.api.tools import sandbox as tool_sandbox
from tests.support.scripted import Call, Client, OpenScripted, Script, Served, slots_free
from tests.support.tool_calls import chat_call
from tests.support.waiting import LIMIT_S, eventually

ON_UVLOOP = True
MB = 1 << 20
OTHER = "/of/another/session"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
STREAM = HEAD + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
Attack = Callable[[Call], Awaitable[None]]


def sending(*first: bytes, forever: bytes = b"") -> Attack:
    """Send some bytes, then others again and again until the gateway ends the connection."""

    async def attack(call: Call) -> None:
        await call.body()
        with suppress(ConnectionError):
            for data in first:
                call.writer.write(data)
            while forever:
                call.writer.write(forever)
                await call.writer.drain()
        call.writer.close()

    return attack


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(name: str, data: object) -> bytes:
    return chunk(b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data)))


# None of these is a response, so the client is told that its sandbox is broken.
NO_RESPONSE = {
    "endless-status-line": sending(b"HTTP/1.1 200 ", forever=b"x" * 65536),
    "endless-field": sending(HEAD + b"x: ", forever=b"x" * 65536),
    "endless-field-name": sending(HEAD, forever=b"x" * 65536),
    "many-fields": sending(HEAD, forever=b"x: y\r\n" * 1000),
    "endless-continues": sending(forever=b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "two-lengths": sending(HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\n123456"),
    "negative-length": sending(HEAD + b"content-length: -1\r\n\r\n"),
    "enormous-length": sending(HEAD + b"content-length: 99999999999999999999999\r\n\r\nx"),
    "length-and-chunks": sending(HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    "another-protocol": sending(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
    "binary": sending(bytes(range(256)) * 16),
    "nul-in-a-field": sending(HEAD + b"x: a\0b\r\n\r\n"),
    "no-status": sending(b"HTTP/1.1 OK\r\n\r\n"),
    "unasked-upgrade": sending(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
    "nothing": sending(),
}
# These begin as a response; what comes then is cut, or goes on for as long as the client reads.
BAD_BODY = {
    "endless-chunks": sending(CHUNKED, forever=chunk(b"x" * 65536)),
    "endless-body": sending(HEAD + b"connection: close\r\n\r\n", forever=b"x" * 65536),
    "endless-trailer": sending(CHUNKED + b"0\r\nx: ", forever=b"x" * 65536),
    "many-trailers": sending(CHUNKED + b"0\r\n", forever=b"x: y\r\n" * 1000),
    "endless-chunk-extension": sending(CHUNKED + b"1;", forever=b"x" * 65536),
    "enormous-chunk": sending(CHUNKED + b"ffffffffffffffffffffffff\r\n"),
    "chunk-without-a-size": sending(CHUNKED + b"zz\r\n"),
    "less-than-its-length": sending(HEAD + b"content-length: 1000\r\n\r\nx"),
    "endless-small-chunks": sending(CHUNKED, forever=chunk(b"x") * 1000),
}
# Answers to code that a model runs.
STREAMS = {
    "endless-line": sending(STREAM, forever=chunk(b"x" * 65536)),
    "endless-output": sending(STREAM, forever=event("stdout", {"text": "x" * 65536})),
    "endless-output-in-pieces": sending(STREAM, forever=event("stdout", {"text": "x"}) * 1000),
    "endless-results": sending(STREAM, forever=event("result", {"data": {"text/plain": "x" * 65536}})),
    "endless-comments": sending(STREAM, forever=chunk(b": still here\n\n") * 1000),
    "endless-empty-lines": sending(STREAM, forever=chunk(b"\n" * 65536)),
    "no-json": sending(STREAM + chunk(b"event: stdout\ndata: {\n\n")),
    "deep-json": sending(STREAM + chunk(b"event: result\ndata: " + b"[" * 200_000 + b"\n\n")),
    "another-type": sending(STREAM + event("result", [[]]) + event("exit", {})),
    "fields-of-another-type": sending(STREAM + event("stdout", {"text": {"a": []}}) + event("exit", {}) + chunk(b"")),
    "no-end": sending(STREAM + event("stdout", {"text": "a"}) + b"0\r\n\r\n"),
    "text-that-is-not-utf-8": sending(STREAM + chunk(b'event: stdout\ndata: {"text":"\xff\xfe"}\n\n')),
    "json-that-never-ends": sending(
        HEAD + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n", forever=chunk(b"[" * 65536)
    ),
}


def against(attack: Attack) -> Script:
    """One sandbox is hostile; the other one answers as it should."""

    async def script(call: Call) -> None:
        if call.request.path == OTHER:
            await call.body()
            await call.reply(b"well")
        else:
            await attack(call)

    return script


async def others_are_answered(gateway: Served, session: str, attacked: asyncio.Task[None]) -> None:
    """Ask for another session until the attack is over, and at least some times. Each answer is waited for LIMIT_S."""
    client = await gateway.connect()
    asked = 0
    while asked < 20 or not attacked.done():
        answer = await client.ask(f"GET {OTHER} HTTP/1.1\nhost: h\nx-session-id: {session}")
        assert (answer.status, answer.body) == (200, b"well")
        asked += 1
        await asyncio.sleep(0)
    await attacked


REQUESTS = {
    "files": "GET /api/files/x HTTP/1.1\nhost: h\nx-session-id: {}\n\n",
    "execute": "POST /api/execute HTTP/1.1\nhost: h\nx-session-id: {}\ncontent-length: 2\n\n{{}}",
}


async def status_line(client: Client) -> bytes:
    async with asyncio.timeout(LIMIT_S):
        return await client.reader.readline()


@pytest.mark.parametrize("request_text", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("attack", NO_RESPONSE.values(), ids=NO_RESPONSE)
async def test_malformed_response_is_a_bad_gateway(
    open_gateway: OpenScripted, attack: Attack, request_text: str
) -> None:
    """After a bounded number of bytes, also when they would never end; other sessions go on."""
    gateway, _ = await open_gateway(against(attack))
    hostile, other = await gateway.session(), await gateway.session()

    async def attacked() -> None:
        client = await gateway.connect()
        await client.send(request_text.format(hostile))
        assert (await client.answer()).status == 502

    async with asyncio.timeout(LIMIT_S):
        await others_are_answered(gateway, other, asyncio.create_task(attacked()))
    await eventually(lambda: slots_free(gateway), "the hostile session's slot is given back")


@pytest.mark.parametrize("attack", BAD_BODY.values(), ids=BAD_BODY)
async def test_bad_body_harms_its_reader_only(open_gateway: OpenScripted, attack: Attack) -> None:
    """It is cut, or comes for as long as its client reads; other sessions go on, and no slot is kept."""
    gateway, _ = await open_gateway(against(attack))
    hostile, other = await gateway.session(), await gateway.session()

    async def attacked() -> None:
        client = await gateway.connect()
        await client.send(REQUESTS["files"].format(hostile))
        received = 0
        while received < 4 * MB and (data := await client.reader.read(65536)):
            received += len(data)
        client.abort()

    async with asyncio.timeout(LIMIT_S):
        await others_are_answered(gateway, other, asyncio.create_task(attacked()))
    await eventually(lambda: slots_free(gateway), "the hostile session's slot is given back")


@pytest.mark.parametrize("attack", STREAMS.values(), ids=STREAMS)
async def test_hostile_answer_to_code_is_an_error_for_the_model(
    open_gateway: OpenScripted, attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message of bounded size, at the latest when the call's time is over; other sessions go on."""
    monkeypatch.setattr(tool_sandbox, "_GRACE_S", 0.5)
    gateway, _ = await open_gateway(against(attack))
    hostile, other = await gateway.session(), await gateway.session()
    body = {"tool_calls": [chat_call("c1", "run_python", code="1", timeout=1)]}

    async def attacked() -> None:
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=LIMIT_S) as client:
            answer = await client.post("/v1/tool_calls", json=body, headers={"x-session-id": hostile})
        assert answer.status_code in (200, 502, 504), answer.text[:300]
        assert len(answer.content) < MB
        if answer.status_code == 200:
            (message,) = answer.json()["messages"]
            assert message["tool_call_id"] == "c1"

    async with asyncio.timeout(LIMIT_S):
        await others_are_answered(gateway, other, asyncio.create_task(attacked()))
    await eventually(lambda: slots_free(gateway), "the hostile session's slot is given back")

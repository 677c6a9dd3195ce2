"""Spans, as an OTLP receiver gets them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from gateway.core.errors import SettingsError
from gateway.core.settings import Settings
from gateway.core.settings_load import load
from gateway.testing import ScriptedProvider, scripted_gateway
from tests.support.scripted import KEY, OpenScripted
from tests.support.waiting import eventually

ON_UVLOOP = True


class Receiver:
    """An OTLP/HTTP receiver: a real server, which keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        receiver.spans += scope.spans
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Do not log requests to stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, name: str) -> Span:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that ends with the test."""
    one = Receiver()
    yield one
    one.close()


def attributes_of(span: Span) -> dict[str, object]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_request_is_a_span_with_its_stages_below_the_callers(
    open_gateway: OpenScripted, receiver: Receiver
) -> None:
    """The caller's trace goes on through the gateway to the sandbox; a new session's stages are spans of their own."""
    gateway, sandbox = await open_gateway(otlp_endpoint=receiver.url)
    client = await gateway.connect()
    trace, parent = "4" * 32, "7" * 16
    head = f"GET /a HTTP/1.1\nhost: a\ntraceparent: 00-{trace}-{parent}-01\nx-request-id: one"
    session = (await client.ask(f"{head}\nx-wakegate-runtime: {KEY.name}")).get("x-session-id")
    await client.ask(f"POST /b HTTP/1.1\nhost: a\ncontent-length: 2\nx-session-id: {session}", b"hi")
    assert gateway.gateway.tracing is not None
    await asyncio.to_thread(gateway.gateway.tracing.close)
    await eventually(lambda: len(receiver.spans) >= 3, "the spans arrive")
    first, second = receiver.named(f"GET {KEY}"), receiver.named(f"POST {KEY}")
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (trace, parent)
    assert second.trace_id.hex() != trace
    assert not second.parent_span_id
    sent = [(request.get("traceparent") or "").rpartition("-")[0] for request in sandbox.requests]
    assert sent == [f"00-{span.trace_id.hex()}-{span.span_id.hex()}" for span in (first, second)]
    told = attributes_of(first)
    assert (told["http.response.status_code"], told["wakegate.start"], told["wakegate.session"]) == (
        200,
        "warm",
        session,
    )
    assert (told["wakegate.request_id"], told["url.path"]) == ("one", "/a")
    stages = [span for span in receiver.spans if span.parent_span_id == first.span_id]
    assert {"connect", "first_byte"} <= {span.name for span in stages}
    for span in stages:
        assert first.start_time_unix_nano <= span.end_time_unix_nano <= first.end_time_unix_nano


async def test_failed_request_is_a_span_in_error(open_gateway: OpenScripted, receiver: Receiver) -> None:
    """5xx of ours is an error of the span; a 404 is the caller's affair."""
    gateway, _ = await open_gateway(lambda call: _abort(call), otlp_endpoint=receiver.url)
    session = await gateway.session()
    await gateway.ask(f"GET /a HTTP/1.1\nhost: a\nx-session-id: {session}")
    await gateway.ask("POST /a HTTP/1.1\nhost: a\ncontent-length: 0\nx-session-id: nobody")
    assert gateway.gateway.tracing is not None
    await asyncio.to_thread(gateway.gateway.tracing.close)
    await eventually(lambda: len(receiver.spans) >= 2, "the spans arrive")
    assert receiver.named("GET").status.code == 2
    assert receiver.named("POST").status.code == 0


async def _abort(call: object) -> None:
    await call.body()  # type: ignore[attr-defined]
    call.abort()  # type: ignore[attr-defined]


async def test_without_an_endpoint_nothing_observes_requests(open_gateway: OpenScripted) -> None:
    """Off means that no record is made, not that one is thrown away."""
    gateway, _ = await open_gateway()
    assert gateway.gateway.observer is None
    assert gateway.gateway.tracing is None


def test_missing_packages_are_reported_at_the_start(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"--otlp-endpoint: .*pip install -e '\.\[otel\]'"):
        scripted_gateway(tmp_path, ScriptedProvider(), otlp_endpoint="http://127.0.0.1:1")  # type: ignore[arg-type]


def test_endpoint_is_a_setting() -> None:
    """The variable WAKEGATE_OTLP_ENDPOINT sets it."""
    settings: Settings = load({}, {"WAKEGATE_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    assert settings.otlp_endpoint == "http://127.0.0.1:4318"

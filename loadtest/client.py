"""A small HTTP/1.1 load generator: closed loop (as fast as answers arrive) or open loop (a constant arrival rate).

    .venv/bin/python -m loadtest.client URL --connections 32 --seconds 5 [--rate 2000] [--header "x-session-id: ..."]

In the open loop a request's time counts from the moment it was due, whether or not a connection was free then:
otherwise a server that stalls would delay the load and look fast (coordinated omission). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from array import array
from collections import deque
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

_TICK_S = 0.001


class Load:
    """The state of one load run and its results. Times are seconds from due to the last byte."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.times = array("d")
        self.errors = 0
        self.idle: deque[Connection] = deque()
        self.due: deque[float] = deque()  # arrivals of the open loop that no connection was free for
        self.closed_loop = True
        self.running = True

    def free(self, connection: Connection) -> None:
        """Use a connection that has received its answer for the next request, or keep it idle."""
        if not self.running:
            return
        if self.closed_loop:
            connection.send(perf_counter())
        # An arrival that had to wait keeps its due time, so the wait counts.
        elif self.due:
            connection.send(self.due.popleft())
        else:
            # First in, first out: all connections are used in turn, as by many clients.
            self.idle.append(connection)

    def arrive(self, at: float) -> None:
        """Send a request of the open loop that is due, or queue it until a connection is free."""
        if self.idle:
            self.idle.popleft().send(at)
        else:
            self.due.append(at)


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._due = 0.0
        self._parser: Any = None
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def send(self, due: float) -> None:
        """Send a request that was due at the time `due`."""
        self._due = due
        # Made with the first request, since httptools keeps its state over the answers of a connection.
        self._parser = self._parser or httptools.HttpResponseParser(self)
        assert self._transport is not None
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        """asyncio: parse a piece of the answer."""
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        """httptools: the head is complete."""
        self._status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        """httptools: the answer is complete; record its time."""
        load = self._load
        # Answers after the end of the run are not counted: how many there are depends on when the clock stopped.
        if load.running:
            load.times.append(perf_counter() - self._due)
            load.errors += self._status >= 400
            load.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: a lost connection is an error while the load runs."""
        if self._load.running:
            self._load.errors += 1


async def generate(url: str, connections: int, seconds: float, rate: float, headers: list[str]) -> dict[str, Any]:
    """Send load to `url`; rate 0 is the closed loop. Returns requests/s, quantiles in milliseconds, errors."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {path} HTTP/1.1", f"host: {parts.netloc}", *headers, "", ""]
    load = Load("\r\n".join(lines).encode())
    load.closed_loop = not rate
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Connection(load), parts.hostname, parts.port or 80))[1]
        for _ in range(connections)
    ]
    began = perf_counter()
    for connection in made:
        load.free(connection)
    if rate:
        # Due times follow from the start, not from the previous request: a late tick sends what it missed at once.
        sent = 0
        while (now := perf_counter()) < began + seconds:
            while sent / rate <= now - began:
                load.arrive(began + sent / rate)
                sent += 1
            # Arrivals within one tick are sent together, up to a millisecond late by the clock; their times still count
            # from due.
            await asyncio.sleep(_TICK_S)
    else:
        await asyncio.sleep(seconds)
    took = perf_counter() - began
    load.running = False
    return summary(load, took, late=len(load.due))


def summary(load: Load, took: float, *, late: int) -> dict[str, Any]:
    """The figures of a run. `late`: arrivals that were never sent, which count as errors."""
    times = sorted(load.times)
    if not times:
        return {"rate": 0.0, "p50": float("nan"), "p99": float("nan"), "errors": load.errors + late, "requests": 0}
    at = {name: times[min(len(times) - 1, int(q * len(times)))] * 1e3 for name, q in (("p50", 0.5), ("p99", 0.99))}
    # Requests that were never sent count as errors: an overloaded server must not look fast by refusing to be loaded.
    return {"rate": len(times) / took, **at, "errors": load.errors + late, "requests": len(times)}


def main() -> None:
    """Run the load that the arguments describe, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=0.0, help="arrivals a second; 0: closed loop")
    parser.add_argument("--header", action="append", default=[])
    args = parser.parse_args()
    print(json.dumps(uvloop.run(generate(args.url, args.connections, args.seconds, args.rate, args.header))))


if __name__ == "__main__":
    main()

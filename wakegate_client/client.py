"""`Client` and `AsyncClient`: the calls, sent with httpx."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from wakegate_client import calls
from wakegate_client.calls import Call, Event, EventReader, UnreachableError
from wakegate_client.types import Caller, CodeResult, Executed, Runtime, Session, Sessions, Tenant

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8080"
# A gateway that answers at all takes a connection in milliseconds; 60 s covers a cold start in a cluster, which a
# create waits for.
_CONNECT_S, _ANSWER_S = 10.0, 60.0
# A command, a transfer or a followed log lasts as long as it lasts: the gateway ends what has hung, by limits that it
# knows.
_STREAM = httpx.Timeout(None, connect=_CONNECT_S)


class _Base:
    """What both have: the address, the key, and how a call becomes a request."""

    def __init__(self, url: str | None = None, key: str | None = None, *, verify: Any = True) -> None:
        """`url` and `key`: WAKEGATE_URL and WAKEGATE_API_KEY where they are None. `verify` as httpx takes it."""
        self.url = (url or os.environ.get("WAKEGATE_URL") or DEFAULT_URL).rstrip("/")
        self.key = key if key is not None else os.environ.get("WAKEGATE_API_KEY", "")
        self._options: dict[str, Any] = {
            "base_url": self.url,
            # An empty key is none: `Bearer ` alone would be refused as malformed where a gateway on loopback takes
            # anybody.
            "headers": {"authorization": f"Bearer {self.key}"} if self.key else {},
            "timeout": httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            "verify": verify,
        }

    def terminal_url(self, session: str, query: str = "") -> str:
        """The address of a session's terminal, a WebSocket; docs/picod-api.md has its frames."""
        return "ws" + self.url.removeprefix("http") + calls.of_session(session, "/terminal") + query

    def port_url(self, session: str, port: int, path: str = "") -> str:
        """The address of a server that listens in a session's sandbox."""
        return f"{self.url}{calls.of_session(session)}/ports/{port}/{path}"

    def _failed(self, error: httpx.HTTPError) -> UnreachableError:
        return UnreachableError(f"{self.url}: {error or type(error).__name__}")

    @staticmethod
    def _sent(call: Call[Any]) -> dict[str, Any]:
        return {**call.options(), **({"timeout": _STREAM} if call.slow else {})}


class Client(_Base):
    """A client that blocks. Every method raises APIError for a refusal, UnreachableError where nothing answers."""

    def __init__(self, url: str | None = None, key: str | None = None, *, verify: Any = True) -> None:
        """As `_Base`."""
        super().__init__(url, key, verify=verify)
        self._http = httpx.Client(**self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Send any call of `wakegate_client.calls`."""
        try:
            response = self._http.request(call.method, call.path, **self._sent(call))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        calls.check(response)
        return call.read(response)

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """The answer while it comes. Options as httpx takes them."""
        try:
            with self._http.stream(method, path, **{"timeout": _STREAM, **options}) as response:
                if not response.is_success:
                    response.read()
                    calls.check(response)
                yield response
        except httpx.HTTPError as error:
            raise self._failed(error) from error

    @contextmanager
    def events(self, method: str, path: str, session: str = "", **options: Any) -> Iterator[Iterator[Event]]:
        """The server-sent events of an answer, as they come."""
        headers = {**({"x-session-id": session} if session else {}), **options.pop("headers", {})}
        with self.stream(method, path, headers=headers, **options) as response:
            reader = EventReader()
            yield (event for line in response.iter_lines() for event in reader.feed(line))

    def create_session(
        self, runtime: str | None = None, *, ttl: str | None = None, idle_timeout: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Session:  # fmt: skip
        """Make a session; without a runtime, of the built-in one or the only one."""
        fields = {"runtime": runtime, "ttl": ttl, "idleTimeout": idle_timeout, "metadata": metadata}
        return self.send(calls.create_session(**fields))

    def list_sessions(self, **filters: Any) -> Iterator[Session]:
        """All sessions that the key sees, newest first, page by page. Filters as in docs/http-api.md."""
        while True:
            page: Sessions = self.send(calls.list_sessions(filters))
            yield from page["sessions"]
            if not page["next"]:
                return
            # A cursor and not a page number: sessions are made and end between two pages, and none is then missed or
            # seen twice.
            filters["after"] = page["next"]

    def get_session(self, session: str) -> Session:
        """A session by its id."""
        return self.send(calls.get_session(session))

    def update_session(self, session: str, **fields: Any) -> Session:
        """Change ttl, idleTimeout, metadata or resources."""
        return self.send(calls.update_session(session, fields))

    def resize(
        self, session: str, *, cpu: str | float | None = None, memory: str | int | None = None,
        processes: int | None = None,
    ) -> Session:  # fmt: skip
        """Change how much of the machine its sandbox may use, while it runs: cores, bytes such as "2Gi", processes.

        Without any of them it has what its runtime has again.
        """
        return self.send(calls.resize(session, {"cpu": cpu, "memory": memory, "processes": processes}))

    def end_session(self, session: str) -> None:
        """End a session; its files are gone."""
        self.send(calls.end_session(session))

    def hibernate(self, session: str) -> Session:
        """Take its sandbox away and keep its files and variables."""
        return self.send(calls.hibernate(session))

    def wake(self, session: str) -> Session:
        """Give it a sandbox ahead of need."""
        return self.send(calls.wake(session))

    def execute(self, session: str, command: Sequence[str], **fields: Any) -> Executed:
        """Run a command to its end: `timeout`, `working_dir`, `env`."""
        return self.send(calls.execute(session, command, fields))

    def run_code(self, session: str, code: str, **fields: Any) -> CodeResult:
        """Run code in a context that keeps its variables: `language`, `context_id`, `timeout`."""
        return self.send(calls.run_code(session, code, fields))

    def read_file(self, session: str, path: str) -> bytes:
        """The whole of a file."""
        return self.send(calls.read_file(session, path))

    def write_file(self, session: str, path: str, content: Any) -> dict[str, Any]:
        """Write a file: bytes, or an iterable of them."""
        return self.send(calls.write_file(session, path, content))

    def runtimes(self) -> list[Runtime]:
        """Runtimes and their warm pools."""
        return self.send(calls.runtimes())

    def autoscaler(self) -> dict[str, Any]:
        """Why each warm pool has the size that it has."""
        return self.send(calls.autoscaler())

    def usage(self, **params: Any) -> dict[str, Any]:
        """What was used and what it costs."""
        return self.send(calls.usage(params))

    def caller(self) -> Caller:
        """Who the key stands for."""
        return self.send(calls.caller())

    def tenants(self) -> list[Tenant]:
        """All tenants."""
        return self.send(calls.tenants())


class AsyncClient(_Base):
    """The same methods, to be awaited."""

    def __init__(self, url: str | None = None, key: str | None = None, *, verify: Any = True) -> None:
        """As `_Base`."""
        super().__init__(url, key, verify=verify)
        self._http = httpx.AsyncClient(**self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send any call of `wakegate_client.calls`."""
        try:
            response = await self._http.request(call.method, call.path, **self._sent(call))
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        calls.check(response)
        return call.read(response)

    @asynccontextmanager
    async def events(
        self, method: str, path: str, session: str = "", **options: Any
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The server-sent events of an answer, as they come."""
        headers = {**({"x-session-id": session} if session else {}), **options.pop("headers", {})}
        try:
            async with self._http.stream(
                method, path, **{"timeout": _STREAM, "headers": headers, **options}
            ) as response:
                if not response.is_success:
                    await response.aread()
                    calls.check(response)
                reader = EventReader()
                yield (event async for line in response.aiter_lines() for event in reader.feed(line))
        except httpx.HTTPError as error:
            raise self._failed(error) from error

    async def create_session(
        self, runtime: str | None = None, *, ttl: str | None = None, idle_timeout: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Session:  # fmt: skip
        """Make a session; without a runtime, of the built-in one or the only one."""
        fields = {"runtime": runtime, "ttl": ttl, "idleTimeout": idle_timeout, "metadata": metadata}
        return await self.send(calls.create_session(**fields))

    async def list_sessions(self, **filters: Any) -> AsyncIterator[Session]:
        """All sessions that the key sees, newest first, page by page."""
        while True:
            page: Sessions = await self.send(calls.list_sessions(filters))
            for session in page["sessions"]:
                yield session
            if not page["next"]:
                return
            filters["after"] = page["next"]

    async def get_session(self, session: str) -> Session:
        """A session by its id."""
        return await self.send(calls.get_session(session))

    async def update_session(self, session: str, **fields: Any) -> Session:
        """Change ttl, idleTimeout, metadata or resources."""
        return await self.send(calls.update_session(session, fields))

    async def resize(
        self, session: str, *, cpu: str | float | None = None, memory: str | int | None = None,
        processes: int | None = None,
    ) -> Session:  # fmt: skip
        """Change how much of the machine its sandbox may use, while it runs: cores, bytes such as "2Gi", processes.

        Without any of them it has what its runtime has again.
        """
        return await self.send(calls.resize(session, {"cpu": cpu, "memory": memory, "processes": processes}))

    async def end_session(self, session: str) -> None:
        """End a session; its files are gone."""
        await self.send(calls.end_session(session))

    async def hibernate(self, session: str) -> Session:
        """Take its sandbox away and keep its files and variables."""
        return await self.send(calls.hibernate(session))

    async def wake(self, session: str) -> Session:
        """Give it a sandbox ahead of need."""
        return await self.send(calls.wake(session))

    async def execute(self, session: str, command: Sequence[str], **fields: Any) -> Executed:
        """Run a command to its end."""
        return await self.send(calls.execute(session, command, fields))

    async def run_code(self, session: str, code: str, **fields: Any) -> CodeResult:
        """Run code in a context that keeps its variables."""
        return await self.send(calls.run_code(session, code, fields))

    async def read_file(self, session: str, path: str) -> bytes:
        """The whole of a file."""
        return await self.send(calls.read_file(session, path))

    async def write_file(self, session: str, path: str, content: Any) -> dict[str, Any]:
        """Write a file: bytes, or an async iterable of them."""
        return await self.send(calls.write_file(session, path, content))

    async def runtimes(self) -> list[Runtime]:
        """Runtimes and their warm pools."""
        return await self.send(calls.runtimes())

    async def autoscaler(self) -> dict[str, Any]:
        """Why each warm pool has the size that it has."""
        return await self.send(calls.autoscaler())

    async def usage(self, **params: Any) -> dict[str, Any]:
        """What was used and what it costs."""
        return await self.send(calls.usage(params))

    async def caller(self) -> Caller:
        """Who the key stands for."""
        return await self.send(calls.caller())

    async def tenants(self) -> list[Tenant]:
        """All tenants."""
        return await self.send(calls.tenants())

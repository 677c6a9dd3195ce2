"""`AsyncClient`: the calls, sent with httpx, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from wakegate_client import calls
from wakegate_client.answers import Event, EventReader, check
from wakegate_client.base import STREAM, Base
from wakegate_client.calls import Call
from wakegate_client.types import Caller, CodeResult, Executed, Runtime, Session, Sessions, Tenant

T = TypeVar("T")


class AsyncClient(Base):
    """A client that is awaited: `Client`'s methods but `stream`, and `aclose` for `close`. Raises as that does."""

    def __init__(self, url: str | None = None, key: str | None = None, *, verify: Any = True) -> None:
        """`url`, `key` and `verify` as in Base."""
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
        check(response)
        return call.read(response)

    @asynccontextmanager
    async def events(
        self, method: str, path: str, session: str = "", **options: Any
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The server-sent events of an answer, as they come."""
        headers = {**({"x-session-id": calls.quoted(session)} if session else {}), **options.pop("headers", {})}
        try:
            async with self._http.stream(
                method, path, **{"timeout": STREAM, "headers": headers, **options}
            ) as response:
                if not response.is_success:
                    await response.aread()
                    check(response)
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
        """Run a command to its end: `timeout`, `working_dir`, `env`."""
        return await self.send(calls.execute(session, command, fields))

    async def run_code(self, session: str, code: str, **fields: Any) -> CodeResult:
        """Run code in a context that keeps its variables: `language`, `context_id`, `timeout`."""
        return await self.send(calls.run_code(session, code, fields))

    async def read_file(self, session: str, path: str) -> bytes:
        """The whole of a file, in memory; `stream` of the blocking client is for large ones."""
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
        """Who the key stands for: subject, tenant, role."""
        return await self.send(calls.caller())

    async def tenants(self) -> list[Tenant]:
        """All tenants with their limits; for operators."""
        return await self.send(calls.tenants())

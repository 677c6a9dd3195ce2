"""`Client`: the calls, sent with httpx, blocking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from wakegate_client import calls
from wakegate_client.answers import Event, EventReader, check
from wakegate_client.base import STREAM, Base
from wakegate_client.calls import Call
from wakegate_client.types import Caller, CodeResult, Executed, Runtime, Session, Sessions, Tenant

T = TypeVar("T")


class Client(Base):
    """A client that blocks. Every method raises APIError for a refusal, UnreachableError where nothing answers."""

    def __init__(self, url: str | None = None, key: str | None = None, *, verify: Any = True) -> None:
        """`url`, `key` and `verify` as in Base."""
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
        check(response)
        return call.read(response)

    @contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """The answer while it comes. Options as httpx takes them."""
        try:
            with self._http.stream(method, path, **{"timeout": STREAM, **options}) as response:
                if not response.is_success:
                    response.read()
                    check(response)
                yield response
        except httpx.HTTPError as error:
            raise self._failed(error) from error

    @contextmanager
    def events(self, method: str, path: str, session: str = "", **options: Any) -> Iterator[Iterator[Event]]:
        """The server-sent events of an answer, as they come."""
        headers = {**({"x-session-id": calls.quoted(session)} if session else {}), **options.pop("headers", {})}
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
        """The whole of a file, in memory; `stream` is for large ones."""
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
        """Who the key stands for: subject, tenant, role."""
        return self.send(calls.caller())

    def tenants(self) -> list[Tenant]:
        """All tenants with their limits; for operators."""
        return self.send(calls.tenants())

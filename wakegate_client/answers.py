"""Reading answers: refusals, JSON, and server-sent events as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

MAX_EVENT_CHARS = 32 << 20  # of one server-sent event: a picture of 16 MiB in base64, and some


class APIError(Exception):
    """The gateway, or a sandbox, refused. `status` is HTTP's, `code` the API's word for it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class UnreachableError(Exception):
    """There was no answer, or it broke off."""


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event. `data` is the parsed JSON, or the text where it is none."""

    name: str
    data: Any
    id: str = ""


def check(response: httpx.Response) -> None:
    """Raise APIError for an answer (read to its end) that is none of success."""
    if response.is_success:
        return
    # Whatever stands in front of the gateway may have answered, with a page of HTML: then its first words are the
    # message.
    code, message = "", response.text[:2000]
    try:
        document = response.json()
        if isinstance(document, dict):
            code = str(document.get("code", ""))
            message = str(document.get("error") or document.get("message") or "")
    except ValueError:
        pass
    said = message or response.text[:2000] or f"the answer's status is {response.status_code}"
    raise APIError(response.status_code, code, said)


def read_json(response: httpx.Response) -> Any:
    """The JSON of an answer. Raises UnreachableError for another: something else answers at this address."""
    try:
        return response.json()
    except ValueError:
        raise UnreachableError(f"{response.url.host}:{response.url.port} does not answer as Wakegate does") from None


class EventReader:
    """Reads server-sent events (WHATWG HTML 9.2.6) from lines of text."""

    def __init__(self) -> None:
        self._name, self._id, self._data, self._size = "", "", list[str](), 0

    def feed(self, line: str) -> Iterator[Event]:
        """The event that an empty line ends. Raises UnreachableError for one of more than MAX_EVENT_CHARS."""
        if not line:
            if self._data:
                yield Event(self._name or "message", _parsed("\n".join(self._data)), self._id)
            self._name, self._data, self._size = "", [], 0
            return
        name, _, value = line.partition(":")
        # One space only, as the standard has it: a line of code that is indented keeps the rest.
        value = value.removeprefix(" ")
        # Without a bound a sandbox that answers one endless line would fill the memory of whoever reads its output.
        self._size += len(value)
        if self._size > MAX_EVENT_CHARS:
            raise UnreachableError("an event of the answer is too large")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text

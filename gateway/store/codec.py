"""Encodes session records as JSON, the same for every store.

Driven by the fields of the dataclasses, so a field added to `Session` needs no change here. A record written before the
field existed is read with the field's default; a field that only a newer gateway has is ignored. Gateways of two
versions can therefore share a store during an upgrade.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import orjson

from gateway.core.documents import Document
from gateway.core.errors import BadRequestError, StaleWriteError
from gateway.core.model import Session
from gateway.core.quota import Amounts, Resource
from gateway.core.tasks import QueuedTask

_RESOURCES = frozenset(Resource)
# Seconds by which a last use may be ahead of the clock: gateways' clocks differ. What is later was written before the
# clock was set back.
MAX_AHEAD_S = 60.0
_TIMES = ("created_at", "last_active_at", "expires_at", "idle_timeout")


def encode(session: Session) -> bytes:
    """The record as one JSON object, UTF-8.

    Raises BadRequestError for text that is not Unicode (a lone surrogate), and for a time that is not finite, which
    orjson would silently write as null.
    """
    for name in _TIMES:
        value = getattr(session, name)
        if not math.isfinite(value):
            raise BadRequestError(f"session {session.id!r}: {name} is {value}; times must be finite numbers of seconds")
    try:
        return orjson.dumps(session, default=_plain)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"session {session.id!r} cannot be stored: {error}") from error


def decode(record: bytes | str, *, version: int, last_active_at: float) -> Session:
    """The inverse of `encode`. The store keeps version and last activity beside the record, and passes them in.

    Raises ValueError for anything that is not a session record.
    """
    try:
        fields = orjson.loads(record)
        fields["version"] = version
        fields["last_active_at"] = last_active_at
        return typing.cast("Session", _reader(Session)(fields))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a session record: {type(error).__name__}: {error}") from error


def as_stored(part: str) -> bytes:
    """A text as it is within the text of a record, with A to Z as small letters: what a search looks for."""
    return orjson.dumps(part)[1:-1].lower()


def stale_document(document: Document) -> StaleWriteError:
    """The refusal of a document that was written by somebody else since it was read."""
    return StaleWriteError(
        f"{document.kind} {document.name!r} changed since version {document.version} was read; read it again"
    )


def stale_task(task: QueuedTask) -> StaleWriteError:
    """The refusal of a task that was written by somebody else, or deleted, since it was read."""
    return StaleWriteError(f"task {task.id} changed since version {task.version} was read; read it again")


def pack_amounts(amounts: Amounts) -> str:
    """What a session holds, as text that a script of the store reads too: "sandboxes=1 memory=1073741824"."""
    return " ".join(f"{resource.value}={amount}" for resource, amount in amounts.items() if amount)


def unpack_amounts(text: str) -> Amounts:
    """The inverse. Resources that only a newer gateway counts are left out."""
    pairs = (pair.partition("=") for pair in text.split())
    return {Resource(name): int(amount) for name, _, amount in pairs if name in _RESOURCES and amount != "0"}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)  # such as a MappingProxyType
    raise TypeError(f"{type(value).__name__} has no JSON form")


@functools.cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """A function that converts parsed JSON to the type `hint`, built once per type."""
    if isinstance(hint, typing.NewType):
        return _reader(hint.__supertype__)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
        read = _reader(inner)
        return lambda value: None if value is None else read(value)
    if typing.get_origin(hint) is tuple:
        item = _reader(typing.get_args(hint)[0])
        return lambda value: tuple(map(item, value))
    if dataclasses.is_dataclass(hint):
        return _dataclass_reader(typing.cast("type[Any]", hint))
    if isinstance(hint, type) and (issubclass(hint, Enum) or hint is float):
        return hint
    return lambda value: value  # str, int, bool, and plain objects and lists


def _dataclass_reader(cls: type[Any]) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls)
    readers = [(field.name, _reader(hints[field.name])) for field in dataclasses.fields(cls) if field.init]

    def read(value: Any) -> Any:
        return cls(**{name: reader(value[name]) for name, reader in readers if name in value})

    return read

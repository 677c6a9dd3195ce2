"""Records as JSON: what older and newer gateways make of each other's."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import orjson
import pytest
from hypothesis import given

from gateway.core.errors import BadRequestError
from gateway.core.model import Session
from gateway.store import codec
from tests.support.records import T0, session, sessions


def again(record: bytes) -> Session:
    return codec.decode(record, version=0, last_active_at=T0)


@given(sessions)
def test_encoded_record_decodes_to_itself(record: Session) -> None:
    """Holds for any record in any state."""
    assert codec.decode(codec.encode(record), version=0, last_active_at=record.last_active_at) == record


def test_record_of_an_older_gateway_reads_with_defaults() -> None:
    """A field that did not exist when it was written has its default."""
    fields = orjson.loads(codec.encode(session()))
    for name in ("tenant", "metadata", "snapshot_at"):
        del fields[name]

    assert again(orjson.dumps(fields)) == session()


def test_record_of_a_newer_gateway_reads_without_what_is_unknown() -> None:
    """A field that this gateway does not know is left out."""
    fields = orjson.loads(codec.encode(session())) | {"mood": "sleepy"}

    assert again(orjson.dumps(fields)) == session()


def test_any_mapping_is_metadata() -> None:
    """Also one that is not a dict."""
    assert again(codec.encode(session(metadata=MappingProxyType({"a": "b"})))).metadata == {"a": "b"}


@pytest.mark.parametrize("record", [b"", b"null", b"[]", b"{}", b'{"id": 1}', b"\xff"])
def test_malformed_record_is_refused(record: bytes) -> None:
    """One error, whatever is wrong with it."""
    with pytest.raises(ValueError):  # noqa: PT011 — the texts are the JSON parser's and ours, case by case
        again(record)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", ["created_at", "last_active_at", "expires_at", "idle_timeout"])
def test_time_that_is_no_number_is_refused(name: str, value: float) -> None:
    """JSON would make it null; the message names the session and the field."""
    changes: dict[str, Any] = {name: value}
    with pytest.raises(BadRequestError, match=f"'s1': {name} is"):
        codec.encode(session(**changes))

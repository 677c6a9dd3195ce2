"""Which conversation the body of an invocation names."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway.core.errors import BadRequestError

_MAX_CHARS = 256


def conversation_name(body: bytes, path: Sequence[str]) -> str:
    """The name of the conversation in a JSON body, at `path`; empty if the body has none, or is no JSON.

    A number is a name too: 7 and "7" are the same conversation. Raises BadRequestError for what is no name.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value)) > _MAX_CHARS:
        where = ".".join(path)
        raise BadRequestError(f"{where}: expected the name of a conversation, text of at most {_MAX_CHARS} characters")
    return str(value)

"""File names as JSON: Linux names are bytes, and need not be UTF-8. Pure."""

from __future__ import annotations

from urllib.parse import quote_from_bytes


def name_fields(field: str, raw: bytes) -> dict[str, object]:
    """`field` with the name as text; if it is not UTF-8, also `{field}_encoded`, the exact bytes percent-encoded.

    The text has U+FFFD for bytes that are not UTF-8, so two different names may look alike.
    """
    try:
        return {field: raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {field: raw.decode("utf-8", "replace"), f"{field}_encoded": quote_from_bytes(raw)}

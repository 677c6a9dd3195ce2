"""Decodes pages of text files for a model: whole characters only, and a note for every byte that is not text. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_SAMPLE_BYTES = 64 << 10  # that an encoding is guessed from
_MAX_SHARE = 0.1  # of characters beyond ASCII that may be broken in what is still UTF-8
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
         (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """Decoded text, the range of bytes in the file that it covers, and notes on how it was decoded."""

    text: str
    start: int
    end: int
    notes: tuple[str, ...] = ()


def decode_page(data: bytes, offset: int, size: int) -> Page | None:
    """Decode a part of a file of `size` bytes that begins at `offset`. None: it is binary."""
    bom = next((encoding for mark, encoding in _BOMS if offset == 0 and data.startswith(mark)), None)
    if bom in ("utf-16", "utf-32"):
        width = 2 if bom == "utf-16" else 4
        whole = data[: len(data) // width * width]
        text = whole.decode(bom, "backslashreplace")
        return Page(text, offset, offset + len(whole), (f"the encoding is {bom}, by its byte order mark",))
    if b"\0" in data[:8192]:
        return None
    start, end = _borders(data, offset, offset + len(data) < size)
    page = data[start:end]
    try:
        return Page(page.decode("utf-8-sig" if offset == 0 else "utf-8"), offset + start, offset + end)
    except UnicodeDecodeError:
        pass
    broken, beyond = _count_broken(page)
    if broken <= _MAX_SHARE * beyond:
        note = f"{broken} bytes are not UTF-8; they are shown as \\xNN"
        return Page(page.decode("utf-8", "backslashreplace"), offset + start, offset + end, (note,))
    encoding = _guess(data)
    if encoding is None:
        note = f"{broken} bytes are not UTF-8, and no encoding fits; they are shown as \\xNN"
        return Page(data.decode("utf-8", "backslashreplace"), offset, offset + len(data), (note,))
    note = f"the file is not UTF-8; this is read as {encoding}, a guess"
    return Page(data.decode(encoding, "backslashreplace"), offset, offset + len(data), (note,))


def _borders(data: bytes, offset: int, more: bool) -> tuple[int, int]:
    """Where the first whole UTF-8 character begins and the last one ends, at most 3 bytes from the edges.

    A continuation byte is 10xxxxxx; a lead byte's high bits give the character's length, 2 to 4.
    """
    start = 0
    while offset > 0 and start < min(3, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1
    end = len(data)
    for back in range(1, min(3, len(data) - start) + 1) if more else ():
        lead = data[-back]
        if lead & 0xC0 != 0x80:
            length = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
            end = len(data) - back if length > back else end
            break
    return (start, end) if end > start else (0, len(data))


def _count_broken(data: bytes) -> tuple[int, int]:
    """Count bytes that are not UTF-8, and characters beyond ASCII that are. Their ratio decides for UTF-8 or not."""
    text = data.decode("utf-8", "surrogateescape")
    broken = sum("\udc80" <= each <= "\udcff" for each in text)
    return broken, sum(each > "\x7f" for each in text) - broken


def _guess(data: bytes) -> str | None:
    from charset_normalizer import from_bytes  # a tenth of a second to import, and most text is UTF-8

    best = from_bytes(data[:_SAMPLE_BYTES]).best()
    return None if best is None else str(best.encoding)

"""Scales pictures to the limits of their receiver: models refuse large ones, and MCP clients cap an event.

A picture comes from a sandbox, so it is hostile input for a decoder: few formats are accepted, bytes and pixels are
bounded before decoding, and decoding runs in a thread, one picture at a time. Models scale down what is larger than
1568 pixels on the long side (https://docs.anthropic.com/en/docs/build-with-claude/vision), so sending more only costs
time.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.api.tools.results import Image

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_PIXELS = 50_000_000  # of a picture that is decoded: at 4 bytes each in RGBA, 200 MB
MAX_SOURCE_BYTES = 16 << 20
_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/gif": "GIF", "image/webp": "WEBP"}
_JPEG_QUALITIES = (90, 75, 50)  # tried in this order
_SHRINK = 0.8  # of the sides at most, while even the lowest quality is too large

_decoding = asyncio.Semaphore(1)  # two pictures at the bound at once would take 400 MB


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """A receiver's limits: pixels on the long side, bytes as base64 of one picture and of all in an answer."""

    max_side: int
    max_base64_bytes: int
    max_total_bytes: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A picture that fits, or None. `note`: how it was changed or why it is missing; empty if it is unchanged."""

    image: Image | None
    note: str = ""


async def fit(data: bytes, mime: str, max_side: int, max_base64_bytes: int) -> Fitted:
    """Scale a picture to both limits. One that fits already is returned unchanged, if it can be read."""
    if len(data) > MAX_SOURCE_BYTES:
        return Fitted(None, f"it is larger than {MAX_SOURCE_BYTES >> 20} MiB")
    async with _decoding:
        return await asyncio.to_thread(fit_now, data, mime, max_side, max_base64_bytes)


def fit_now(data: bytes, mime: str, max_side: int, max_base64_bytes: int) -> Fitted:
    """The work of `fit`, on the calling thread."""
    from PIL import Image as Pillow  # 40 ms and 10 MB, and most sessions show no picture

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; the bound is ours
            with Pillow.open(io.BytesIO(data), formats=[_FORMATS[mime]]) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    return Fitted(None, f"{width} x {height} pixels are more than {MAX_PIXELS // 1_000_000} million")
                if max(width, height) <= max_side and _base64_size(data) <= max_base64_bytes:
                    # Decoded all the same: a model's provider refuses the whole conversation for a picture that breaks
                    # off behind its head.
                    picture.load()
                    return Fitted(Image(mime, base64.b64encode(data).decode()))
                picture.draft("RGB", (max_side, max_side))  # JPEG only: decodes at about that size, which saves time
                return _scaled(picture, (width, height), max_side, max_base64_bytes)
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions for malformed data
        return Fitted(None, f"it cannot be read as {mime}: {type(error).__name__}")


def _scaled(picture: Picture, size: tuple[int, int], max_side: int, max_base64_bytes: int) -> Fitted:
    """Find the largest version that fits, by smaller sides and by JPEG compression."""
    from PIL import Image as Pillow

    lossless = picture.format != "JPEG"
    pixels = picture.convert("RGBA" if "transparency" in picture.info or "A" in picture.getbands() else "RGB")
    factor = min(1.0, max_side / max(size))
    while True:
        sides = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
        smaller = pixels.resize(sides, Pillow.Resampling.LANCZOS) if sides != pixels.size else pixels
        for mime, data in _encodings(smaller, lossless=lossless):
            if _base64_size(data) <= max_base64_bytes:
                scaled = f"scaled from {size[0]} x {size[1]} to {sides[0]} x {sides[1]} pixels"
                note = "compressed" if sides == size else scaled
                return Fitted(Image(mime, base64.b64encode(data).decode()), note)
        if max(sides) <= 16:
            return Fitted(None, "there is no space left for it in this answer")
        # Bytes grow with the square of a side, so the size at the lowest quality shows how far to shrink: at four times
        # the limit, sqrt(1/4) halves the sides. The 0.8 guarantees progress where that estimate is too optimistic.
        factor *= min(_SHRINK, max(0.2, math.sqrt(max_base64_bytes / _base64_size(data))))


def _encodings(picture: Picture, *, lossless: bool) -> Iterator[tuple[str, bytes]]:
    """(MIME type, bytes) from the best quality to the smallest size. JPEG has no transparency: it becomes white."""
    from PIL import Image as Pillow

    if lossless:
        yield "image/png", _encode(picture, "PNG")
    if picture.mode == "RGBA":
        white = Pillow.new("RGBA", picture.size, "white")
        picture = Pillow.alpha_composite(white, picture).convert("RGB")
    for quality in _JPEG_QUALITIES:
        yield "image/jpeg", _encode(picture, "JPEG", quality=quality)


def _encode(picture: Picture, kind: str, **options: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, kind, **options)
    return written.getvalue()


def _base64_size(data: bytes) -> int:
    return (len(data) + 2) // 3 * 4

"""Pictures fit their receiver, and hostile ones cost no more than any other."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import pytest
from PIL import Image as Pillow

from gateway.api.tools.pictures import MAX_SOURCE_BYTES, fit, fit_now


def encoded(size: tuple[int, int], kind: str = "PNG", *, noise: bool = False, mode: str = "RGB") -> bytes:
    picture = Pillow.effect_noise(size, 100).convert(mode) if noise else Pillow.new(mode, size, "red")
    written = io.BytesIO()
    picture.save(written, kind)
    return written.getvalue()


def size_of(data: str) -> tuple[int, int]:
    with Pillow.open(io.BytesIO(base64.b64decode(data))) as picture:
        return picture.size


def test_picture_that_fits_is_passed_on_as_it_is() -> None:
    """Byte for byte, without a word."""
    data = encoded((800, 600))
    fitted = fit_now(data, "image/png", 1568, 5_000_000)
    assert fitted.note == ""
    assert fitted.image is not None
    assert base64.b64decode(fitted.image.data) == data


@pytest.mark.parametrize(
    ("size", "scaled"), [((2000, 1500), (1568, 1176)), ((100, 3136), (50, 1568)), ((3000, 1), (1568, 1))]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_picture_is_scaled_to_the_long_side(size: tuple[int, int], scaled: tuple[int, int], kind: str) -> None:
    """In its proportions, and it is said from what to what."""
    fitted = fit_now(encoded(size, kind), f"image/{kind.lower()}", 1568, 5_000_000)
    assert fitted.image is not None
    assert size_of(fitted.image.data) == scaled
    assert fitted.note == f"scaled from {size[0]} x {size[1]} to {scaled[0]} x {scaled[1]} pixels"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("most", [300_000, 100_000, 10_000])
def test_picture_is_made_as_small_as_its_receiver_asks(mode: str, most: int) -> None:
    """Noise, which no encoding makes small: by quality, then by size."""
    fitted = fit_now(encoded((500, 500), noise=True, mode=mode), "image/png", 1568, most)
    assert fitted.image is not None
    assert len(fitted.image.data) <= most


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_picture_that_breaks_off_is_not_sent(kind: str) -> None:
    """Its head is well, and it is small enough: a model's provider would refuse the whole conversation for it."""
    data = encoded((300, 300), kind, noise=True)
    assert fit_now(data, f"image/{kind.lower()}", 1568, 5_000_000).image is not None
    fitted = fit_now(data[: len(data) // 2], f"image/{kind.lower()}", 1568, 5_000_000)
    assert fitted.image is None
    assert fitted.note.startswith(f"it cannot be read as image/{kind.lower()}")


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose head promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"hi", b"<svg/>", bomb(60_000, 60_000), bomb(7000, 7200), encoded((2000, 2000))[:300],
     encoded((9, 9), "JPEG"), bomb(0, 5)],
)  # fmt: skip
def test_malformed_or_too_large_picture_is_not_shown(data: bytes) -> None:
    """With the reason, never an exception."""
    fitted = fit_now(data, "image/png", 1568, 5_000_000)
    assert fitted.image is None
    assert fitted.note


async def test_file_that_is_too_large_is_not_decoded() -> None:
    """Whatever it is."""
    assert (await fit(bytes(MAX_SOURCE_BYTES + 1), "image/png", 1568, 5_000_000)).image is None

"""Decoding of images that nobody has vouched for."""

import hashlib
import io
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ablate.errors import UserError
from datamodules.errors import BadSample

# Pillow's own limit: it warns above and refuses above twice this.
MAX_PIXELS = 89_478_485
# File suffix -> Pillow's decoder. Only these decoders are ever tried: Pillow also knows formats that start other
# programs (EPS) or that are hardly ever fuzzed.
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


def decode_image(data: bytes, *, key: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode JPEG, PNG or WebP to RGB, turned upright as its EXIF orientation says.

    Args:
        data: the encoded file.
        key: names the image in errors.
        max_pixels: larger images (width x height) are refused before they are unpacked.

    Raises:
        BadSample: not such an image, damaged, or too large.
    """
    image = _open(data, key, max_pixels, FORMATS.values())
    _load(image, key)
    image = _upright(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def check_image(data: bytes, *, key: str, max_pixels: int = MAX_PIXELS, decode: bool = False) -> str:
    """The format of an image file (a value of `FORMATS`), if its header can be read and its end is there.

    Its pixels are decoded only where the end does not look as it should, or with `decode`.

    Raises:
        BadSample: as `decode_image`.
    """
    image = _open(data, key, max_pixels, FORMATS.values())
    if decode or not _ends_well(data, image.format):
        _load(image, key)
    return str(image.format)


def _ends_well(data: bytes, image_format: str | None) -> bool:
    if image_format == "JPEG":
        return data.endswith(b"\xff\xd9")
    if image_format == "PNG":
        return data[-8:-4] == b"IEND"
    return len(data) == 8 + int.from_bytes(data[4:8], "little")  # RIFF says its length


@dataclass(frozen=True)
class Resize:
    """Makes images smaller: the shortest or longest side becomes `pixels`, the other keeps the proportion (bicubic).

    The format stays: JPEG and WebP are written with `quality` (Pillow's 0 to 95), PNG without loss. Images that are
    small enough already stay as they are, bit for bit.
    """

    side: Literal["shortest", "longest"]
    pixels: int
    quality: int = 90

    @classmethod
    def parse(cls, rule: str) -> "Resize":
        """`shortest=384`, `longest=672,quality=95`.

        Raises:
            UserError: it is no such rule.
        """
        match = re.fullmatch(r"(shortest|longest)=(\d{1,5})(?:,quality=(\d{1,2}))?", rule)
        if not match or not int(match[2]):
            raise UserError(
                f'The rule "{rule}" for resizing is not understood: expected shortest=PIXELS or longest=PIXELS, and '
                "perhaps a quality, such as shortest=384 or longest=672,quality=95."
            )
        return cls(match[1], int(match[2]), int(match[3] or cls.quality))  # type: ignore[arg-type]

    def __call__(self, data: bytes, *, key: str, max_pixels: int = MAX_PIXELS) -> bytes:
        """An image file -> a smaller one of the same format, or the very same bytes.

        Raises:
            BadSample: as `decode_image`.
        """
        image = _open(data, key, max_pixels, FORMATS.values())
        image_format = image.format
        _load(image, key)
        width, height = image.size
        scale = self.pixels / (min(width, height) if self.side == "shortest" else max(width, height))
        if scale >= 1:
            return data
        image = _upright(image)
        if image.mode not in ("L", "RGB", "RGBA") or (image.mode == "RGBA" and image_format == "JPEG"):
            image = image.convert("RGBA" if image.has_transparency_data and image_format != "JPEG" else "RGB")
        size = tuple(max(1, round(side * scale)) for side in image.size)
        file = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(file, image_format, quality=self.quality)
        return file.getvalue()


def gif_to_png(data: bytes, *, key: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """The first frame of a GIF as PNG, without loss.

    Raises:
        BadSample: damaged, or too large.
    """
    image = _open(data, key, max_pixels, ["GIF"])
    _load(image, key)
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    return file.getvalue()


def _open(data: bytes, key: str, max_pixels: int, formats: Iterable[str]) -> Image.Image:
    """Read the header, no pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(set(formats)))
    except UnidentifiedImageError:  # its message names an object in memory
        names = ", ".join(sorted(set(formats)))
        raise BadSample(
            key, f"its image cannot be decoded: it is none of {names}, or its first bytes are damaged"
        ) from None
    except Exception as error:  # Pillow's decoders raise whatever the damage makes them run into
        raise BadSample(key, f"its image cannot be decoded: {error}") from None
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample(key, f"its image has {width} x {height} pixels, more than the {max_pixels} allowed")
    return image


def _load(image: Image.Image, key: str) -> None:
    # A switch of the whole process, and packages turn it on at import: the missing part of a picture would be grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        image.load()
    except Exception as error:  # as above
        raise BadSample(key, f"its image cannot be decoded: {error}") from None


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """`decode_image` of a file, so that evaluation sees the pixels that training sees.

    Raises:
        UserError: there is no such file.
        BadSample: as `decode_image`.
    """
    return decode_image(_read(Path(path)), key=str(path), max_pixels=max_pixels)


def sha256(data: bytes) -> str:
    """What an image is known by in indexes and feature caches: the hash of its encoded bytes."""
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the image {path}: {error.strerror}.") from None


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # broken EXIF is common and says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image

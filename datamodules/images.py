"""Decoding of images that nobody has vouched for."""

import hashlib
import io
from pathlib import Path

from PIL import Image, ImageOps

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
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values())))
        width, height = image.size
        if width * height > max_pixels:
            raise BadSample(key, f"its image has {width} x {height} pixels, more than the {max_pixels} allowed")
        image.load()
    except BadSample:
        raise
    except Exception as error:  # Pillow's decoders raise whatever the damage makes them run into
        raise BadSample(key, f"its image cannot be decoded: {error}") from None
    return _upright(image).convert("RGB")


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


def file_sha256(path: Path | str) -> str:
    """`sha256` of an image file's bytes."""
    return sha256(_read(Path(path)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the image {path}: {error.strerror}.") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF is common and says nothing about the pixels
        return image

"""Decoding of untrusted images."""

import hashlib
import io
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ablate.core.errors import UserError
from ablate.core.filetypes import HEAD_BYTES, identify
from datamodules.errors import BadSample
from datamodules.images.damage import PNG_SIGNATURE, find_damage, without_metadata

# Pillow's own limit: it warns above and refuses above twice this.
MAX_PIXELS = 89_478_485
# File suffix -> Pillow's decoder. Only these decoders are ever tried: Pillow also knows formats that start other
# programs (EPS) or that are hardly ever fuzzed.
FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
# Pillow's formats that `ablate data shard` stores as PNG, as training reads none of them: those that their first bytes
# show beyond doubt and that need no other program.
CONVERTED = ("AVIF", "BMP", "GIF", "JPEG2000", "PPM", "QOI", "SGI", "TIFF")


def decode_image(data: bytes, *, key: str, max_pixels: int = MAX_PIXELS, thorough: bool = False) -> Image.Image:
    """Decode JPEG, PNG or WebP to RGB (`to_rgb`), turned upright as its EXIF orientation says.

    Args:
        data: the encoded file.
        key: names the image in errors.
        max_pixels: larger images (width x height) are refused before they are unpacked.
        thorough: look for all damage that `find_damage` knows, which takes about as long again.

    Raises:
        BadSample: not such an image, damaged, too large, or of values without a known range.
    """
    return to_rgb(_upright(_open(data, key, max_pixels, thorough=thorough)), key=key)


# The version of `to_rgb`'s rule: features of images that were decoded by another are not these.
RGB_RULE = 2


def to_rgb(image: Image.Image, *, key: str = "(in memory)") -> Image.Image:
    """Any image as 8-bit RGB, by one rule for training, resizing, evaluation and generation.

    - Alpha and transparent colours are left out, as `convert("RGB")` does: a transparent pixel has the colour that is
      stored for it. RGBa and La, which are multiplied by alpha, are divided by it first; RGBX loses X.
    - 16 bits (I;16 and its kin) keep the upper 8, as Pillow's decoders do for 16-bit colours; 12 bits of a TIFF too.
    - I has no range of its own. 0 to 255 are taken as 8 bits, 0 to 65535 as 16 bits, and always as 16 bits where the
      file says so; other values are refused.
    - F: 0 to 1 are stretched to 0 to 255, else 0 to 255 are rounded; other values are refused.
    - 1, L, P, PA, CMYK, YCbCr, HSV: Pillow's conversion. Of CMYK and YCCK JPEGs Pillow takes the inks as inverted, with
      Adobe's marker or without, as browsers do. LAB goes to sRGB by its white point D50.

    An RGB image is returned as it is.

    Raises:
        BadSample: values without a known range.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_bytes(image, key)).convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if "transparency" in image.info:  # Pillow would convert it too, with warnings, and fails on some
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _to_bytes(image: Image.Image, key: str) -> np.ndarray:
    """Integers or floats (h, w) -> uint8 (h, w)."""
    values = np.asarray(image)
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    bits = _bits(image)
    if image.mode.startswith("I;16") and _tag(image, 262) == 0:  # a TIFF where 0 is white
        values = (1 << bits) - 1 - values
    if image.mode == "F":
        if low >= 0 and high <= 255:  # false for nan
            return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
    elif low >= 0 and high < 1 << (bits or 16):
        return (values >> (bits - 8 if bits else 8 * (high > 255))).astype(np.uint8)
    raise BadSample(
        key,
        f"its image has mode {image.mode} with values from {low} to {high}: what is black and what white is not known; "
        "convert it to 8 or 16 bits",
    )


def _bits(image: Image.Image) -> int:
    """Bits of a grey value as the file or the mode says it; 0 where neither does."""
    said = _tag(image, 258) or (0,)  # BitsPerSample
    if said[0] in (12, 16):
        return said[0]
    return 16 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else 0


def _tag(image: Image.Image, number: int) -> Any:
    """A tag of a TIFF; None if it, or the TIFF, is not there."""
    return getattr(image, "tag_v2", {}).get(number)


def check_image(data: bytes, *, key: str, max_pixels: int = MAX_PIXELS, decode: bool = False) -> str:
    """The format of an image file (a value of `FORMATS`), if its header can be read and its end is there.

    Its pixels are decoded only where the end does not look as it should, or with `decode`, and then thoroughly.

    Raises:
        BadSample: as `decode_image`.
    """
    image = _open(data, key, max_pixels, load=False)
    if decode or not _ends_well(data, image.format):
        to_rgb(_open(data, key, max_pixels, thorough=True), key=key)
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

    The format stays: JPEG and WebP are written with `quality` (Pillow's 0 to 95), PNG without loss, all of them RGB by
    `to_rgb`, or 8-bit grey. Images that are small enough already stay as they are, bit for bit.
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
                "optionally a quality, such as shortest=384 or longest=672,quality=95."
            )
        return cls(match[1], int(match[2]), int(match[3] or cls.quality))  # type: ignore[arg-type]

    def __call__(self, data: bytes, *, key: str, max_pixels: int = MAX_PIXELS) -> bytes:
        """An image file -> a smaller one of the same format, or the same bytes.

        Raises:
            BadSample: as `decode_image`.
        """
        image = _open(data, key, max_pixels)
        image_format = image.format
        width, height = image.size
        scale = self.pixels / (min(width, height) if self.side == "shortest" else max(width, height))
        if scale >= 1:
            return data
        image = _upright(image)
        if image.mode != "L":
            image = to_rgb(image, key=key)
        width, height = (max(1, round(side * scale)) for side in image.size)
        file = io.BytesIO()
        image.resize((width, height), Image.Resampling.BICUBIC).save(file, image_format, quality=self.quality)
        return file.getvalue()


def is_kept(data: bytes) -> bool:
    """Whether a file is of one of `FORMATS`, by its first bytes."""
    return data.startswith((b"\xff\xd8", PNG_SIGNATURE)) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def to_png(data: bytes, *, key: str, max_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
    """An image of one of the `CONVERTED` formats as PNG: its first frame or page, upright, as `to_rgb` has it.

    Returns:
        the PNG, and the format that it was.

    Raises:
        BadSample: as `decode_image`.
    """
    Image.init()  # AVIF is new in Pillow 11.3
    formats = [name for name in (*FORMATS.values(), *CONVERTED) if name in Image.OPEN]
    image = _open(data, key, max_pixels, formats)
    file = io.BytesIO()
    to_rgb(_upright(image), key=key).save(file, "PNG")
    return file.getvalue(), str(image.format)


def _open(
    data: bytes,
    key: str,
    max_pixels: int,
    formats: Iterable[str] = FORMATS.values(),
    *,
    load: bool = True,
    thorough: bool = False,
) -> Image.Image:
    """Read the header, and the pixels if `load`, unless the file is damaged."""
    try:
        image = _read_header(data, key, max_pixels, formats)
        if load:
            _load(image, key)
    except BadSample:
        if not data.startswith(PNG_SIGNATURE) or (smaller := without_metadata(data)) == data:
            raise
        image = _read_header(smaller, key, max_pixels, formats)
        if load:
            _load(image, key)
    if load:

        def decode(other: bytes) -> Image.Image:
            again = _read_header(other, key, max_pixels, formats)
            _load(again, key)
            return again

        if damage := find_damage(data, image, decode, thorough=thorough):
            raise BadSample(key, f"its image is damaged: {damage}")
    if image.format == "MPO":  # a JPEG followed by more pictures
        image.format = "JPEG"
    return image


def _read_header(data: bytes, key: str, max_pixels: int, formats: Iterable[str]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=sorted(set(formats)))
    except UnidentifiedImageError:  # its message names an object in memory
        names = ", ".join(sorted(set(formats)))
        found = None if is_kept(data) else identify(data[:HEAD_BYTES])  # a kept one is damaged
        it = "it is empty" if not data else f"it is {found.what}" if found else f"it is none of {names}"
        damaged = "" if found or not data else ", or its first bytes are damaged"
        raise BadSample(key, f"its image cannot be decoded: {it}{damaged}") from None
    except Exception as error:  # Pillow's decoders raise many kinds of error on damaged data
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


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS, thorough: bool = False) -> Image.Image:
    """`decode_image` of a file, so that evaluation sees the pixels that training sees.

    Raises:
        UserError: there is no such file.
        BadSample: as `decode_image`.
    """
    return decode_image(_read(Path(path)), key=str(path), max_pixels=max_pixels, thorough=thorough)


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

"""Damage that image decoders pass over without an error.

libjpeg fills what a JPEG lacks with grey, or leaves it blurred, and Pillow hides its warning. Pillow does not compare
the checksums of a PNG's data, and rows that they lack stay black. Where WebP, GIF and the others are cut, their
decoders fail by themselves.

Not found: changed bytes in a JPEG that decode to as many blocks as before, a cut in a JPEG with arithmetic coding
(hardly anything writes it), and one whose lost part is what libjpeg fills in, all grey.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from PIL import Image

# JPEG's markers (ITU-T T.81, Table B.1).
_SOI, _EOI, _SOS, _DRI, _TEM = 0xD8, 0xD9, 0xDA, 0xDD, 0x01
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES, _PROGRESSIVE_FRAMES = frozenset({0xC0, 0xC1, 0xC2}), frozenset({0xC2, 0xCA})
# As good as random, and no marker.
_FILLER = hashlib.sha512(b"no part of the picture").digest().replace(b"\xff", b"\x0f")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_METADATA = frozenset({b"iCCP", b"tEXt", b"zTXt", b"iTXt"})
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples per pixel
# (first column, first row, column step, row step) of the passes of an interlaced PNG.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def find_damage(
    data: bytes, image: Image.Image, decode: Callable[[bytes], Image.Image], *, thorough: bool = False
) -> str:
    """What is wrong with an image file that has been decoded without an error; "" if nothing is.

    Args:
        data: the file.
        image: its pixels as they were decoded, not yet turned or converted.
        decode: decodes another version of the file, in the same way.
        thorough: every JPEG is decoded and every PNG unpacked once more; otherwise only where the last block is all of
            one colour, or the last pixel is zero, as missing ones are, and of progressive JPEGs only the scans are
            counted. Of a PNG, the checksums of texts and other additions are compared too.
    """
    if image.format in ("JPEG", "MPO"):
        return _jpeg_damage(data, image, decode, thorough)
    return _png_damage(data, image, thorough) if image.format == "PNG" else ""


# JPEG


@dataclass
class _Scan:
    """One scan: its components' numbers, the coefficients `first` to `last`, the bit `low` down to which they come."""

    components: list[int]
    first: int
    last: int
    low: int
    interval: int
    restarts: list[int] = field(default_factory=list)  # where its restart markers are
    end: int = 0  # where the marker after its data is


@dataclass
class _Jpeg:
    frame: int = 0
    width: int = 0
    height: int = 0
    factors: dict[int, tuple[int, int]] = field(default_factory=dict)  # component -> horizontal, vertical sampling
    scans: list[_Scan] = field(default_factory=list)


def _jpeg_damage(data: bytes, image: Image.Image, decode: Callable[[bytes], Image.Image], thorough: bool) -> str:
    if not (thorough or image.info.get("progressive") or _ends_flat(image)):
        return ""
    jpeg = _read_jpeg(data)
    if not _is_complete(jpeg):
        return "it ends early: scans are missing"
    if any(not _restarts_fit(jpeg, scan, data) for scan in jpeg.scans):
        return "a part is missing: its restart markers do not count up to its size"
    if jpeg.frame not in _HUFFMAN_FRAMES:  # an arithmetic decoder may look at what follows its data
        return ""
    if (thorough or _ends_flat(image)) and decode(_with_filler(data, jpeg)).tobytes() != image.tobytes():
        return "a part is missing: data end before the picture does"
    return ""


def _read_jpeg(data: bytes) -> _Jpeg:
    """The markers up to the end of the picture. Like libjpeg, it skips what stands between segments."""
    values = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    places = places[(values[places + 1] != 0) & (values[places + 1] != 0xFF)]
    restart = (values[places + 1] & 0xF8) == 0xD0
    restarts, markers = places[restart], places[~restart]
    jpeg, interval, position = _Jpeg(), 0, 2
    while (index := int(np.searchsorted(markers, position))) < len(markers):
        place = int(markers[index])
        marker = data[place + 1]
        if marker == _EOI:
            break
        if marker in (_SOI, _TEM):
            position = place + 2
            continue
        position = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        body = data[place + 4 : position]
        if marker in _FRAMES and len(body) >= 6 + 3 * body[5]:
            jpeg.frame = marker
            jpeg.height, jpeg.width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            jpeg.factors = {body[at]: (body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, 6 + 3 * body[5], 3)}
        elif marker == _DRI:
            interval = int.from_bytes(body[:2], "big")
        elif marker == _SOS and len(body) >= 4 + 2 * body[0]:
            count = body[0]
            first, last, low = body[1 + 2 * count : 4 + 2 * count]
            scan = _Scan(list(body[1 : 1 + 2 * count : 2]), first, last, low & 15, interval)
            after = int(np.searchsorted(markers, position))
            scan.end = int(markers[after]) if after < len(markers) else len(data)
            scan.restarts = restarts[slice(*np.searchsorted(restarts, (position, scan.end)))].tolist()
            jpeg.scans.append(scan)
            position = scan.end
    return jpeg


def _is_complete(jpeg: _Jpeg) -> bool:
    """Whether the scans bring every coefficient of every component down to its last bit."""
    missing = {component: np.ones(64, bool) for component in jpeg.factors}
    for scan in jpeg.scans:
        if scan.low == 0 or jpeg.frame not in _PROGRESSIVE_FRAMES:
            for component in scan.components:
                missing.get(component, np.zeros(64, bool))[scan.first : scan.last + 1] = False
    return not any(each.any() for each in missing.values())


def _restarts_fit(jpeg: _Jpeg, scan: _Scan, data: bytes) -> bool:
    """Restart markers are numbered 0 to 7, over and over, and one stands between two intervals."""
    if not scan.interval or not jpeg.height:  # a height of 0 comes after the first scan
        return True
    if any(data[place + 1] & 7 != number % 8 for number, place in enumerate(scan.restarts)):
        return False
    most = [max(factor) for factor in zip(*jpeg.factors.values(), strict=True)]
    size = (jpeg.width, jpeg.height)
    if len(scan.components) == 1:  # not interleaved: in blocks of the component itself
        factors = jpeg.factors[scan.components[0]]
        size = tuple(-(-side * own // largest) for side, own, largest in zip(size, factors, most, strict=True))
        most = [1, 1]
    width, height = (-(-side // (8 * factor)) for side, factor in zip(size, most, strict=True))
    return len(scan.restarts) >= -(-width * height // scan.interval) - 1


def _ends_flat(image: Image.Image) -> bool:
    """Whether the last pixels are all of one colour, as those of a block without data are."""
    width, height = image.size
    corner = image.crop((width - 1 - (width - 1) % 8 // 2, height - 1 - (height - 1) % 8 // 2, width, height))
    return all(low == high for low, high in np.reshape(corner.getextrema(), (-1, 2)))


def _with_filler(data: bytes, jpeg: _Jpeg) -> bytes:
    """The file with marker bytes inserted after the data of every scan and restart interval.

    A decoder skips them if it has all that it needs. Where it lacks something, it takes them for it, and the picture
    becomes another: then what was decoded before was not in the file either.
    """
    markers = [place for scan in jpeg.scans for place in (*scan.restarts, scan.end)]
    for index, place in enumerate(markers):
        while data[place - 1] == 0xFF:  # any number of them may stand before a marker and belongs to it
            place -= 1
        markers[index] = place
    places = [0, *markers, len(data)]
    return _FILLER.join(data[start:end] for start, end in pairwise(places))


# PNG


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start and end of the content) of each chunk up to IEND, or up to where the file ends."""
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND" and position + 8 <= len(data):
        start = position + 8
        kind, end = data[position + 4 : start], start + int.from_bytes(data[position : position + 4], "big")
        yield kind, start, end
        position = end + 4


def without_metadata(data: bytes) -> bytes:
    """A PNG without its texts and its colour profile: Pillow refuses large ones, and pixels do not need them."""
    kept = [data[start - 8 : end + 4] for kind, start, end in _chunks(data) if kind not in _METADATA]
    return b"".join((data[: len(PNG_SIGNATURE)], *kept))


def _png_damage(data: bytes, image: Image.Image, thorough: bool) -> str:
    """Checksums of the chunks that make the pixels, of all chunks if `thorough`; then the amount of data."""
    view, stream, kind = memoryview(data), [], b""
    for kind, start, end in _chunks(data):
        if end + 4 > len(data):
            return f"it ends within its {ascii(kind)[1:]} chunk"
        needed = thorough or kind[:1].isupper()
        if needed and zlib.crc32(view[start - 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return f"the checksum of its {ascii(kind)[1:]} chunk is wrong"
        if kind == b"IDAT":
            stream.append(view[start:end])
    if kind != b"IEND":
        return "its end is missing"
    # Pillow fills rows that lack data with zeros, so the last pixel is one, unless later rows came in an earlier pass.
    suspect = thorough or bool(data[28]) or not np.any(image.getpixel((image.width - 1, image.height - 1)))
    enough = not suspect or _unpacks_to(stream, _png_bytes(data))
    return "" if enough else "a part is missing: data end before the picture does"


def _png_bytes(data: bytes) -> int:
    """Bytes of the rows of a PNG, each with its filter's number, as its header says."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits = data[24] * _PNG_SAMPLES[data[25]]
    total = 0
    for left, top, across, down in _ADAM7 if data[28] else ((0, 0, 1, 1),):
        columns, rows = max(0, -(-(width - left) // across)), max(0, -(-(height - top) // down))
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


def _unpacks_to(stream: list[memoryview], size: int) -> bool:
    """Whether a zlib stream holds that many bytes; 1 MiB of them is in memory at a time."""
    unpacker = zlib.decompressobj()
    for piece in stream:
        while len(piece) and size > 0:
            size -= len(unpacker.decompress(piece, 1 << 20))
            piece = memoryview(unpacker.unconsumed_tail)
    return size <= len(unpacker.flush()) if size > 0 else True

"""What decoders pass over in silence is found, and sound files are never refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from datamodules.errors import BadSample
from datamodules.images.decode import check_image, decode_image, read_image

END_OF_JPEG = b"\xff\xd9"


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Something with edges and noise in every block."""
    x, y = np.linspace(0, 6, width)[None, :, None], np.linspace(0, 4, height)[:, None, None]
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return Image.fromarray((127 + 80 * np.sin(x * [1, 2, 3] + y) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sound(data: bytes) -> None:
    check_image(data, key="k", decode=True)
    decode_image(data, key="k")


# JPEG

JPEGS = st.fixed_dictionaries(
    {"quality": st.sampled_from([30, 75, 95])},
    optional={
        "progressive": st.just(True),
        "optimize": st.just(True),
        "restart_marker_blocks": st.integers(1, 9),
        "restart_marker_rows": st.integers(1, 2),
    },
)
SIZES = st.tuples(st.integers(24, 120), st.integers(24, 120))


@settings(max_examples=150, deadline=None)
@given(
    size=SIZES,
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    subsampling=st.sampled_from([0, 1, 2]),
    options=JPEGS,
    cuts=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=4),
)
def test_a_jpeg_cut_anywhere_is_found_though_its_end_marker_is_kept(size, mode, subsampling, options, cuts):
    if mode != "L":
        options = options | {"subsampling": subsampling}
    data = encoded(photo(*size, mode), "JPEG", **options)
    sound(data)
    for cut in cuts:
        with pytest.raises(BadSample, match=r"damaged|cannot be decoded"):
            check_image(data[: int(cut * len(data))] + END_OF_JPEG, key="k", decode=True)


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"optimize": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_training_and_evaluation_find_a_baseline_jpeg_that_is_cut(options, mode, cut, tmp_path):
    data = encoded(photo(96, 80, mode), "JPEG", **({} if mode == "L" else options))
    damaged = data[: int(cut * len(data))] + END_OF_JPEG
    with pytest.raises(BadSample, match="a part is missing"):
        decode_image(damaged, key="k")
    (tmp_path / "a.jpg").write_bytes(damaged)
    with pytest.raises(BadSample, match=r"a\.jpg.*a part is missing"):
        read_image(tmp_path / "a.jpg")


def test_a_jpeg_without_some_of_its_intervals_is_found():
    data = encoded(photo(96, 80), "JPEG", restart_marker_blocks=2)
    marks = [place for place in range(len(data) - 1) if data[place] == 0xFF and 0xD0 <= data[place + 1] <= 0xD7]
    for first, last in ((0, 1), (3, 4), (2, 10), (len(marks) - 2, len(marks) - 1)):
        with pytest.raises(BadSample, match="restart markers"):
            check_image(data[: marks[first]] + data[marks[last] :], key="k", decode=True)
    inside = (marks[4] + marks[5]) // 2
    with pytest.raises(BadSample, match="data end before the picture does"):
        check_image(data[:inside] + data[marks[5] :], key="k", decode=True)


def test_a_progressive_jpeg_without_its_last_scans_is_found():
    data = encoded(photo(96, 80), "JPEG", progressive=True)
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    for scan in scans[1:]:
        with pytest.raises(BadSample, match="scans are missing"):
            decode_image(data[:scan] + END_OF_JPEG, key="k")


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 1), (1, 17), (7, 300)])
@pytest.mark.parametrize("colour", [(255, 255, 255), (128, 128, 128), (10, 200, 30)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_small_and_flat_jpegs_are_sound(size, colour, options):
    sound(encoded(Image.new("RGB", size, colour), "JPEG", **options))


def test_what_may_stand_around_a_sound_jpeg():
    image = photo(60, 40)
    data = encoded(image, "JPEG")
    thumbnail = b"Exif\x00\x00" + encoded(image.resize((20, 20)), "JPEG")
    for each in (
        data + b"\x00" * 500,
        data + data,
        encoded(image, "JPEG", exif=thumbnail, comment=b"\xff\xd9\xff\xda"),
        encoded(image, "MPO", save_all=True, append_images=[image]),
        data[:-2] + b"\xff\xff\xff\xd9",  # fill bytes
        encoded(image, "JPEG", restart_marker_blocks=2).replace(b"\xff\xd2", b"\xff\xff\xd2"),
    ):
        sound(each)


# PNG and the others


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 8
    while position < len(data):
        (size,) = struct.unpack_from(">I", data, position)
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    return found


def png(*parts: tuple[bytes, bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@settings(max_examples=60, deadline=None)
@given(mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]), size=SIZES, where=st.floats(0.05, 0.99))
@example(mode="1", size=(24, 47), where=0.9375)  # three rows are missing
def test_a_png_that_lacks_pixels_is_found(mode, size, where):
    data = encoded(photo(*size, mode), "PNG")
    sound(data)
    sound(data + b"behind the end")
    *head, (_, pixels), end = [each for each in chunks(data) if each[0] not in (b"tEXt",)]
    if head[-1][0] == b"IDAT":  # several
        return
    rows = zlib.decompress(pixels)
    checksum = 4  # bytes behind the data
    for less in (pixels[: int(where * (len(pixels) - checksum))], zlib.compress(rows[: int(where * len(rows))]), b""):
        with pytest.raises(BadSample):
            decode_image(png(*head, (b"IDAT", less), end), key="k")
    with pytest.raises(BadSample):
        decode_image(png(*head, end), key="k")
    with pytest.raises(BadSample):
        decode_image(png(*head, (b"IDAT", pixels)), key="k")


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1), bit=st.integers(0, 7))
def test_one_wrong_bit_in_a_png_is_found(where, bit):
    data = bytearray(encoded(photo(40, 30), "PNG"))
    data[8 + int(where * (len(data) - 17))] ^= 1 << bit  # anything but the signature and the last checksum
    with pytest.raises(BadSample):
        check_image(bytes(data), key="k", decode=True)


def test_the_checksum_of_the_pixels_is_compared():
    data = bytearray(encoded(photo(40, 30), "PNG"))
    place = bytes(data).index(b"IDAT") + 4 + struct.unpack_from(">I", data, bytes(data).index(b"IDAT") - 4)[0]
    data[place] ^= 1
    with pytest.raises(BadSample, match="the checksum of its 'IDAT' chunk is wrong"):
        decode_image(bytes(data), key="k")


@settings(max_examples=60, deadline=None)
@given(options=st.sampled_from([{}, {"lossless": True}]), where=st.floats(0.05, 0.95), lying=st.integers(0, 2))
def test_a_webp_that_is_cut_is_found_whatever_its_header_says(options, where, lying):
    data = encoded(photo(70, 50), "WEBP", **options)
    sound(data)
    cut = data[: int(where * len(data)) // 2 * 2]
    if lying:
        cut = cut[:4] + struct.pack("<I", len(cut) - 8) + cut[8:]
    if lying == 2:
        cut = cut[:16] + struct.pack("<I", len(cut) - 20) + cut[20:]
    with pytest.raises(BadSample):
        decode_image(cut, key="k")


# PNGs with more beside the pixels than Pillow allows


def big_pngs() -> dict[str, bytes]:
    image = photo(30, 20)
    head, *rest = chunks(encoded(image, "PNG"))
    profile = b"icc\x00\x00" + zlib.compress(bytes(3 << 20))
    text, packed = b"Comment\x00" + b"a" * (2 << 20), b"Comment\x00\x00" + zlib.compress(bytes(3 << 20))
    unicode = b"XML:com.adobe.xmp\x00\x01\x00\x00\x00" + zlib.compress(b"a" * (3 << 20))
    return {
        "profile": png(head, (b"iCCP", profile), *rest),
        "text": png(head, (b"tEXt", text), *rest),
        "packed text": png(head, (b"zTXt", packed), *rest),
        "unicode text": png(head, (b"iTXt", unicode), *rest),
        "text behind the pixels": png(head, *rest[:-1], (b"zTXt", packed), rest[-1]),
        "many texts": png(head, *[(b"zTXt", b"C\x00\x00" + zlib.compress(bytes(1 << 20)))] * 70, *rest),
    }


@pytest.mark.parametrize("kind", big_pngs())
def test_pngs_with_large_texts_and_profiles_are_read(kind):
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    data = big_pngs()[kind]
    sound(data)
    assert np.array_equal(decode_image(data, key="k"), photo(30, 20))
    with pytest.raises(BadSample, match="more than the 599 allowed"):
        decode_image(data, key="k", max_pixels=599)
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_the_orientation_of_such_a_png_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    head, *rest = chunks(encoded(photo(30, 20), "PNG", exif=exif))
    data = png(head, (b"zTXt", b"C\x00\x00" + zlib.compress(bytes(3 << 20))), *rest)
    assert decode_image(data, key="k").size == (20, 30)

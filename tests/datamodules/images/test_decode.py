import colorsys
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from ablate.core.errors import UserError
from ablate.model.encoders import EncoderConfig, create_encoder
from datamodules.errors import BadSample
from datamodules.images.decode import Resize, decode_image, read_image, to_rgb


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# Every mode of Pillow becomes RGB by one rule

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
PALETTE = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
SIXTEEN = np.random.default_rng(2).integers(0, 65536, (24, 32), dtype=np.uint16)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(values, np.float64)[..., None], 3, axis=2)


def of_palette(mode: str) -> Image.Image:
    image = Image.frombytes(mode, (32, 24), PIXELS[..., : len(mode)].tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


def raw(mode: str, values: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (32, 24), np.ascontiguousarray(values).tobytes())


def hsv_as_rgb(values: np.ndarray) -> np.ndarray:
    rows = [colorsys.hsv_to_rgb(*(pixel / 255)) for pixel in values.reshape(-1, 3)]
    return np.array(rows).reshape(values.shape) * 255


def ycc_as_rgb(values: np.ndarray) -> np.ndarray:
    y, cb, cr = np.moveaxis(values.astype(np.float64), -1, 0) - np.array([0, 128, 128])[:, None, None]
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)


def lab_as_rgb(values: np.ndarray) -> np.ndarray:
    """L* and, as signed bytes, a*b* under D50 -> linear light (Bradford) -> sRGB."""
    lightness = values[..., 0] / 255 * 100
    a, b = (values[..., band].astype(np.int8).astype(np.float64) for band in (1, 2))
    y = (lightness + 16) / 116
    roots = np.stack([y + a / 500, y, y - b / 200], -1)
    xyz = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * 3 * (6 / 29) ** 2) * [0.9642, 1.0, 0.8249]
    to_linear = [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540]]
    to_linear += [[0.0719453, -0.2289914, 1.4052427]]
    linear = (xyz @ np.array(to_linear).T).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def divided_by_alpha(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (255.0 * values / np.maximum(alpha, 1)).clip(0, 255)


ALPHA = np.random.default_rng(3).integers(1, 256, (24, 32), dtype=np.uint8)
PREMULTIPLIED = (PIXELS[..., :3] * (ALPHA[..., None] / 255)).astype(np.uint8)
INKS = PIXELS.astype(np.float64)
DULL = np.stack(
    [PIXELS[..., 0] // 2 + 60, *(np.int8(PIXELS[..., band] % 21 - 10).view(np.uint8) for band in (1, 2))], -1
)
# mode (and which) -> image, its colours as the rule says, the largest difference that rounding explains
MODES = {
    "1": (Image.fromarray(PIXELS[..., 0] > 127), grey(255.0 * (PIXELS[..., 0] > 127)), 0),
    "L": (raw("L", PIXELS[..., 0]), grey(PIXELS[..., 0]), 0),
    "LA": (raw("LA", PIXELS[..., :2]), grey(PIXELS[..., 0]), 0),
    "La": (
        raw("La", np.stack([PREMULTIPLIED[..., 0], ALPHA], -1)),
        grey(divided_by_alpha(PREMULTIPLIED[..., 0], ALPHA)),
        1,
    ),
    "P": (of_palette("P"), PALETTE[PIXELS[..., 0]], 0),
    "PA": (of_palette("PA"), PALETTE[PIXELS[..., 0]], 0),
    "RGB": (raw("RGB", PIXELS[..., :3]), PIXELS[..., :3], 0),
    "RGBA": (raw("RGBA", PIXELS), PIXELS[..., :3], 0),
    "RGBX": (raw("RGBX", PIXELS), PIXELS[..., :3], 0),
    "RGBa": (
        raw("RGBa", np.concatenate([PREMULTIPLIED, ALPHA[..., None]], -1)),
        divided_by_alpha(PREMULTIPLIED, ALPHA[..., None]),
        1,
    ),
    "CMYK": (raw("CMYK", PIXELS), (255 - INKS[..., :3]) * (255 - INKS[..., 3:]) / 255, 1),
    "YCbCr": (raw("YCbCr", PIXELS[..., :3]), ycc_as_rgb(PIXELS[..., :3]), 2),
    "HSV": (raw("HSV", PIXELS[..., :3]), hsv_as_rgb(PIXELS[..., :3]), 2),
    "LAB": (raw("LAB", DULL), lab_as_rgb(DULL), 4),
    "I;16": (raw("I;16", SIXTEEN.astype("<u2")), grey(SIXTEEN / 257), 1),
    "I;16L": (raw("I;16L", SIXTEEN.astype("<u2")), grey(SIXTEEN / 257), 1),
    "I;16B": (raw("I;16B", SIXTEEN.astype(">u2")), grey(SIXTEEN / 257), 1),
    "I;16N": (raw("I;16N", SIXTEEN.astype("=u2")), grey(SIXTEEN / 257), 1),
    "I of 16 bits": (raw("I", SIXTEEN.astype("=i4")), grey(SIXTEEN / 257), 1),
    "I of 8 bits": (raw("I", PIXELS[..., 0].astype("=i4")), grey(PIXELS[..., 0]), 0),
    "F to 1": (raw("F", (SIXTEEN / 65535).astype("=f4")), grey(SIXTEEN / 257), 0.51),
    "F to 255": (raw("F", (SIXTEEN / 257).astype("=f4")), grey(SIXTEEN / 257), 0.51),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("error")
def test_every_mode_becomes_the_colours_of_the_rule(mode):
    image, expected, rounding = MODES[mode]
    found = to_rgb(image)
    assert (found.mode, found.size) == ("RGB", (32, 24))
    assert np.abs(np.asarray(found, np.float64) - expected).max() <= rounding


def test_no_mode_of_pillow_is_left_out():
    assert {mode.partition(" ")[0] for mode in MODES} >= set(Image.MODES)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_a_ramp_of_16_bits_keeps_its_levels(mode):
    ramp = np.arange(65536, dtype={"I": "=i4", "I;16B": ">u2"}.get(mode, "<u2"))
    pixels = np.asarray(to_rgb(Image.frombytes(mode, (256, 256), ramp.tobytes())))
    assert len(np.unique(pixels)) == 256
    assert 127 <= pixels.mean() <= 128


@pytest.mark.parametrize("transparency", [3, b"\x00\x80\xff", (1, 2, 3), 70_000])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16", "I"])
@pytest.mark.filterwarnings("error")
def test_a_transparent_colour_changes_nothing(mode, transparency):
    image = MODES.get(mode, MODES["I of 16 bits"])[0].copy()
    expected = np.asarray(to_rgb(image))
    image.info["transparency"] = transparency
    assert np.array_equal(to_rgb(image), expected)
    assert image.info == {"transparency": transparency}  # the caller's image is as it was


@pytest.mark.parametrize(
    ("mode", "value"),
    [("I", -1), ("I", 65536), ("I", 2**31 - 1), ("F", -0.1), ("F", 255.5), ("F", np.nan), ("F", np.inf)],
)
def test_values_without_a_known_range_are_refused(mode, value):
    values = np.zeros((4, 4), "i4" if mode == "I" else "f4")
    values[2, 1] = value
    with pytest.raises(BadSample, match=f"mode {mode} with values from .*convert it to 8 or 16 bits"):
        to_rgb(Image.fromarray(values))


def test_a_dark_picture_stays_dark_where_its_file_says_16_bits():
    dark = Image.fromarray(np.full((4, 4), 255, np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert np.asarray(to_rgb(Image.open(io.BytesIO(encoded(dark, kind))))).max() == 0


def test_tiffs_where_0_is_white_and_of_12_bits():
    values = np.array([[0, 1000], [40_000, 65_535]], np.uint16)
    data = bytearray(encoded(Image.fromarray(values), "TIFF"))
    at = bytes(data).index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # PhotometricInterpretation, SHORT, one value
    data[at + 8] = 0
    assert np.asarray(to_rgb(Image.open(io.BytesIO(bytes(data)))))[..., 0].tolist() == [[255, 252], [99, 0]]
    image = Image.fromarray(values >> 4)
    image.tag_v2 = {258: (12,)}
    assert np.asarray(to_rgb(image))[..., 0].tolist() == (values >> 8).tolist()


@pytest.mark.parametrize("marker", [True, False])
def test_cmyk_jpegs_are_inverted_with_and_without_adobes_marker(marker):
    inks = Image.new("CMYK", (16, 16), (200, 30, 60, 10))
    data = encoded(inks, "JPEG", quality=95)
    at = data.index(b"Adobe") - 4
    if not marker:
        data = data[:at] + data[at + 16 :]
    expected = np.array([55, 225, 195]) * 245 / 255
    assert np.abs(np.asarray(decode_image(data, key="k"))[8, 8] - expected).max() <= 2


PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@pytest.mark.parametrize("mode", PNG_MODES)
def test_training_resizing_evaluation_and_generation_see_the_same(mode, tmp_path):
    transform = create_encoder(EncoderConfig(names=["test_vit"], weights=["random"], layer=["final"])).transforms[0]
    image = MODES[mode][0]
    data = encoded(image, "PNG", **({"transparency": bytes(range(256))} if mode == "P" else {}))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    trained = transform(decode_image(data, key="k"))
    assert torch.equal(transform(read_image(path)), trained)  # evaluation and `ablate generate`
    assert torch.equal(transform(Image.open(path)), trained)  # lmms-eval
    # Small enough, and so kept; made smaller, it is the picture that training would see, made smaller.
    assert torch.equal(transform(decode_image(Resize("shortest", 24)(data, key="k"), key="k")), trained)
    smaller = decode_image(Resize("shortest", 12)(data, key="k"), key="k")
    expected = decode_image(data, key="k").resize((16, 12), Image.Resampling.BICUBIC)
    assert np.array_equal(smaller, expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_colours_of_16_bits_are_read_as_grey_of_16_bits_is(channels):
    """A grey picture is the same, whether its file has one, two, three or four channels of 16 bits."""
    rows = np.repeat(SIXTEEN[..., None], channels, -1).astype(">u2").tobytes()
    row = len(rows) // 24
    kinds = {1: 0, 2: 4, 3: 2, 4: 6}
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 32, 24, 16, kinds[channels], 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\x00" + rows[at : at + row] for at in range(0, len(rows), row)))),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )
    assert np.array_equal(decode_image(data, key="k"), to_rgb(MODES["I;16"][0]))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode_image(encoded(Image.new("RGB", (6, 4)), "JPEG", exif=exif), key="k").size == (4, 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_matter():
    data = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert decode_image(data, key="k").size == (6, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_images_name_their_sample(make_image, suffix):
    data = make_image(0, suffix)
    for broken in (b"", b"not an image", data[: len(data) // 2], data[:20]):
        with pytest.raises(BadSample, match=r"shard\.tar:7.*cannot be decoded"):
            decode_image(broken, key="shard.tar:7")


def test_what_is_no_image_is_said_in_words():
    for data, said in [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "it is a git-lfs pointer"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"PK\x03\x04" + bytes(50), "it is a ZIP archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "its first bytes are damaged|cannot be decoded: (?!it is an image)"),
        (b"\xff\xd8\xff\xd9", "its first bytes are damaged|cannot be decoded: (?!it is an image)"),
    ]:
        with pytest.raises(BadSample, match=said):
            decode_image(data, key="a")
    with pytest.raises(BadSample, match="it is none of JPEG, PNG, WEBP, or its first bytes are damaged") as caught:
        decode_image(b"not an image", key="photo.jpg")
    assert "0x" not in str(caught.value)


def test_a_package_that_tolerates_cut_files_does_not_make_us_do_so(make_image, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval does when it is imported
    data = make_image(0, "png")
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(data[: len(data) // 2], key="k")


def test_other_formats_are_not_tried():
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(encoded(Image.new("RGB", (6, 4)), "EPS"), key="k")


def test_decompression_bomb_is_refused_before_it_is_unpacked():
    data = encoded(Image.new("1", (5000, 5000)), "PNG")
    assert len(data) < 10_000
    with pytest.raises(BadSample, match="5000 x 5000 pixels, more than the 1000000 allowed"):
        decode_image(data, key="k", max_pixels=1_000_000)
    assert decode_image(data, key="k", max_pixels=25_000_000).size == (5000, 5000)


def test_bomb_beyond_pillows_own_limit_is_a_bad_sample(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(encoded(Image.new("1", (50, 50)), "PNG"), key="k", max_pixels=10_000)


def test_files(tmp_path, make_image):
    path = tmp_path / "a.jpg"
    path.write_bytes(make_image(1))
    assert read_image(path).size == (32, 24)
    with pytest.raises(UserError, match=r"b\.jpg"):
        read_image(tmp_path / "b.jpg")
    path.write_bytes(b"")
    with pytest.raises(BadSample, match=r"a\.jpg"):
        read_image(path)

import io

import pytest
from PIL import Image, ImageFile

from ablate.errors import UserError
from datamodules.errors import BadSample
from datamodules.images import decode_image, read_image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_mode_becomes_rgb(mode, kind):
    try:
        data = encoded(Image.new(mode, (6, 4)), kind)
    except OSError:
        pytest.skip(f"{kind} cannot hold {mode}")
    image = decode_image(data, key="k")
    assert (image.mode, image.size) == ("RGB", (6, 4))


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

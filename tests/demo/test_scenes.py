"""Scenes show what they say: boxes inside the picture, apart from each other, in the stated relations."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ablate.demo.catalogue import Catalogue, make_cutout
from ablate.demo.questions import CORNERS, relations_of
from ablate.demo.scenes import BIGGER, FONTS_SEEN, FONTS_UNSEEN, WORDS, Scene, SceneMaker, Thing, render

SEEDS = st.integers(0, 10_000)


def box(thing: Thing) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the turned box."""
    cos, sin = abs(math.cos(math.radians(thing.angle))), abs(math.sin(math.radians(thing.angle)))
    width, height = thing.width * cos + thing.height * sin, thing.width * sin + thing.height * cos
    return thing.x - width / 2, thing.y - height / 2, thing.x + width / 2, thing.y + height / 2


def holds(relation: str, subject: Thing, anchor: Thing) -> bool:
    """Whether the subject's whole box lies on that side of the anchor's."""
    left, top, right, bottom = box(subject)
    a_left, a_top, a_right, a_bottom = box(anchor)
    return {
        "left of": right < a_left,
        "right of": left > a_right,
        "above": bottom < a_top,
        "below": top > a_bottom,
    }[relation]


def thing(scene: Scene, name: str) -> Thing:
    return next(each for each in scene.things if each.name == name)


def maker(catalogue: Catalogue, seed: int, split: str = "train", unseen: bool = False) -> SceneMaker:
    return SceneMaker(catalogue, np.random.default_rng(seed), split, unseen)


def pick(catalogue: Catalogue, seed: int, count: int) -> list[str]:
    return [str(name) for name in np.random.default_rng(seed).choice(catalogue.classes, size=count, replace=False)]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, unseen=st.booleans())
def test_everything_lies_inside_the_picture(photos: Catalogue, seed: int, unseen: bool) -> None:
    a, b, c = pick(photos, seed, 3)
    make = maker(photos, seed, unseen=unseen)
    other = next(name for name in photos.classes if name != a and photos.colourful(name, unseen))
    scenes = [
        make.single(a),
        make.pair(a, b, "h"),
        make.unequal_pair(a, b, "v", b),
        make.corner(a, b, c, "top left"),
        make.black_and_white(a, other, "h"),
        make.sign("exit", a, on_top=True),
    ]
    for scene in scenes:
        for each in scene.things:
            assert all(0 <= edge <= 1 for edge in box(each))
            assert max(each.width, each.height) > 0.15
            assert each.unseen is unseen


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_a_pair_stands_in_its_relation(photos: Catalogue, seed: int) -> None:
    a, b = pick(photos, seed, 2)
    for axis, relation in (("h", "left of"), ("v", "above")):
        scene = maker(photos, seed).pair(a, b, axis)
        assert holds(relation, thing(scene, a), thing(scene, b))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, corner=st.sampled_from(CORNERS))
def test_a_corner_has_one_answer_for_each_relation(photos: Catalogue, seed: int, corner: str) -> None:
    anchor, beside, stacked = pick(photos, seed, 3)
    scene = maker(photos, seed).corner(anchor, beside, stacked, corner)
    sideways, upright = relations_of(corner)
    middle, side, above = (thing(scene, name) for name in (anchor, beside, stacked))
    assert holds(sideways, side, middle)
    assert holds(upright, above, middle)
    # The other object shares the anchor's row or column, and so is no answer.
    assert not holds(sideways, above, middle)
    assert not holds(upright, side, middle)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, first=st.booleans(), axis=st.sampled_from(["h", "v"]))
def test_the_largest_object_is_much_larger(photos: Catalogue, seed: int, first: bool, axis: str) -> None:
    a, b = pick(photos, seed, 2)
    big, small = (a, b) if first else (b, a)
    scene = maker(photos, seed).unequal_pair(a, b, axis, big)
    assert thing(scene, big).area >= BIGGER * thing(scene, small).area * (1 - 1e-9)
    assert holds("left of" if axis == "h" else "above", thing(scene, a), thing(scene, b))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_only_one_object_is_black_and_white(photos: Catalogue, seed: int) -> None:
    grey = pick(photos, seed, 1)[0]
    other = next(name for name in photos.classes if name != grey and photos.colourful(name, False))
    scene = maker(photos, seed).black_and_white(grey, other, "h")
    assert thing(scene, grey).grey
    beside = thing(scene, other)
    assert not beside.grey
    assert photos.cutouts[other, False][beside.photo].colourful


def test_greyscale_cutouts_are_not_colourful() -> None:
    assert not make_cutout(Image.new("RGBA", (20, 20), (90, 90, 90, 255)), "grey").colourful
    assert not make_cutout(Image.new("RGBA", (20, 20), (20, 5, 5, 255)), "nearly black").colourful
    assert make_cutout(Image.new("RGBA", (20, 20), (200, 40, 40, 255)), "red").colourful


def test_a_cutout_is_cropped_to_what_is_visible() -> None:
    image = Image.new("RGBA", (50, 50), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 20, 40, 30))
    assert make_cutout(image, "bar").image.size == (30, 10)
    with pytest.raises(ValueError, match="transparent everywhere"):
        make_cutout(Image.new("RGBA", (5, 5), (0, 0, 0, 0)), "nothing")


def test_drawing_shows_the_object_where_it_is_said_to_be(photos: Catalogue) -> None:
    name = photos.classes[0]
    scene = maker(photos, 3).single(name)
    drawn = np.asarray(render(scene, photos, 128), dtype=int)
    empty = np.asarray(render(replace(scene, things=()), photos, 128), dtype=int)
    changed = np.abs(drawn - empty).sum(-1) > 12
    left, top, right, bottom = (128 * edge for edge in box(scene.things[0]))
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert left - 2 <= columns.min() <= left + 12
    assert right - 12 <= columns.max() <= right + 2
    assert top - 2 <= rows.min() <= top + 12
    assert bottom - 12 <= rows.max() <= bottom + 2


def test_drawing_is_repeatable_at_any_size(catalogue: Catalogue) -> None:
    scene = maker(catalogue, 5).corner(*catalogue.classes[:3], "bottom right")
    for side in (64, 100, 224):
        first, second = render(scene, catalogue, side), render(scene, catalogue, side)
        assert first.size == (side, side)
        assert first.mode == "RGB"
        assert first.tobytes() == second.tobytes()


def test_degradations_hide_the_object(photos: Catalogue) -> None:
    name = photos.classes[0]
    contrast = {}
    for degradation in ("none", "blur", "dark"):
        scene = replace(maker(photos, 1).single(name), degradation=degradation)
        contrast[degradation] = np.asarray(render(scene, photos, 96).convert("L"), dtype=float)
    sharp, blurred, dark = (np.abs(np.diff(contrast[each])).max() for each in ("none", "blur", "dark"))
    assert blurred < sharp / 4
    assert dark < sharp / 4
    assert contrast["dark"].max() < 20
    assert maker(photos, 1).degraded(name, "empty").things == ()


@pytest.mark.parametrize("word", WORDS)
def test_every_word_fits_on_its_sign(shapes: Catalogue, word: str) -> None:
    """No letter reaches the board's edge, in any typeface."""
    for unseen in (False, True):
        scene = maker(shapes, len(word), unseen=unseen).sign(word, on_top=True)
        assert scene.sign is not None
        assert scene.sign.font in (FONTS_UNSEEN if unseen else FONTS_SEEN)
        for font in FONTS_UNSEEN if unseen else FONTS_SEEN:
            # Black letters on white: inside the frame all that is dark is a letter.
            board = replace(scene.sign, font=font, colours=4, angle=0.0, x=0.5, y=0.5, width=0.9, height=0.34)
            picture = np.asarray(render(replace(scene, sign=board), shapes, 200).convert("L"))
            inner = picture[100 - 28 : 100 + 28, 100 - 82 : 100 + 82]
            assert (inner < 90).mean() > 0.08
            assert (inner[[0, -1], :] > 90).all()
            assert (inner[:, [0, -1]] > 90).all()

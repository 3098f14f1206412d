"""Scenes that need no download: drawn shapes with colours and textures on drawn backgrounds.

The fallback if Debian's packages cannot be reached. The same tasks, questions and file layouts; the pictures are not
photos, and an encoder trained on photos tells less about them.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ablate.demo.catalogue import Background, Catalogue, Cutout, make_background, make_cutout

SIDE = 192
N_SEEN, N_UNSEEN = 4, 2
N_BACKGROUNDS = {"train": 16, "test": 8}

Points = list[tuple[float, float]]


def _regular(corners: int, turn: float = -90) -> Points:
    return [_at(1, turn + 360 * i / corners) for i in range(corners)]


def _spiked(spikes: int, inner: float) -> Points:
    return [_at(inner if i % 2 else 1, -90 + 180 * i / spikes) for i in range(2 * spikes)]


def _at(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _heart() -> Points:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = np.sin(angles) ** 3
    y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 16
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _moon() -> Points:
    outer = [_at(1, angle) for angle in range(50, 311, 6)]
    inner = [(0.35 + 0.8 * x, 0.8 * y) for x, y in (_at(1, angle) for angle in range(310, 49, -6))]
    return [*outer, *inner]


_CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
_OUTLINES: dict[str, tuple[str, Callable[[], Points]]] = {
    "circle": ("round", lambda: _regular(48)),
    "oval": ("round", lambda: [(x, 0.5 * y) for x, y in _regular(48)]),
    "heart": ("round", _heart),
    "moon": ("round", _moon),
    "square": ("flat", lambda: _regular(4, 45)),
    "rectangle": ("flat", lambda: [(-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)]),
    "triangle": ("flat", lambda: _regular(3)),
    "diamond": ("flat", lambda: [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)]),
    "star": ("pointed", lambda: _spiked(5, 0.42)),
    "sun": ("pointed", lambda: _spiked(12, 0.7)),
    "cross": ("pointed", lambda: [(x / 3, y / 3) for x, y in _CROSS]),
    "arrow": ("pointed", lambda: [(-1, -0.25), (0.2, -0.25), (0.2, -0.7), (1, 0), (0.2, 0.7), (0.2, 0.25), (-1, 0.25)]),
}


def shapes_catalogue(seed: int) -> Catalogue:
    """Twelve drawn shapes in three themes, and drawn backgrounds; the same for the same seed."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    cutouts: dict[tuple[str, bool], list[Cutout]] = {}
    for name, (_, outline) in _OUTLINES.items():
        for unseen, count in ((False, N_SEEN), (True, N_UNSEEN)):
            cutouts[name, unseen] = [
                make_cutout(_draw(outline(), rng, unseen), f"{name}{'-unseen' if unseen else ''}-{i}")
                for i in range(count)
            ]
    return Catalogue(
        classes=tuple(_OUTLINES),
        theme={name: theme for name, (theme, _) in _OUTLINES.items()},
        cutouts=cutouts,
        backgrounds={
            split: [_backdrop(rng, f"{split}-{i}") for i in range(count)] for split, count in N_BACKGROUNDS.items()
        },
        kind="shapes",
    )


def _draw(outline: Points, rng: np.random.Generator, unseen: bool) -> Image.Image:
    """One shape in a strong colour; seen ones are striped or plain, unseen ones dotted."""
    hue = int(rng.integers(256))
    colour = Image.new("HSV", (1, 1), (hue, 225, int(rng.integers(150, 245)))).convert("RGB").getpixel((0, 0))
    fill = Image.new("RGB", (SIDE, SIDE), colour)
    draw = ImageDraw.Draw(fill)
    assert isinstance(colour, tuple)  # of an RGB image
    lighter = tuple(min(255, 60 + channel) for channel in colour)
    if unseen:
        for x in range(8, SIDE, 24):
            for y in range(8, SIDE, 24):
                draw.ellipse((x, y, x + 9, y + 9), fill=lighter)
    elif rng.random() < 0.5:
        for x in range(-SIDE, SIDE, 24):
            draw.line((x, SIDE, x + SIDE, 0), fill=lighter, width=7)
    mask = Image.new("L", (2 * SIDE, 2 * SIDE), 0)
    ImageDraw.Draw(mask).polygon([(SIDE * (1 + 0.95 * x), SIDE * (1 + 0.95 * y)) for x, y in outline], fill=255)
    fill.putalpha(mask.resize((SIDE, SIDE), Image.Resampling.BOX))
    return fill


def _backdrop(rng: np.random.Generator, name: str) -> Background:
    """Smooth patches of muted colours."""
    patches = rng.integers(70, 190, size=(5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((384, 288), Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(0, 256, size=(288, 384), dtype=np.uint8)).convert("RGB")
    return make_background(Image.blend(image, noise.filter(ImageFilter.GaussianBlur(1)), 0.2), name)

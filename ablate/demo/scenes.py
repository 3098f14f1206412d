"""Scenes: a background, up to three objects or a sign, and how to draw them.

A `Scene` is plain data, decided before anything is drawn, so that questions are asked about what is known and not
about pixels. All lengths are fractions of the picture's side: a scene looks the same at every size. y runs downwards.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from ablate.demo.catalogue import Catalogue, Cutout

Degradation = Literal["none", "blur", "dark", "empty"]
BACKDROP_CONTRAST = 0.5
DEGRADATIONS: tuple[Degradation, ...] = ("blur", "dark", "empty")
WORDS = ("bank", "bus", "exit", "food", "north", "open", "sale", "stop")
FONTS_SEEN = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
FONTS_UNSEEN = ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic")
# (board, letters), each pair far apart in lightness.
SIGN_COLOURS = (
    ((178, 24, 32), (255, 255, 255)),
    ((16, 74, 158), (255, 255, 255)),
    ((12, 106, 62), (255, 255, 255)),
    ((250, 205, 32), (16, 16, 16)),
    ((245, 245, 240), (20, 20, 24)),
    ((30, 30, 34), (255, 226, 90)),
)
GAP = 0.02
"""Boxes stay this far inside their cell, so that neighbours never touch."""
BIGGER = 2.2
"""How many times the area of the other object's box the "largest" object's box has."""


@dataclass(frozen=True)
class Cell:
    """A part of the picture that one object stays in."""

    left: float
    top: float
    right: float
    bottom: float


FRAME = Cell(0, 0, 1, 1)


@dataclass(frozen=True)
class Thing:
    """One object in a scene.

    Attributes:
        name: its class.
        unseen, photo: which of the class's cut-outs.
        x, y: the centre of its box.
        width, height: of its box, before it is turned by `angle` degrees (the turned box stays in its cell).
        grey: drawn in black and white.
    """

    name: str
    unseen: bool
    photo: int
    x: float
    y: float
    width: float
    height: float
    angle: float
    flip: bool
    brightness: float
    grey: bool = False

    @property
    def area(self) -> float:
        return self.width * self.height


@dataclass(frozen=True)
class Sign:
    """A board with one word on it. `x`, `y`, `width`, `height` as in `Thing`; `colours` is a row of SIGN_COLOURS."""

    word: str
    font: str
    x: float
    y: float
    width: float
    height: float
    angle: float
    colours: int


@dataclass(frozen=True)
class Backdrop:
    """A square cut out of a background: its center and side as fractions of the possible range."""

    split: str
    photo: int
    x: float
    y: float
    side: float
    flip: bool
    blur: float
    brightness: float


@dataclass(frozen=True)
class Scene:
    """All there is to see in one picture."""

    backdrop: Backdrop
    things: tuple[Thing, ...] = ()
    sign: Sign | None = None
    degradation: Degradation = "none"
    unseen: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.things)


class SceneMaker:
    """Puts scenes together out of a catalogue, with one random generator.

    Args:
        catalogue: the objects and backgrounds.
        rng: decides everything that the caller does not.
        split: whose backgrounds to use, "train" or "test".
        unseen: show held-out photos and typefaces.
    """

    def __init__(self, catalogue: Catalogue, rng: np.random.Generator, split: str, unseen: bool = False) -> None:
        self.catalogue, self.rng, self.split, self.unseen = catalogue, rng, split, unseen

    def single(self, name: str) -> Scene:
        """One large object anywhere."""
        return self._scene([self._thing(name, self.rng.uniform(0.45, 0.65), FRAME)])

    def pair(self, first: str, second: str, axis: str) -> Scene:
        """Two objects: `first` is left of (axis "h") or above (axis "v") `second`."""
        cells = _halves(axis, self.rng.uniform(0.46, 0.54))
        return self._scene([self._thing(n, self._middling(), c) for n, c in zip((first, second), cells, strict=True)])

    def unequal_pair(self, first: str, second: str, axis: str, largest: str) -> Scene:
        """As `pair`, where the box of `largest` (one of the two) has BIGGER times the area of the other's."""
        big_first = largest == first
        cells = _halves(axis, 0.6 if big_first else 0.4)
        big, small = (0, 1) if big_first else (1, 0)
        things: list[Thing] = [None, None]  # type: ignore[list-item]
        things[big] = self._thing((first, second)[big], self.rng.uniform(0.5, 0.56), cells[big])
        most = math.sqrt(things[big].area / BIGGER)
        things[small] = self._thing((first, second)[small], min(self.rng.uniform(0.26, 0.34), most), cells[small])
        return self._scene(things)

    def black_and_white(self, grey: str, other: str, axis: str) -> Scene:
        """Two objects in any order: `grey` drawn in black and white beside a colourful `other`."""
        photo = int(self.rng.choice(self.catalogue.colourful(other, self.unseen)))
        cells = list(_halves(axis, self.rng.uniform(0.46, 0.54)))
        self.rng.shuffle(cells)
        things = [
            replace(self._thing(grey, self._middling(), cells[0]), grey=True),
            self._thing(other, self._middling(), cells[1], photo),
        ]
        return self._scene(things)

    def corner(self, anchor: str, beside: str, stacked: str, corner: str) -> Scene:
        """Three objects in three quarters: `beside` in the same row as `anchor`, `stacked` in the same column.

        Args:
            corner: where the anchor is: "top left", "top right", "bottom left" or "bottom right".
        """
        x, y = self.rng.uniform(0.48, 0.52, size=2)
        down, right = corner.startswith("bottom"), corner.endswith("right")
        names = {(down, right): anchor, (down, not right): beside, (not down, right): stacked}
        things = []
        for (low, east), name in names.items():
            cell = Cell(x if east else 0, y if low else 0, 1 if east else x, 1 if low else y)
            things.append(self._thing(name, self._middling(), cell))
        return self._scene(things)

    def sign(self, word: str, companion: str | None = None, *, on_top: bool) -> Scene:
        """A sign with `word` on it, in the upper or lower half; an object in the other half, if one is given."""
        height = float(self.rng.uniform(0.30, 0.38))
        width = float(self.rng.uniform(0.80, 0.94))
        y = 0.03 + height / 2 + float(self.rng.uniform(0, 0.08))
        fonts = FONTS_UNSEEN if self.unseen else FONTS_SEEN
        board = Sign(
            word=word,
            font=str(self.rng.choice(fonts)),
            x=float(self.rng.uniform(0.49, 0.51)),
            y=y if on_top else 1 - y,
            width=width,
            height=height,
            angle=float(self.rng.uniform(-4, 4)),
            colours=int(self.rng.integers(len(SIGN_COLOURS))),
        )
        half = Cell(0.1, 0.52, 0.9, 1) if on_top else Cell(0.1, 0, 0.9, 0.48)
        things = [] if companion is None else [self._thing(companion, self.rng.uniform(0.34, 0.44), half)]
        return replace(self._scene(things), sign=board)

    def degraded(self, name: str, degradation: Degradation) -> Scene:
        """One object that cannot be recognized: blurred, in the dark, or not there at all."""
        scene = self.single(name)
        things = () if degradation == "empty" else scene.things
        return replace(scene, things=things, degradation=degradation)

    def _middling(self) -> float:
        return float(self.rng.uniform(0.36, 0.46))

    def _scene(self, things: list[Thing]) -> Scene:
        photos = self.catalogue.backgrounds[self.split]
        backdrop = Backdrop(
            split=self.split,
            photo=int(self.rng.integers(len(photos))),
            x=float(self.rng.random()),
            y=float(self.rng.random()),
            side=float(self.rng.uniform(0.75, 1)),
            flip=bool(self.rng.random() < 0.5),
            blur=float(self.rng.uniform(0.02, 0.04)),
            brightness=float(self.rng.uniform(0.8, 1.1)),
        )
        return Scene(backdrop, tuple(things), unseen=self.unseen)

    def _thing(self, name: str, size: float, cell: Cell, photo: int | None = None) -> Thing:
        """An object at a random place in `cell`, its box's area size², or smaller where it would not fit."""
        photos = self.catalogue.cutouts[name, self.unseen]
        photo = int(self.rng.integers(len(photos))) if photo is None else photo
        angle = float(self.rng.uniform(-15, 15))
        stretch = math.sqrt(photos[photo].aspect)
        width, height = size * stretch, size / stretch
        room_x, room_y = cell.right - cell.left - 2 * GAP, cell.bottom - cell.top - 2 * GAP
        turned_x, turned_y = _turned(width, height, angle)
        shrink = min(1, room_x / turned_x, room_y / turned_y)
        width, height, turned_x, turned_y = (shrink * each for each in (width, height, turned_x, turned_y))
        slack_x, slack_y = room_x - turned_x, room_y - turned_y
        return Thing(
            name=name,
            unseen=self.unseen,
            photo=photo,
            x=cell.left + GAP + turned_x / 2 + float(self.rng.random()) * slack_x,
            y=cell.top + GAP + turned_y / 2 + float(self.rng.random()) * slack_y,
            width=width,
            height=height,
            angle=angle,
            flip=bool(self.rng.random() < 0.5),
            brightness=float(self.rng.uniform(0.85, 1.15)),
        )


def _turned(width: float, height: float, angle: float) -> tuple[float, float]:
    """The box of a box that is turned by `angle` degrees."""
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    return width * cos + height * sin, width * sin + height * cos


def _halves(axis: str, at: float) -> tuple[Cell, Cell]:
    """Two cells side by side ("h") or one above the other ("v"), roughly in line with each other."""
    if axis == "h":
        return Cell(0, 0.12, at, 0.88), Cell(at, 0.12, 1, 0.88)
    return Cell(0.12, 0, 0.88, at), Cell(0.12, at, 0.88, 1)


def render(scene: Scene, catalogue: Catalogue, side: int) -> Image.Image:
    """Draw a scene.

    Args:
        side: width and height of the picture in pixels.

    Returns:
        An RGB image.
    """
    image = _draw_backdrop(scene.backdrop, catalogue, side)
    for thing in scene.things:
        photo = catalogue.cutouts[thing.name, thing.unseen][thing.photo]
        _paste(image, _draw_thing(thing, photo, side), thing.x, thing.y)
    if scene.sign is not None:
        _paste(image, _draw_sign(scene.sign, side), scene.sign.x, scene.sign.y)
    if scene.degradation == "blur":
        image = image.filter(ImageFilter.GaussianBlur(0.085 * side))
    elif scene.degradation == "dark":
        image = image.point(lambda value: value * 0.07)
    return image


def _draw_backdrop(backdrop: Backdrop, catalogue: Catalogue, side: int) -> Image.Image:
    photo = catalogue.backgrounds[backdrop.split][backdrop.photo].image
    length = backdrop.side * min(photo.size)
    left, top = backdrop.x * (photo.width - length), backdrop.y * (photo.height - length)
    image = photo.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + length, top + length))
    if backdrop.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.filter(ImageFilter.GaussianBlur(backdrop.blur * side))
    image = ImageEnhance.Contrast(image).enhance(BACKDROP_CONTRAST)
    return image.point(lambda value: min(255, value * backdrop.brightness))


def _draw_thing(thing: Thing, cutout: Cutout, side: int) -> Image.Image:
    size = (max(1, round(thing.width * side)), max(1, round(thing.height * side)))
    image = cutout.image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if thing.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = image.getchannel("A")
    colours = image.convert("RGB")
    if thing.grey:
        colours = colours.convert("L").convert("RGB")
    image = ImageEnhance.Brightness(colours).enhance(thing.brightness)
    image.putalpha(alpha)
    return image.rotate(thing.angle, Image.Resampling.BICUBIC, expand=True)


def _draw_sign(sign: Sign, side: int) -> Image.Image:
    board, letters = SIGN_COLOURS[sign.colours]
    # Drawn at twice the size: Pillow's polygons have hard edges.
    width, height = round(2 * sign.width * side), round(2 * sign.height * side)
    image = Image.new("RGBA", (width, height), (*board, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, width - 1, height - 1), radius=height // 8, fill=(*letters, 255))
    edge = max(2, height // 24)
    draw.rounded_rectangle((edge, edge, width - 1 - edge, height - 1 - edge), radius=height // 9, fill=(*board, 255))
    text = sign.word.upper()
    font = _font(sign.font, 200)
    left, top, right, bottom = font.getbbox(text)
    size = 200 * min(0.86 * width / (right - left), 0.74 * height / (bottom - top))
    draw.text((width / 2, height / 2), text, font=_font(sign.font, int(size)), anchor="mm", fill=(*letters, 255))
    image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    return image.rotate(sign.angle, Image.Resampling.BICUBIC, expand=True)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships the DejaVu families, so that the signs look the same on every machine.
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _paste(image: Image.Image, patch: Image.Image, x: float, y: float) -> None:
    """Put the centre of `patch` at (x, y), fractions of the image's sides."""
    corner = (round(x * image.width - patch.width / 2), round(y * image.height - patch.height / 2))
    image.paste(patch, corner, patch)

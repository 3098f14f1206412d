"""What the demo's pictures are put together from: which photos are which object, and which are kept for testing.

Objects are cut-outs from Debian's tuxpaint-stamps-default, chosen by eye: photos only, one plain word each, at least
one photo of every class held out ("unseen": only test pictures show it). Backgrounds are landmarks from
gcompris-qt-data; a landmark is in training or in testing, never in both.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ablate.demo.licences import Credit

CUTOUT_SIDE = 192
"""Cut-outs are kept with a longest side of this many pixels: more than any picture shows of them."""
BACKGROUND_SIDE = 288
"""Backgrounds are kept with a shortest side of this many pixels."""
COLOURFUL = 0.20
"""Mean chroma (largest minus smallest channel, 0 to 1) above which a cut-out is clearly not black and white."""


@dataclass(frozen=True)
class ObjectClass:
    """One kind of object: its name (one word, the answer), its theme, and its photos' paths without the suffix."""

    name: str
    theme: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def _stamps(name: str, theme: str, folder: str, seen: str, unseen: str) -> ObjectClass:
    def paths(names: str) -> tuple[str, ...]:
        return tuple(f"{folder}/{each}" for each in names.split())

    return ObjectClass(name, theme, paths(seen), paths(unseen))


_MAMMALS, _BIRDS, _FRUIT = "animals/mammals", "animals/birds", "food/fruit"
# Four themes of five: POPE's adversarial questions ask for an absent object of the theme of one that is there.
STAMPS = (
    _stamps("cow", "beasts", f"{_MAMMALS}/bovines", "cow cow_white bull", "zebu"),
    _stamps("pig", "beasts", _MAMMALS, "pig pig_golden", "pig_golden2"),
    _stamps("sheep", "beasts", f"{_MAMMALS}/bovines", "ram sheep", "sheep_lamb"),
    _stamps("bear", "beasts", f"{_MAMMALS}/bears", "bear", "european-bear"),
    _stamps("tiger", "beasts", f"{_MAMMALS}/cats", "tiger", "tiger_sumatran"),
    _stamps("rabbit", "small animals", _MAMMALS, "rabbit_little rodents/rabbit", "rodents/rabbit-2"),
    _stamps("duck", "small animals", _BIRDS, "duck", "drake"),
    _stamps("chicken", "small animals", _BIRDS, "hen rooster", "chicken_profile"),
    _stamps("penguin", "small animals", _BIRDS, "penguin magellanic_penguin", "little-penguin"),
    _stamps(
        "fish",
        "small animals",
        "animals/fish",
        "bluegroper butterflyfish dolphinfish moonwrasse stripedfish",
        "clownfish coraltrout",
    ),
    _stamps("apple", "plants", _FRUIT, "apple_fuji apple_green apple_red apple_granny_smith", "apple_sierra_beauty"),
    _stamps("orange", "plants", _FRUIT, "orange sliced_orange orange_seville", "mandarine"),
    _stamps("mushroom", "plants", "plants/mushrooms", "cep cep-1", "cep-2"),
    _stamps(
        "flower",
        "plants",
        "plants/flowers",
        "adeenia anemone_red daffodil flower1 flower3 flower6 flower9 iris rose red-gazania yellow-flower",
        "flower2 flower4 marigold whitestar-petunia",
    ),
    _stamps("tree", "plants", "plants/trees", "birch holm_oak liberia-palm", "tree336"),
    _stamps("car", "things", "vehicles/auto", "beetle sportscar2", "sedan"),
    _stamps("truck", "things", "vehicles", "auto/truck emergency/firetruck", "garbagetruck"),
    _stamps("guitar", "things", "hobbies/music/string", "guitar2 guitar_electric", "guitar_classical"),
    _stamps("ball", "things", "sports", "basketball soccer cricketball", "tennis_ball"),
    _stamps(
        "coin",
        "things",
        "symbols/money",
        "euro/coins/005 euro/coins/050 euro/coins/100 us/coins/001penny us/coins/010dime japanese/yen050 "
        "canadian/coins/100loonie",
        "euro/coins/200 us/coins/005nickel canadian/coins/001penny",
    ),
)

# In explore_monuments.rcc (countries) and clickgame.rcc (the sea). Left out: photos of models, in black and white, or
# of single figures; and what is not in the public domain (licences.py checks that again, photo by photo).
LANDMARKS_TRAIN = (
    "ajantaCave",
    "arlesAmphitheater",
    "bentPyramid",
    "berlinCathedral",
    "brandenburgGate",
    "canyondeChelly",
    "charminar",
    "chateaudeChambord",
    "citedeCarcassonne",
    "colosseum",
    "fortSumter",
    "gatewayofIndia",
    "goldenTemple",
    "greatWallofChina",
    "hawaMahal",
    "lincolnMemorial",
    "machuPicchu",
    "montStMichel",
    "mysorePalace",
    "navajo",
    "neuschwansteinCastle",
    "palaisdesPapes",
    "pontduGard",
    "qutubMinar",
    "redPyramid",
    "reimsCathedral",
    "rocamadour",
    "trierImperialBaths",
    "sea1",
    "sea2",
    "sea4",
)
LANDMARKS_TEST = (
    "castillodeSanMarcos",
    "chateaudeChenonceau",
    "eiffelTower",
    "georgeWashingtonBirthplace",
    "greatPyramidOfGiza",
    "greatStupa",
    "konarkSunTemple",
    "meidumPyramid",
    "mountRushmore",
    "petra",
    "rangGhar",
    "schwerinPalace",
    "victoriaMemorial",
    "sea3",
    "sea5",
)


@dataclass(frozen=True)
class Cutout:
    """One object's photo: RGBA, cropped to what is visible."""

    image: Image.Image
    source: str
    chroma: float

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.image.width / self.image.height

    @property
    def colourful(self) -> bool:
        return self.chroma >= COLOURFUL


@dataclass(frozen=True)
class Background:
    """One full-frame photo."""

    image: Image.Image
    source: str


@dataclass(frozen=True)
class Catalogue:
    """Everything that scenes are made of, decoded and in memory (about 30 MB).

    Attributes:
        classes: the objects' names: the answers.
        theme: of every class.
        cutouts: by (class, unseen).
        backgrounds: by split, "train" and "test".
        kind: "photos", or "shapes" for the fallback that needs no download.
    """

    classes: tuple[str, ...]
    theme: dict[str, str]
    cutouts: dict[tuple[str, bool], list[Cutout]]
    backgrounds: dict[str, list[Background]]
    kind: Literal["photos", "shapes"]
    credits: tuple[Credit, ...] = ()

    def colourful(self, name: str, unseen: bool) -> list[int]:
        """The numbers of a class's cut-outs that are clearly colorful."""
        return [i for i, cutout in enumerate(self.cutouts[name, unseen]) if cutout.colourful]


def make_cutout(image: Image.Image, source: str) -> Cutout:
    """Crop to the visible part and shrink. `image` in any mode with transparency."""
    image = image.convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    if box is None:
        raise ValueError(f"{source} is transparent everywhere")
    image = image.crop(box)
    image.thumbnail((CUTOUT_SIDE, CUTOUT_SIDE), Image.Resampling.LANCZOS)
    alpha = np.asarray(image.getchannel("A"), dtype=np.float64)
    chroma = np.ptp(np.asarray(image.convert("RGB"), dtype=np.float64), axis=-1)
    return Cutout(image, source, float((chroma * alpha).sum() / alpha.sum() / 255))


def make_background(image: Image.Image, source: str) -> Background:
    image = image.convert("RGB")
    factor = BACKGROUND_SIDE / min(image.size)
    size = (round(image.width * factor), round(image.height * factor))
    return Background(image.resize(size, Image.Resampling.LANCZOS), source)

"""Tiny stand-ins for the demo's real parts: generated pictures in the same folders, and catalogues without a file."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from PIL import Image, ImageDraw
from tokenizers import decoders, models, pre_tokenizers

from ablate.demo import catalogue as cat
from ablate.demo import parts
from ablate.demo.shapes import shapes_catalogue

_DATA = runpy.run_path(str(Path(__file__).parents[1] / "datamodules" / "conftest.py"))
tokenizer_file, tokenizer, make_image = _DATA["tokenizer_file"], _DATA["tokenizer"], _DATA["make_image"]


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the kind that GPT-NeoX's is, whose tokens are the 256 bytes."""
    symbols = ["<|endoftext|>", "<|padding|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = tokenizers.Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(symbols[:2])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _cutout(rng: np.random.Generator) -> Image.Image:
    """A blob with a colour and a shape of its own, and transparent borders."""
    width, height = (int(side) for side in rng.integers(24, 72, size=2))
    image = Image.new("RGBA", (width + 8, height + 8), (0, 0, 0, 0))
    colour = (int(rng.integers(160, 256)), int(rng.integers(0, 60)), int(rng.integers(0, 256)), 255)
    ImageDraw.Draw(image).ellipse((4, 4, width + 3, height + 3), fill=colour)
    return image


def _photo(rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, size=(4, 6, 3), dtype=np.uint8)).resize((90, 60))


@pytest.fixture(scope="session")
def photo_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of parts as `fetch_pictures` leaves it, with generated pictures."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("parts")
    for each in cat.STAMPS:
        for name in (*each.seen, *each.unseen):
            path = folder / "stamps" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _cutout(rng).save(path)
    (folder / "backgrounds").mkdir()
    credits = []
    for name in (*cat.LANDMARKS_TRAIN, *cat.LANDMARKS_TEST):
        _photo(rng).save(folder / "backgrounds" / f"{name}.webp")
        credits.append({"name": name, "authors": "Somebody", "licence": "CC0-1.0", "source": ""})
    (folder / "backgrounds" / parts.CREDITS_FILE).write_text(json.dumps(credits))
    return folder


@pytest.fixture(scope="session")
def photos(photo_parts: Path) -> cat.Catalogue:
    """Twenty classes with the real names, themes and numbers of photos."""
    return parts.load_photos(photo_parts)


@pytest.fixture(scope="session")
def shapes() -> cat.Catalogue:
    return shapes_catalogue(seed=0)


@pytest.fixture(params=["photos", "shapes"])
def catalogue(request: pytest.FixtureRequest) -> cat.Catalogue:
    return request.getfixturevalue(request.param)

"""The demo's settings and the paths of its files. Imports nothing heavy: the command line reads it at every start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from ablate.core.errors import UserError
from ablate.core.fields import INT64, Count, CountOrZero, Range, Share, check_ranges

TASKS = ("demo_vqa", "demo_gqa", "demo_textvqa", "demo_pope", "demo_vizwiz", "demo_vsr")


@dataclass
class DemoConfig:
    """What the demo dataset is made of. Two builds with equal settings have equal bytes."""

    # Pictures to train on.
    n_train_images: Count = 3000
    # Records (conversations) about each training picture, with other coins in each.
    conversations_per_image: Count = 1
    # Questions of each of the six tasks; a multiple of 240 makes every balance exact.
    n_eval_questions: Annotated[int, Range(24, INT64)] = 240
    # Width and height of the pictures, in pixels.
    image_size: Annotated[int, Range(64, 4096)] = 224
    jpeg_quality: Annotated[int, Range(1, 100)] = 90
    seed: CountOrZero = 0
    # Around the questions of the training conversations: the benchmarks' own words, or next to none (then evaluate with
    # evaluation.prompt=bare).
    prompts: Literal["bare", "official"] = "bare"
    # Of the test pictures, the share that shows object photos (signs: typefaces) that no training picture has.
    unseen_share: Share = 0.25
    # "real": photos from Debian's packages, or an error. "procedural": drawn shapes, no download of pictures.
    # "auto": real where Debian's packages are within reach, else procedural, and it says so.
    pictures: Literal["auto", "real", "procedural"] = "auto"
    # Threads that draw; 0 = one per core. Changes no byte.
    num_workers: CountOrZero = 0

    def __post_init__(self) -> None:
        check_ranges(self, "demo")
        if self.n_eval_questions % 24:
            raise UserError(f"n_eval_questions is {self.n_eval_questions}; it must be a multiple of 24.")
        if self.prompts not in ("bare", "official"):
            raise UserError(f'prompts is "{self.prompts}"; it must be "bare" or "official".')
        if self.pictures not in ("auto", "real", "procedural"):
            raise UserError(f'pictures is "{self.pictures}"; it must be "auto", "real" or "procedural".')


@dataclass(frozen=True)
class DemoPaths:
    """Where a finished demo dataset keeps its files, all below `root`."""

    root: Path

    @property
    def parts(self) -> Path:
        """Downloaded packages and what was taken out of them."""
        return self.root / "parts"

    @property
    def tokenizer(self) -> Path:
        """GPT-NeoX-20B's tokenizer, cut down to the tokens that the dataset uses."""
        return self.root / "tokenizer.json"

    @property
    def train(self) -> Path:
        """Folder of WebDataset shards and their index.json."""
        return self.root / "train"

    @property
    def eval(self) -> Path:
        """Folder with one folder per task, in the official layout of the benchmark it mirrors."""
        return self.root / "eval"

    def task(self, name: str) -> Path:
        """The folder of one of `TASKS`."""
        return self.eval / name

    @property
    def licences(self) -> Path:
        """What every part is licensed under, and by whom it is."""
        return self.root / "licences.md"

    @property
    def contact_sheet(self) -> Path:
        """Some pictures of every task with their questions and answers."""
        return self.root / "contact_sheet.png"

    @property
    def manifest(self) -> Path:
        """The settings, the parts with their hashes, the split and the hashes of everything written."""
        return self.root / "manifest.json"

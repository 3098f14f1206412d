"""Samples as a model gets them: which tokens there are, which of them are learned, and the image with its grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datamodules import IGNORE_INDEX, IMAGE_TOKEN_ID
from datamodules.text.conversation import IMAGE_MARKER, Encoded
from datamodules.text.tokenizer import Tokenizer

COLUMNS, TILE, MARGIN, LINE, MAX_LINES = 4, 300, 24, 17, 16
PAPER, INK, FAINT, ACCENT = (250, 249, 246), (32, 34, 38), (118, 122, 130), (20, 98, 90)
GRID_LINE = (255, 255, 255, 120)


@dataclass(frozen=True)
class Span:
    """Text of the fewest tokens that are whole characters together, or the visual tokens.

    Attributes:
        text: printable but for line ends; "" for visual tokens.
        tokens: how many.
        learned: whether they carry loss.
    """

    text: str
    tokens: int
    learned: bool

    @property
    def visual(self) -> bool:
        return not self.text


@dataclass(frozen=True)
class Shown:
    """One sample to draw. `picture`: what the encoder sees, float (3, H, W) in 0 to 1; None for text alone."""

    key: str
    record: dict[str, Any]
    encoded: Encoded
    picture: Tensor | None


def spans(encoded: Encoded, tokenizer: Tokenizer) -> Iterator[Span]:
    """The tokens of a conversation as text, in order. A character that is several tokens is one span."""
    ids: list[int] = []
    visual = 0
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if token == IMAGE_TOKEN_ID:
            visual += 1
            continue
        if visual:
            yield Span("", visual, False)
            visual = 0
        ids.append(token)
        text = tokenizer.decode(ids)
        if "\ufffd" not in text or len(ids) > 4:
            yield Span(printable(text), len(ids), label != IGNORE_INDEX)
            ids = []
    if visual:
        yield Span("", visual, False)
    if ids:
        yield Span(printable(tokenizer.decode(ids)), len(ids), encoded.labels[-1] != IGNORE_INDEX)


def printable(text: str) -> str:
    """The text with what could command a terminal written out: somebody else's data is shown here."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def unnormalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo an encoder's normalisation: (3, H, W) -> the same in 0 to 1."""
    shape = (3, 1, 1)
    return (image.float() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)


def contact_sheet(samples: Sequence[Shown], grid: tuple[int, int]) -> Image.Image:
    """Draw samples side by side: what the encoder sees with the grid of its features, what is asked and answered.

    Args:
        grid: (h, w) of the features.
    """
    rows = [samples[start : start + COLUMNS] for start in range(0, len(samples), COLUMNS)]
    texts = [[_lines(sample) for sample in row] for row in rows]
    heights = [TILE + 30 + LINE * max(map(len, row)) + MARGIN for row in texts]
    width = MARGIN + min(COLUMNS, len(samples)) * (TILE + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for row, lines, height in zip(rows, texts, heights, strict=True):
        for column, (sample, text) in enumerate(zip(row, lines, strict=True)):
            left = MARGIN + column * (TILE + MARGIN)
            sheet.paste(_tile(sample, grid), (left, top))
            pen.text((left, top + TILE + 6), _fit(sample.key, _font(bold=True)), font=_font(bold=True), fill=INK)
            for number, (line, answer) in enumerate(text):
                place = (left, top + TILE + 28 + number * LINE)
                pen.text(place, line, font=_font(bold=answer), fill=ACCENT if answer else FAINT)
        top += height
    return sheet


def _tile(sample: Shown, grid: tuple[int, int]) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE), (236, 234, 228))
    pen = ImageDraw.Draw(tile, "RGBA")
    if sample.picture is None:
        pen.text((TILE / 2, TILE / 2), "text only", font=_font(), fill=FAINT, anchor="mm")
        return tile
    pixels = (sample.picture.permute(1, 2, 0) * 255).round().byte().numpy()
    tile.paste(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC))
    for lines, vertical in ((grid[1], True), (grid[0], False)):
        for number in range(1, lines):
            at = round(number * TILE / lines)
            pen.line((at, 0, at, TILE) if vertical else (0, at, TILE, at), fill=GRID_LINE)
    return tile


def _lines(sample: Shown) -> list[tuple[str, bool]]:
    """Wrapped turns; True marks an answer. What is too long for the sheet ends in an ellipsis."""
    lines: list[tuple[str, bool]] = []
    for turn in sample.record["conversations"]:
        answer = turn["from"] == "gpt"
        text = printable(turn["value"].replace(IMAGE_MARKER, "")).strip()
        lines += [(line, answer) for line in _wrap(text, _font(bold=answer))]
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], ("…", False)]


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fit(line, font) for line in lines]


def _fit(text: str, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= TILE:
        return text
    while font.getlength(f"{text}…") > TILE:
        text = text[:-1]
    return f"{text}…"


def _font(*, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), 13)

"""The contact sheet: some pictures of every test set with what is asked about them and the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ablate.demo.catalogue import Catalogue
from ablate.demo.evalsets import Asked, TestImage
from ablate.demo.scenes import render

COLUMNS, MAX_QUESTIONS = 6, 3
TILE, MARGIN, HEADER, LINE = 224, 20, 38, 17
PAPER, INK, FAINT, ACCENT, WHITE = (250, 249, 246), (32, 34, 38), (118, 122, 130), (20, 98, 90), (255, 255, 255)
TITLES = {
    "demo_vqa": "open questions, after VQAv2",
    "demo_gqa": "attributes and relations, after GQA",
    "demo_textvqa": "text in the picture, after TextVQA",
    "demo_pope": "presence, after POPE",
    "demo_vizwiz": "can it be told at all? after VizWiz",
    "demo_vsr": "spatial statements, after VSR",
}


@dataclass(frozen=True)
class _Line:
    text: str
    answer: str = ""


def contact_sheet(plans: Mapping[str, Sequence[TestImage]], catalogue: Catalogue) -> Image.Image:
    """One row of pictures a task. Pictures of held-out photos are marked "unseen".

    Args:
        plans: the pictures and questions of every task.
        catalogue: to draw them with.

    Returns:
        An RGB image, about 1500 pixels wide.
    """
    rows = [(task, [(image, _lines(image.asked)) for image in _choose(images)]) for task, images in plans.items()]
    heights = [HEADER + TILE + LINE * max(len(lines) for _, lines in shown) + 14 + MARGIN for _, shown in rows]
    sheet = Image.new("RGB", (MARGIN + COLUMNS * (TILE + MARGIN), MARGIN + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for (task, shown), height in zip(rows, heights, strict=True):
        pen.text((MARGIN, top), task, font=_font("DejaVuSans-Bold", 20), fill=INK)
        shift = pen.textlength(task, font=_font("DejaVuSans-Bold", 20))
        pen.text((MARGIN + shift + 12, top + 4), TITLES.get(task, ""), font=_font("DejaVuSans", 15), fill=FAINT)
        for column, (image, lines) in enumerate(shown):
            left = MARGIN + column * (TILE + MARGIN)
            sheet.paste(render(image.scene, catalogue, TILE), (left, top + HEADER))
            if image.scene.unseen:
                _badge(pen, left + TILE, top + HEADER)
            _write(pen, lines, left, top + HEADER + TILE + 8)
        top += height
    return sheet


def _choose(images: Sequence[TestImage]) -> list[TestImage]:
    """Pictures of as many kinds of question, and with as many objects, as there are."""
    by_kind: dict[tuple, list[TestImage]] = {}
    for image in images:
        kind = (tuple(asked.kind for asked in image.asked), len(image.scene.things))
        by_kind.setdefault(kind, []).append(image)
    chosen: list[TestImage] = []
    depth = 0
    while len(chosen) < min(COLUMNS, len(images)):
        # Seen and unseen in turn, where there are both.
        for number, group in enumerate(by_kind.values()):
            ordered = sorted(group, key=lambda image: image.scene.unseen != bool((number + depth) % 2))
            chosen += ordered[depth : depth + 1]
        depth += 1
    return chosen[:COLUMNS]


def _lines(asked: Sequence[Asked]) -> list[_Line]:
    """Questions, each once, wrapped, with the answer at the end of the last line or on one of its own."""
    plain, bold = _font("DejaVuSans", 13), _font("DejaVuSans-Bold", 13)
    lines = []
    for question, answer in list({each.question: each.answer for each in asked}.items())[:MAX_QUESTIONS]:
        wrapped = _wrap(question, plain)
        if plain.getlength(f"{wrapped[-1]}  ") + bold.getlength(answer) <= TILE:
            last = [_Line(wrapped[-1], answer)]
        else:
            last = [_Line(wrapped[-1]), _Line("", answer)]
        lines += [*(_Line(text) for text in wrapped[:-1]), *last]
    return lines


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[_Line], left: int, top: int) -> None:
    plain, bold = _font("DejaVuSans", 13), _font("DejaVuSans-Bold", 13)
    for number, line in enumerate(lines):
        y = top + number * LINE
        pen.text((left, y), line.text, font=plain, fill=INK)
        shift = plain.getlength(f"{line.text}  ") if line.text else 0
        pen.text((left + shift, y), line.answer, font=bold, fill=ACCENT)


def _badge(pen: ImageDraw.ImageDraw, right: int, top: int) -> None:
    font = _font("DejaVuSans-Bold", 11)
    width = font.getlength("unseen")
    pen.rounded_rectangle((right - width - 18, top + 6, right - 6, top + 24), radius=9, fill=ACCENT)
    pen.text((right - width / 2 - 12, top + 15), "unseen", font=font, fill=WHITE, anchor="mm")


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)

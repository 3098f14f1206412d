"""The contact sheet: some pictures of every test set with what is asked about them and the answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from datamodules.demo.catalogue import Catalogue
from datamodules.demo.evalsets import Asked, TestImage
from datamodules.demo.scenes import render

COLUMNS = 6
TILE, MARGIN, HEADER, LINE = 224, 18, 40, 19
TEXT_LINES = 7
PAPER, INK, FAINT, ACCENT = (250, 249, 246), (32, 34, 38), (118, 122, 130), (20, 98, 90)
TITLES = {
    "demo_vqa": "open questions",
    "demo_gqa": "attributes and relations",
    "demo_textvqa": "text in the picture",
    "demo_pope": "presence",
    "demo_vizwiz": "can it be told at all?",
    "demo_vsr": "spatial statements",
}


def contact_sheet(plans: Mapping[str, Sequence[TestImage]], catalogue: Catalogue) -> Image.Image:
    """One row of pictures a task.

    Args:
        plans: the pictures and questions of every task.
        catalogue: to draw them with.

    Returns:
        An RGB image of about 1500 x 2600 pixels.
    """
    row = HEADER + TILE + LINE * TEXT_LINES + MARGIN
    width = MARGIN + COLUMNS * (TILE + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + row * len(plans)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (task, images) in enumerate(plans.items()):
        top = MARGIN + number * row
        pen.text((MARGIN, top), task, font=_font("DejaVuSans-Bold", 20), fill=INK)
        shift = pen.textlength(task, font=_font("DejaVuSans-Bold", 20))
        pen.text((MARGIN + shift + 12, top + 4), TITLES[task], font=_font("DejaVuSans", 15), fill=FAINT)
        for column, image in enumerate(_choose(images)):
            left = MARGIN + column * (TILE + MARGIN)
            sheet.paste(render(image.scene, catalogue, TILE), (left, top + HEADER))
            if image.scene.unseen:
                pen.text((left, top + HEADER + TILE + 3), "unseen", font=_font("DejaVuSans", 11), fill=ACCENT)
            _write_questions(pen, image.asked, left, top + HEADER + TILE + 16)
    return sheet


def _choose(images: Sequence[TestImage]) -> list[TestImage]:
    """Pictures evenly spaced over the kinds of question, so that every kind is shown."""
    by_kind: dict[tuple, list[TestImage]] = {}
    for image in images:
        by_kind.setdefault((tuple(asked.kind for asked in image.asked), len(image.scene.things)), []).append(image)
    chosen, depth = [], 0
    while len(chosen) < min(COLUMNS, len(images)):
        chosen += [group[depth] for group in by_kind.values() if depth < len(group)]
        depth += 1
    return chosen[:COLUMNS]


def _write_questions(pen: ImageDraw.ImageDraw, asked: Sequence[Asked], left: int, top: int) -> None:
    plain, bold = _font("DejaVuSans", 13), _font("DejaVuSans-Bold", 13)
    y = top
    for each in asked[:3]:
        lines = _wrap(pen, each.question, plain)
        for line in lines:
            pen.text((left, y), line, font=plain, fill=INK)
            y += LINE - 3
        # The answer follows on the same line where there is room for it.
        end = pen.textlength(lines[-1] + "  ", font=plain)
        if end + pen.textlength(each.answer, font=bold) <= TILE:
            pen.text((left + end, y - LINE + 3), each.answer, font=bold, fill=ACCENT)
        else:
            pen.text((left, y), each.answer, font=bold, fill=ACCENT)
            y += LINE - 3
        y += 4


def _wrap(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if pen.textlength(longer, font=font) <= TILE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)

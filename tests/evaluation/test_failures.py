"""The page of failures: what is in it, and (in a real Chromium, where there is one) how it behaves."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ablate.core.errors import UserError
from ablate.evaluation import failures
from ablate.evaluation.failures import Answered, write_page

EVIL = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"><!-- {{data}}"
MOST_NODES = 3_000  # of a page of rows, however many there are


def record(number: int, score: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "question": f"What is number {number}?",
        "prediction": "cat",
        "answer": ["dog"] * 7 + ["puppy"] * 3,
        "score": score,
        "weight": 1.0,
        "type": "other" if number % 2 else "yes/no",
        "group": "",
    } | fields


def data_of(page: Path) -> dict[str, Any]:
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(data)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images and #more"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (400, 300), (80 * number, 90, 90)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


# -- What is in it ----------------------------------------------------------------------------------------------------


def test_a_row_is_a_question_that_some_run_failed_at(tmp_path: Path) -> None:
    one = Answered("mlp", "mlp", {"vqa": [record(1), record(2, 1.0), record(3, 0.3)]}, {"vqa": "3 of 9"})
    other = Answered(
        "csm", "msc_csm", {"vqa": [record(1, 1.0, prediction="dog"), record(2, 1.0)], "vsr": [record(1, 1.0)]}
    )
    written = write_page(tmp_path / "page.html", [one, other], {})
    data = data_of(tmp_path / "page.html")
    assert (written.failures, written.shown, written.without_image) == (2, 2, 2)
    first, third = data["rows"]
    assert (first["id"], first["a"]) == ("1", [["dog", 7], ["puppy", 3]])
    assert first["r"] == [["cat", 0, ""], ["dog", 1, ""]]
    assert third["r"] == [["cat", 0.3, ""], None]
    assert data["summary"] == [
        [
            {"n": 3, "failed": 2, "score": 43.3333, "partial": "3 of 9"},
            {"n": 2, "failed": 0, "score": 100, "partial": ""},
        ],
        [None, {"n": 1, "failed": 0, "score": 100, "partial": ""}],
    ]


def test_a_likelihood_is_shown(tmp_path: Path) -> None:
    rows = [record(1, answer="yes", prediction="No", p_yes=0.25)]
    write_page(tmp_path / "page.html", [Answered("mlp", "mlp", {"pope": rows})], {})
    [row] = data_of(tmp_path / "page.html")["rows"]
    assert (row["a"], row["r"]) == ([["yes", 1]], [["No", 0, "P(yes) = 0.250"]])


def test_an_image_is_there_once_and_small(images: list[Path], tmp_path: Path) -> None:
    rows = [record(number) for number in range(60)]
    where = {("vqa", str(number)): images[number % 3] for number in range(60)}
    write_page(tmp_path / "page.html", [Answered("mlp", "mlp", {"vqa": rows})], where)
    data = data_of(tmp_path / "page.html")
    assert len(data["pictures"]) == 3
    assert [row["i"] for row in data["rows"]] == [0, 1, 2] * 20
    assert (tmp_path / "page.html").stat().st_size < 60_000


def test_beyond_the_most_thumbnails_images_are_linked(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "MOST_THUMBNAILS", 1)
    (tmp_path / "out").mkdir()
    where = {("vqa", str(number)): path for number, path in enumerate([*images, tmp_path / "gone.png"])}
    rows = [record(number) for number in range(5)]
    written = write_page(tmp_path / "out" / "page.html", [Answered("mlp", "mlp", {"vqa": rows})], where)
    data = data_of(tmp_path / "out" / "page.html")
    assert data["pictures"][0].startswith("data:image/jpeg;base64,")
    assert data["pictures"][1:] == ["../images%20and%20%23more/1.png", "../images%20and%20%23more/2.png"]
    assert [row["i"] for row in data["rows"]] == [0, 1, 2, -1, -1]
    assert written.without_image == 2


def test_more_failures_than_fit_are_thinned_evenly_and_told(tmp_path: Path) -> None:
    tasks = {"big": [record(number) for number in range(900)], "small": [record(number) for number in range(100)]}
    written = write_page(tmp_path / "page.html", [Answered("mlp", "mlp", tasks)], {}, most=100)
    data = data_of(tmp_path / "page.html")
    assert (written.failures, written.shown, data["failures"]) == (1000, 100, 1000)
    assert [row["id"] for row in data["rows"] if row["t"] == 0] == [str(number) for number in range(0, 900, 10)]
    assert sum(row["t"] == 1 for row in data["rows"]) == 10
    assert data["summary"][0][0]["failed"] == 900


def test_runs_need_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Two runs have one name: mlp, mlp"):
        write_page(tmp_path / "page.html", [Answered("mlp", "mlp", {}), Answered("mlp", "mlp", {})], {})


def test_no_text_can_leave_its_place_and_the_bytes_repeat(tmp_path: Path) -> None:
    rows = [record(1, question=EVIL, prediction=EVIL, answer=[EVIL] * 10, type=EVIL, id=EVIL)]
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, [Answered(EVIL, EVIL, {EVIL: rows})], {})
    text = (tmp_path / "a.html").read_text()
    assert text.count("</script>") == text.count("<script") == 2
    assert "<img src=x" not in text
    assert data_of(tmp_path / "a.html")["rows"][0]["q"] == EVIL
    assert text == (tmp_path / "b.html").read_text()
    outside = re.findall(
        r"(?:src|href)=[\"']?(?!x )[\w:/.]+|https?://", re.sub(r'id="data">.*?</script>', "", text, flags=re.DOTALL)
    )
    assert outside == []


# -- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Any]:
    """visit(path): the page opened from disk, offline; any complaint or request to elsewhere fails the test."""
    context, complaints = chromium.new_context(offline=True), []

    def open_page(path: Path) -> Any:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    context.close()
    assert complaints == []


def count(page: Any) -> str:
    return page.locator("#count").inner_text()


def two_runs(rows: int) -> Sequence[Answered]:
    """Task vqa: even rows failed by mlp, every third by csm. Task vsr: ten rows, failed by both."""
    mlp = [record(number, float(number % 2), question=f"What is number {number}?") for number in range(rows)]
    csm = [record(number, 0.3 if number % 3 == 0 else 1.0) for number in range(rows)]
    vsr = [record(number, type="on") for number in range(10)]
    return [Answered("mlp", "mlp", {"vqa": mlp, "vsr": vsr}), Answered("csm", "msc_csm", {"vqa": csm, "vsr": vsr})]


def test_filters_and_counts(visit: Any, images: list[Path], tmp_path: Path) -> None:
    where = {("vqa", str(number)): images[number % 3] for number in range(120)}
    write_page(tmp_path / "page.html", two_runs(120), where)
    page = visit(tmp_path / "page.html")
    assert count(page) == "90 of 90 questions"  # 80 of 120 (even, or a multiple of three), and 10
    assert page.locator("#rows tbody tr").count() == 50
    assert page.evaluate("document.querySelector('#rows img').naturalWidth") == 160
    page.select_option("#task", label="vsr")
    assert count(page) == "10 of 90 questions"
    assert page.locator("#type option").all_inner_texts() == ["all types", "on"]
    assert page.locator("#rows .none").count() == 10  # its images are not known
    page.select_option("#task", label="vqa")
    page.select_option("#connector", label="mlp")
    assert count(page) == "60 of 90 questions"
    page.select_option("#type", label="other")
    assert count(page) == "0 of 90 questions"  # odd rows, all of which it has right
    assert "No question matches" in page.locator("#rows").inner_text()
    page.select_option("#connector", label="csm")
    assert count(page) == "20 of 90 questions"
    page.get_by_role("button", name="Reset").click()
    page.get_by_text("90 of 90 questions").wait_for()
    page.select_option("#verdict", label="partly right")
    assert count(page) == "40 of 90 questions"
    page.get_by_label("another was right").check()
    assert count(page) == "20 of 90 questions"
    page.get_by_role("button", name="Reset").click()
    page.get_by_label("Text").fill("NUMBER 118?")
    assert count(page) == "1 of 90 questions"


def test_pages_are_turned(visit: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", two_runs(120), {})
    page = visit(tmp_path / "page.html")
    assert page.locator("#previous").is_disabled()
    page.get_by_role("button", name="Next").click()
    assert page.locator("#rows tbody tr").count() == 40
    assert page.locator("#next").is_disabled()
    page.select_option("#page", index=0)
    assert page.locator("#rows tbody tr").count() == 50


def test_what_people_and_models_say_is_never_run(visit: Any, tmp_path: Path) -> None:
    rows = [record(1, question=EVIL, prediction=EVIL, answer=[EVIL] * 10, type=EVIL, id=EVIL)]
    write_page(tmp_path / "page.html", [Answered(EVIL, EVIL, {EVIL: rows})], {})
    page = visit(tmp_path / "page.html")
    assert page.title() == f"Failures of {EVIL}"
    assert page.locator(".question").inner_text() == EVIL
    page.select_option("#type", label=EVIL)
    assert count(page) == "1 of 1 questions"
    assert page.locator("img").count() == 0


def test_linked_images_are_shown(
    visit: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "MOST_THUMBNAILS", 0)
    write_page(tmp_path / "page.html", [Answered("mlp", "mlp", {"vqa": [record(0)]})], {("vqa", "0"): images[0]})
    page = visit(tmp_path / "page.html")
    assert (
        page.locator("#rows img").evaluate("async (image) => { await image.decode(); return image.naturalWidth; }")
        == 400
    )


def test_ten_thousand_rows_are_a_small_document(visit: Any, images: list[Path], tmp_path: Path) -> None:
    rows = [record(number) for number in range(10_000)]
    where = {("vqa", str(number)): images[number % 3] for number in range(10_000)}
    write_page(tmp_path / "page.html", [Answered("mlp", "mlp", {"vqa": rows})], where)
    page = visit(tmp_path / "page.html")
    assert count(page) == "10,000 of 10,000 questions"
    assert page.evaluate("document.querySelectorAll('*').length") < MOST_NODES
    page.get_by_role("button", name="Next").click()
    page.get_by_label("Text").fill("number 99")
    assert count(page) == "111 of 10,000 questions"
    assert page.evaluate("document.querySelectorAll('*').length") < MOST_NODES


def test_it_can_be_used_without_eyes_or_mouse(visit: Any, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", two_runs(120), {})
    page = visit(tmp_path / "page.html")
    for name in ("Task", "Type", "Connector", "Score", "Page"):
        assert page.get_by_role("combobox", name=name, exact=True).count() == 1
    assert page.get_by_role("status").inner_text() == "90 of 90 questions"
    assert page.locator("#rows").get_by_role("columnheader").all_inner_texts() == [
        "image", "question", "answers", "mlp", "csm"
    ]  # fmt: skip
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert page.locator("#rows tbody tr").count() == 40
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(chromium: Any, scheme: str, tmp_path: Path) -> None:
    """The contrast of text on its background, as the Web Content Accessibility Guidelines define it: 4.5 or more."""
    write_page(tmp_path / "page.html", two_runs(20), {})
    context = chromium.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    pairs = page.evaluate(
        """() => ["h1", ".tag", ".soft", ".wrong", ".partly", ".right", ".question", "label"].map((selector) => {
          const element = document.querySelector(selector);
          let under = element;
          while (getComputedStyle(under).backgroundColor === "rgba(0, 0, 0, 0)") under = under.parentElement;
          return [selector, getComputedStyle(element).color, getComputedStyle(under).backgroundColor];
        })"""
    )
    context.close()
    for selector, *colours in pairs:
        light, dark = sorted((luminance(colour) for colour in colours), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

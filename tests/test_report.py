"""`weakmcn report`: one file that needs no other; what it counts follows the rules that it prints."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from weakmcn.cli import report_page
from weakmcn.cli.cases import BREAKDOWNS, KINDS, RELATIONS, Bin, Case, Target, case_of, counted
from weakmcn.cli.charts import bars, curve, shares
from weakmcn.cli.pictures import Marks
from weakmcn.cli.report import chosen_cases
from weakmcn.cli.report_page import MOST_BYTES, ROWS, Contents, Shown, page, picture
from weakmcn.model.evaluate import Evaluation, SentenceRecord, evaluate_run
from weakmcn.model.metrics import summarise
from weakmcn.model.router import router_weights
from weakmcn.model.run import Run
from weakmcn.pipeline.objects import Thing, things_of
from weakmcn.shards.codec import rle_encode
from weakmcn.shards.store import Store

from .conftest import Ended

SIZE = (20, 40)
"""Height and width of a photograph in which everything can be counted by hand."""


def filled(x0: int, y0: int, x1: int, y1: int) -> str:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return rle_encode(mask)


def thing(x0: int, y0: int, x1: int, y1: int, category: int = 1, *, with_mask: bool = True) -> Thing:
    return Thing(category=category, box_photo=(x0, y0, x1, y1), mask=filled(x0, y0, x1, y1) if with_mask else None)


TRUE_BOX = (0.0, 0.0, 10.0, 10.0)
TARGET = Target(category=1, mask=filled(0, 0, 10, 10), size=SIZE)
NEIGHBOUR = thing(8, 0, 18, 10)
"""Of the target's class; a fifth of the true box is also its own."""
FAR = thing(28, 5, 38, 15, category=2)


def record(sentence: str = "the red square", **values) -> SentenceRecord:
    known = {"key": "1" * 12, "ref_id": 1, "sentence": sentence, "truth_photo": TRUE_BOX}
    return SentenceRecord(**{**known, "box_photo": TRUE_BOX, "box_iou": 1.0, **values})


def masked(x0: int, y0: int, x1: int, y1: int, **values) -> SentenceRecord:
    """A right box with a rectangle as its mask, whose pixels are counted against the true square of 10 x 10."""
    common = max(0, min(x1, 10) - x0) * max(0, min(y1, 10) - y0)
    union = (x1 - x0) * (y1 - y0) + 100 - common
    figures = {"intersection": common, "union": union, "mask_iou": common / union}
    return record(mask=filled(x0, y0, x1, y1), **figures, **values)


def judged(answer: SentenceRecord, *things: Thing) -> Case:
    return case_of(answer, TARGET, [thing(0, 0, 10, 10), *things], own_masks=True)


# The two kinds of failure


def test_a_mask_that_takes_in_a_neighbour_inside_the_right_box_is_a_failure_of_kind_1() -> None:
    spilt = masked(0, 0, 24, 10)  # the target, and 140 pixels more: IoU 100 / 240
    case = judged(spilt, NEIGHBOUR)
    assert case.overlap == pytest.approx(0.0), "all of the neighbour's part is the target's too"
    apart = replace(NEIGHBOUR, mask=filled(10, 0, 18, 10))
    wide = replace(spilt, box_photo=(0.0, 0.0, 16.0, 10.0), box_iou=100 / 160)
    assert judged(wide, apart).overlap == pytest.approx(60 / 160)
    assert judged(wide, apart).kind == 1


@pytest.mark.parametrize(
    ("answer", "others", "why"),
    [
        (masked(0, 0, 24, 10), [], "nothing else is in the box"),
        (masked(0, 0, 18, 10), [thing(10, 0, 18, 10)], "the mask is right: IoU 100 / 180"),
        (masked(0, 0, 3, 10), [thing(10, 0, 18, 10)], "it takes in too little"),
        (masked(0, 0, 24, 10, box_iou=0.5), [thing(10, 0, 18, 10)], "the box is wrong"),
        (masked(0, 0, 24, 10), [FAR], "the other object is elsewhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_lacks_one_condition_is_no_failure_of_kind_1(
    answer: SentenceRecord, others: list[Thing], why: str
) -> None:
    wide = replace(answer, box_photo=(0.0, 0.0, 16.0, 10.0))
    assert judged(wide, *others).kind is None


def test_another_object_found_for_a_long_or_spatial_expression_is_a_failure_of_kind_2() -> None:
    at_far = {"box_photo": FAR.box_photo, "box_iou": 0.0}
    assert judged(record("the square left of it", **at_far), FAR).kind == 2
    assert judged(record("the small plain dark red square", **at_far), FAR).kind == 2
    assert judged(record("small dark red square", **at_far), FAR).kind is None, "four words, none of place"
    assert judged(record("the square left of it", **at_far)).kind is None, "there is nothing"
    nowhere = {"box_photo": (20.0, 0.0, 26.0, 4.0), "box_iou": 0.0}
    assert judged(record("the square left of it", **nowhere), FAR).kind is None, "no object is there"
    assert judged(record("the square left of it"), FAR).kind is None, "it is right"


def test_failures_are_counted_by_kind() -> None:
    one = judged(record("the square left of it", box_photo=FAR.box_photo, box_iou=0.0), FAR)
    assert counted([one, one, judged(record())]) == {1: 0, 2: 2}


def test_the_page_prints_the_numbers_and_words_of_the_rules() -> None:
    text = page(contents([judged(record())]))
    for _, rule in KINDS.values():
        assert rule.replace(">", "&gt;").replace("<", "&lt;") in text
    assert all(word in text for word in RELATIONS)


# What a sentence is told apart by


def test_a_case_counts_words_class_mates_and_the_share_of_the_photograph() -> None:
    case = judged(record("The small, red square!"), NEIGHBOUR, FAR)
    assert case.words == 4
    assert case.same_class == 2
    assert case.size == pytest.approx(100 / 800)


def test_an_answer_without_a_box_is_right_where_its_mask_is() -> None:
    def answer(x1: int) -> Case:
        alone = replace(masked(0, 0, x1, 10), box_photo=None, box_iou=0.0)
        return case_of(alone, TARGET, [NEIGHBOUR, FAR], own_masks=True, boxes=False)

    assert [answer(x1).right for x1 in (10, 6, 5, 3)] == [True, True, False, False]
    assert answer(5).kind is answer(5).overlap is None
    text = page(replace(contents([answer(10), answer(3)]), boxes=False))
    assert "Two kinds of failure" not in text
    assert "RES Pr@0.5" in text
    assert "box IoU 0.00" not in text


def test_overlap_is_the_share_of_the_box_that_is_not_its_main_objects() -> None:
    inside = thing(0, 0, 10, 3)
    assert judged(record(), replace(inside, mask=filled(10, 0, 20, 3))).overlap == 0
    wide = record(box_photo=(0.0, 0.0, 20.0, 10.0), box_iou=0.5)
    assert judged(wide, thing(10, 0, 20, 3)).overlap == pytest.approx(30 / 200)
    assert judged(wide, thing(10, 0, 20, 3, with_mask=False)).overlap == pytest.approx(30 / 200), "its box instead"
    assert judged(record(box_photo=None, box_iou=0.0, miss="x")).overlap is None


def test_disagreement_is_what_mask_and_box_do_not_share() -> None:
    assert judged(masked(0, 0, 10, 10)).disagreement == 0
    assert judged(masked(0, 0, 5, 10)).disagreement == pytest.approx(0.5)
    assert judged(record()).disagreement is None


def test_bins_hold_every_case_once_and_tell_its_mean() -> None:
    cases = [judged(masked(0, 0, 10, 10, sentence="red")), judged(record("red", box_iou=0.1)), judged(record("a b c"))]
    (by_length,) = (each for each in BREAKDOWNS if each.axis == "words")
    assert by_length.bins(cases, masks=True) == [
        Bin(label="1", count=2, rec=50.0, res=50.0),
        Bin(label="3", count=1, rec=100.0, res=0.0),
    ]
    for breakdown in BREAKDOWNS:
        assert len(breakdown.labels) == len(breakdown.edges) + 1
        known = [case for case in cases if breakdown.value(case) is not None]
        assert sum(each.count for each in breakdown.bins(cases, masks=False)) == len(known)


def test_the_gallery_takes_the_best_the_worst_and_some_of_each_failure() -> None:
    def case(number: int, iou: float, kind: int | None = None) -> Case:
        return replace(judged(record(key=f"{number:012d}", box_iou=iou)), mask_iou=iou, kind=kind)

    cases = [case(number, number / 100) for number in range(100)]
    cases += [case(99, 0.999), case(7, 0.5, kind=2)]
    groups = chosen_cases(cases, 4)
    assert [place for place, names in groups.items() if "best" in names] == [100, 98, 97, 96], "a photograph once"
    assert [place for place, names in groups.items() if "worst" in names] == [0, 1, 2, 3]
    assert [place for place, names in groups.items() if "kind2" in names] == [101]
    assert sum("random" in names for names in groups.values()) == 4
    assert chosen_cases(cases, 4) == groups


# The page


def contents(cases: list[Case], shown: list[Shown] | None = None) -> Contents:
    records = [case.record for case in cases]
    found = Evaluation(
        dataset="toy",
        called="toy",
        split="val",
        summary=summarise(records),
        sam_head=summarise(records),
        baselines={name: {"rec_acc50": 1.0, "res_miou": 2.0} for name in ROWS},
        records=records,
        misses={},
        notes=["<b>note</b>"],
    )
    return Contents(
        title="a <title>",
        facts=["run a & b"],
        evaluation=found,
        cases=cases,
        own_masks=True,
        objects="",
        shown=shown or [],
        losses=[{"epoch": 0, "step": 1, "lr": 1e-3, "det": 2.0, "total": 2.0}],
        router={"WREC": {"dino": np.array([0.25, 0.75]), "sam": np.array([0.75, 0.25])}},
    )


def test_nothing_that_comes_from_data_is_taken_for_html() -> None:
    said = """</figcaption><script>alert("x")</script> & 'quoted' $title ${x}"""
    case = judged(record(said, key="1" * 12))
    text = page(contents([case], [Shown(case=case, groups=["best"], picture="data:image/jpeg;base64,")]))
    assert text.count("<script>") == 1
    assert "<title>a &lt;title&gt;</title>" in text
    assert "&lt;b&gt;note&lt;/b&gt;" in text
    assert "run a &amp; b" in text
    figure = text[text.index("<figure") : text.index("</figure>")]
    assert "&lt;script&gt;alert(&quot;x&quot;)" in figure
    assert "$title ${x}" in figure


class Addresses(HTMLParser):
    """Everything a browser would fetch, and the images inside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.images: list[bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data") and value is not None:
                if value.startswith("data:image/jpeg;base64,"):
                    self.images.append(base64.b64decode(value.partition(",")[2]))
                elif not value.startswith("#"):
                    self.outside.append(value)


def test_the_page_of_a_run_needs_no_other_file_and_holds_its_figures(
    demo: Path, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    ended = run("report", demo / "run", "--out", tmp_path / "page.html", "--cases", 3)
    assert ended.status == 0, ended.err
    text = (tmp_path / "page.html").read_text("utf-8")
    found = Addresses()
    found.feed(text)
    assert found.outside == []
    assert not re.search(r"url\(|@import|https?://", text)
    assert 3 <= len(found.images) <= 3 * 3 + 2 * 2
    for image in found.images:
        assert len(image) <= MOST_BYTES
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
    result = evaluate_run(Run.open(demo / "run"), "val")
    assert f"<td>{result.summary['rec_acc50']:.1f}</td>" in text
    assert f"<td>{result.sam_head['res_miou']:.1f}</td>" in text
    for title in ("Results", "Where it is right", "Two kinds of failure", "Gallery", "Training", "DVFE&#x27;s router"):
        assert f"<h2>{title}</h2>" in text
    assert re.search(rf"</b> of {len(result.records)} sentences", text)
    assert {path.name for path in tmp_path.iterdir()} == {"page.html"}


def test_the_routers_weights_are_told_for_every_photograph_and_both_tasks(demo: Path) -> None:
    store = Store.open(demo / "store")
    weights = router_weights(Run.open(demo / "run"), "val", store=store, dataset="refcoco+", device="cpu")
    images = {row["key"] for row in store.references("refcoco+").to_pylist() if row["split"] == "val"}
    assert {task: list(banks) for task, banks in weights.items()} == {"WREC": ["dino", "sam"], "WRES": ["dino", "sam"]}
    for banks in weights.values():
        assert banks["dino"].shape == (len(images),)
        np.testing.assert_allclose(banks["dino"] + banks["sam"], 1, rtol=1e-5)


def test_all_annotated_objects_are_found_those_too_that_nobody_named(demo: Path) -> None:
    store = Store.open(demo / "store")
    rows = store.references("refcoco+").to_pylist()
    things = things_of(demo / "data", "refcoco+", {row["key"] for row in rows})
    assert things is not None
    for row in rows:
        x, y, width, height = row["box"]
        (own,) = [each for each in things[row["key"]] if each.box_photo == (x, y, x + width, y + height)]
        assert own.category == row["category"]
        assert own.mask == row["mask"]
    assert sum(map(len, things.values())) > len(rows)
    assert things_of(demo / "store", "refcoco+", []) is None


def test_a_page_that_is_no_html_and_photographs_that_are_gone_are_refused(
    demo: Path, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    ended = run("report", demo / "run", "--out", tmp_path / "page.pdf")
    assert (ended.status, "page.html" in ended.err) == (2, True)
    ended = run("report", demo / "run", "--out", tmp_path / "page.html", "--data", tmp_path / "gone")
    assert (ended.status, "--data DIR" in ended.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_keeps_its_size_however_noisy_the_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 340, 3), dtype=np.uint8)
    nothing = Marks(box=None, mask=None)
    for most in (MOST_BYTES, 4_000):
        monkeypatch.setattr(report_page, "MOST_BYTES", most)
        assert len(base64.b64decode(picture(noise, nothing, nothing).partition(",")[2])) <= most


# Charts


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag == "text"]


def test_bars_are_as_high_as_their_values_and_say_them() -> None:
    svg = bars(["a<b", "c"], [("REC", "rec", [50.0, 100.0])], [3, 1_234], "words & more")
    root = ET.fromstring(svg)
    heights = [float(rect.attrib["height"]) for rect in root.iter("rect")]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert {"a<b", "c", "n 3", "n 1,234", "words & more", "percent", "0", "100"} <= set(texts(svg))
    assert root.attrib["aria-label"] == "REC in percent by words & more"


def test_a_curve_stays_inside_its_frame_and_both_axes_are_labelled() -> None:
    for most in (0.003, 1.0, 7.0, 20_000.0):
        svg = curve([(10.0, most), (20.0, 0.0), (740.0, most / 2)], "step", "loss")
        (line,) = ET.fromstring(svg).iter("polyline")
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert all(0 <= x <= 440 and 0 <= y <= 240 for x, y in points)
        assert {"step", "loss", "0"} <= set(texts(svg))
        assert 4 <= len(texts(svg)) <= 18
    assert "polyline" in curve([], "step", "loss")


def test_shares_fill_their_bar() -> None:
    svg = shares([("WREC", [("dino", 0.25), ("sam", 0.75)])])
    widths = [float(rect.attrib["width"]) + 1 for rect in ET.fromstring(svg).iter("rect")]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.5)
    assert "sam 0.75" in texts(svg)

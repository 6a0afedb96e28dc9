"""The whole system, once, on a world of 64 photographs; and what `demo` promises of it."""

import hashlib
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from weakmcn.cli.demo import spread
from weakmcn.cli.main import app
from weakmcn.cli.pictures import GREEN, YELLOW, Answer, Marks, answer_picture, cell, marked_photo
from weakmcn.model.evaluate import SentenceRecord
from weakmcn.model.run import Run
from weakmcn.shards.store import Store

from .conftest import DEMO


def weakmcn(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    files = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    assert files
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folder_holds_data_store_run_picture_and_results(demo: Path) -> None:
    assert {path.name for path in demo.iterdir()} == {"data", "store", "run", "contact_sheet.png", "results.json"}
    assert Store.open(demo / "store").verify() == []
    assert Run.open(demo / "run").finished
    with Image.open(demo / "contact_sheet.png") as picture:
        assert picture.width > 1000
        assert picture.height > 600


def test_results_name_every_figure_of_every_split_in_percent(demo: Path) -> None:
    results = json.loads((demo / "results.json").read_text())
    assert results["seed"] == 3
    assert results["flavour"] == "refcoco+"
    assert results["seconds"] > 0
    for split in ("val", "testA", "testB"):
        figures = results[split]
        percentages = ["rec_acc50", "res_miou", "res_oiou", "pr50", "pr60", "pr70", "pr80", "pr90", "inconsistency"]
        assert all(0 <= figures[name] <= 100 for name in percentages)
        assert figures["sentences"] >= 8
        assert figures["baselines"].keys() >= {"best_scored", "random", "largest", "oracle"}
        assert all(baseline.keys() == {"rec_acc50", "res_miou"} for baseline in figures["baselines"].values())
    assert results["val"]["baselines"]["oracle"]["rec_acc50"] > 80


def test_the_same_command_again_changes_no_shard_and_no_checkpoint(demo: Path) -> None:
    kept = ("store/*/*", "run/checkpoints/*", "run/metrics.jsonl", "data/images/*/*")
    before, results = digests(demo, *kept), json.loads((demo / "results.json").read_text())
    weakmcn("demo", "--out", demo, *DEMO)
    assert digests(demo, *kept) == before
    assert json.loads((demo / "results.json").read_text())["val"] == results["val"]


@pytest.mark.parametrize(
    ("words", "says"),
    [(("--seed", "4"), "seed 3"), (("--epochs", "4"), "train.epochs"), (("--quick",), "without --quick")],
)
def test_another_world_or_training_in_the_same_folder_is_refused_and_nothing_changes(
    demo: Path, run, words: tuple[str, ...], says: str
) -> None:
    before = digests(demo, "results.json", "data/pocket.json")
    ended = run("demo", "--out", demo, *DEMO, *words)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
    assert digests(demo, "results.json", "data/pocket.json") == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--epochs", "0"), "epochs=0 must be at least 1"),
        (("--images", "10"), "ask for 32 or more"),
        (("--out", "other"), "other: holds other things and no demo"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_drawn(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    ended = run("demo", *words)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "notes.txt"]


def test_eval_prints_the_figures_of_the_demo_as_json_and_nothing_else(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weakmcn("eval", "--run", demo / "run", "--split", "testA", "--json")
    printed = json.loads(capsys.readouterr().out)
    results = json.loads((demo / "results.json").read_text())["testA"]
    assert printed["dataset"] == "refcoco+"
    assert printed["split"] == "testA"
    assert {name: printed[name] for name in results} == results


def test_eval_prints_a_table_of_the_run_between_floor_and_ceiling(
    demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    weakmcn("eval", "--run", demo / "run", "--split", "val")
    printed = capsys.readouterr().out
    results = json.loads((demo / "results.json").read_text())["val"]
    assert f"val, {results['sentences']} sentences" in printed
    assert f"{results['res_oiou']:.1f}" in printed
    assert "floor: best scored" in printed
    assert "ceiling: oracle" in printed
    assert "…" not in printed


def test_the_picture_shows_answers_evenly_from_best_to_worst_each_of_another_photo() -> None:
    box = (0.0, 0.0, 1.0, 1.0)
    records = [
        SentenceRecord(key=f"{rank // 2:012d}", ref_id=rank, sentence="ring", truth_photo=box, mask_iou=1 - rank / 100)
        for rank in range(101)
    ]
    chosen = spread(records, 5)
    assert [record.ref_id for record in chosen] == [0, 25, 50, 75, 100]
    crowded = [record for record in records if record.key <= "000000000001"]  # four sentences, two photos
    assert len({record.key for record in spread(crowded, 5)}) == len(spread(crowded, 5)) == 2
    assert spread([], 5) == []


def test_marks_lie_on_the_box_and_around_the_mask_in_their_colours() -> None:
    rgb = np.full((100, 200, 3), 60, np.uint8)  # drawn at twice its size
    mask = np.zeros((100, 200), bool)
    mask[40:60, 100:140] = True
    predicted = Marks(box=np.array([20.0, 30.0, 60.0, 80.0]), mask=None)
    true = Marks(box=np.array([90.0, 20.0, 150.0, 90.0]), mask=mask)
    drawn = np.asarray(marked_photo(rgb, true, predicted, 400, 400))
    assert drawn.shape == (200, 400, 3)
    for x, y in ((40, 110), (120, 110), (80, 60), (80, 160)):  # the middle of each side of the predicted box
        np.testing.assert_allclose(drawn[y, x], YELLOW, atol=2)
    for x, y in ((180, 110), (300, 110), (202, 100), (277, 100), (240, 82)):  # the true box's sides, the mask's edge
        np.testing.assert_allclose(drawn[y, x], GREEN, atol=2)
    np.testing.assert_array_equal(drawn[100, 240], [60, 60, 60])  # the inside of a mask keeps the photo's colour


def test_without_a_truth_all_but_the_predicted_mask_is_dimmed() -> None:
    rgb = np.full((50, 50, 3), 200, np.uint8)
    mask = np.zeros((50, 50), bool)
    mask[10:40, 10:40] = True
    drawn = np.asarray(marked_photo(rgb, None, Marks(box=None, mask=mask), 100, 100)).astype(int)
    np.testing.assert_array_equal(drawn[50, 50], [200, 200, 200])
    assert (drawn[5, 5] < 130).all()


def test_lines_grow_with_a_large_picture() -> None:
    rgb = np.full((100, 150, 3), 60, np.uint8)
    marks = Marks(box=np.array([30.0, 20.0, 120.0, 80.0]), mask=None)
    widths = []
    for longest in (150, 340, 960):
        drawn = np.asarray(marked_photo(rgb, None, marks, longest, longest)).astype(int)
        middle = drawn[drawn.shape[0] // 2, : drawn.shape[1] // 2]
        widths.append(int((np.abs(middle - YELLOW).max(axis=1) < 40).sum()))
    assert widths == [2, 2, 4]


def test_a_long_expression_ends_in_an_ellipsis_and_keeps_the_cell_s_size() -> None:
    sizes = set()
    for expression in ("ring", "the " * 80 + "ring", "r" * 300, ""):
        answer = Answer(
            rgb=np.zeros((30, 90, 3), np.uint8), expression=expression, note="", predicted=Marks(box=None, mask=None)
        )
        sizes.add(cell(answer, 340, 300).size)
    assert len(sizes) == 1


def test_a_picture_is_as_high_as_its_longest_expression_needs() -> None:
    short, long = (
        Answer(rgb=np.zeros((30, 90, 3), np.uint8), expression=words, note="", predicted=Marks(box=None, mask=None))
        for words in ("ring", "the " * 80 + "ring")
    )
    one, two, both = (answer_picture(answers) for answers in ([short], [long], [short, long]))
    assert one.height < two.height == both.height


def test_a_mask_of_a_photo_whose_pixels_are_seen_is_drawn_pixel_by_pixel() -> None:
    rgb, mask = np.full((20, 24, 3), 90, np.uint8), np.zeros((20, 24), bool)
    mask[12, 5] = mask[3, 8] = True
    drawn = np.asarray(marked_photo(rgb, None, Marks(box=None, mask=mask), 720, 600)).astype(int)
    for row, column in ((12, 5), (3, 8)):
        inside = drawn[row * 30 + 6 : row * 30 + 24, column * 30 + 6 : column * 30 + 24]
        assert np.abs(inside - 90).max() < 20  # the photo, in a yellow frame; all around is dimmed
    assert drawn[300, 600].max() < 80


def test_the_readme_s_python_runs(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    (tmp_path / "readme.py").write_text(readme.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(demo.parent)
    made = runpy.run_path(str(tmp_path / "readme.py"))
    assert made["boxes_photo"].shape == (9, 4)

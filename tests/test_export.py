"""`weakmcn export`: pseudo labels that pycocotools, SimREC's students, our own reader and our own scorer take as is."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from weakmcn.model.evaluate import SentenceRecord, evaluate_run
from weakmcn.model.metrics import box_iou
from weakmcn.model.run import Run
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.pipeline.annotations import exported_by, load_annotations
from weakmcn.pipeline.check import check_data
from weakmcn.pipeline.segmentation import run_lengths
from weakmcn.shards.codec import unpack_masks
from weakmcn.shards.store import Store

from .worlds import DATASET, RECIPE, TINY, key_of, make_store

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder

Weakmcn = Callable[..., Any]
DEMO = "refcoco+"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def exported(run: Weakmcn, demo: Path) -> Callable[..., Any]:
    """Export the demo's val: `exported("coco", "labels.json", ...)`."""

    def call(form: str, out: str, *more: object) -> Any:
        ended = run("export", "--run", demo / "run", "--split", "val", "--format", form, "--out", out, *more)
        assert ended.status == 0, ended.err
        return ended

    return call


@pytest.fixture(scope="module")
def records(demo: Path) -> list[SentenceRecord]:
    """What `eval` says of every sentence of val."""
    return evaluate_run(Run.open(demo / "run"), "val").records


def opened(file: str) -> Any:
    """A data set as pycocotools sees it, whose stubs do not know extra keys."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(file)


def told(text: str) -> dict[str, int]:
    """What an export says: its sentences and labels, and each reason for leaving some out."""
    (counts,) = [line for line in text.splitlines() if line.endswith(" labels")]
    sentences, labels = counts.split(": ")[1].split(", ")
    left = [line.removeprefix("left out: ").split(", ", 1) for line in text.splitlines() if line.startswith("left out")]
    return {"sentences": int(sentences.split()[0]), "labels": int(labels.split()[0])} | {
        why: int(count) for count, why in left
    }


def lines_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


# COCO.


def test_pycocotools_draws_sams_mask_of_the_chosen_candidate(
    exported: Callable[..., Any], demo: Path, records: list[SentenceRecord]
) -> None:
    ended = exported("coco", "labels.json", "--mask", "sam")
    coco, store = opened("labels.json"), Store.open(demo / "store")
    outside, empty = set(), set()
    for number, record in enumerate(records, 1):
        letterbox = store.letterbox(record.key)
        packed = unpack_masks(store[record.key]["masks.bits"], 9, letterbox.side)
        mask = letterbox.mask_to_photo(np.unpackbits(packed[record.chosen], axis=-1))
        x0, y0, x1, y1 = record.box_photo or (0, 0, 0, 0)
        if min(x1, y1) <= 0 or x0 >= letterbox.width or y0 >= letterbox.height:
            outside.add(number)
        elif not mask.any():
            empty.add(number)
        else:
            annotation = coco.anns[number]
            assert (annotation["ref_id"], annotation["phrase"]) == (record.ref_id, record.sentence)
            assert (annotation["candidate"], annotation["score"]) == (record.chosen, record.score)
            assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), 0)
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
    assert set(coco.anns) == set(range(1, len(records) + 1)) - outside - empty
    assert told(ended.out) == {
        **{"sentences": len(records), "labels": len(coco.anns)},
        **({"the box lies outside the photo": len(outside)} if outside else {}),
        **({"the mask has no pixel": len(empty)} if empty else {}),
    }


def test_the_networks_masks_and_boxes_are_those_that_eval_scores(
    exported: Callable[..., Any], demo: Path, records: list[SentenceRecord]
) -> None:
    exported("coco", "labels.json")
    coco = opened("labels.json")
    assert coco.anns
    for annotation in coco.anns.values():
        record, photo = records[annotation["id"] - 1], coco.imgs[annotation["image_id"]]
        assert record.mask == annotation["segmentation"]["counts"]
        x, y, width, height = annotation["bbox"]
        cut = np.clip(np.array(record.box_photo), 0, [photo["width"], photo["height"]] * 2)
        assert [x, y, x + width, y + height] == pytest.approx(cut.tolist(), abs=0.0051)  # told to a hundredth


def test_the_data_set_is_whole_and_points_at_the_photographs(exported: Callable[..., Any], demo: Path) -> None:
    exported("coco", "labels.json", "--mask", "sam")
    coco = opened("labels.json")
    assert {"info", "licenses", "images", "annotations", "categories"} == set(coco.dataset)
    assert coco.dataset["info"]["dataset"] == DEMO
    assert coco.dataset["info"]["mask"] == "sam"
    for photo in coco.imgs.values():
        with Image.open(demo / "data" / photo["file_name"]) as image:
            assert image.size == (photo["width"], photo["height"])
        assert photo["id"] == int(Path(photo["file_name"]).stem[-12:])
    truth = load_annotations(demo / "data", DEMO).of(["val"])
    true = {(each.ref_id, number): each for each in truth for number in each.sent_ids}
    for annotation in coco.anns.values():
        reference = true[annotation["ref_id"], annotation["sent_id"]]
        assert annotation["phrase"] in reference.sentences
        assert annotation["image_id"] == reference.image_id
        assert coco.cats[annotation["category_id"]]["name"] == reference.category_name
    every = {(each.category, each.category_name) for each in load_annotations(demo / "data", DEMO).references}
    assert {(each["id"], each["name"]) for each in coco.dataset["categories"]} == every


def test_the_same_labels_give_the_same_bytes(exported: Callable[..., Any]) -> None:
    for out in ("a.json", "b.json"):
        exported("coco", out, "--mask", "sam")
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes()


def test_the_masks_own_box_holds_all_of_the_mask_and_no_more(exported: Callable[..., Any]) -> None:
    exported("coco", "labels.json", "--mask", "sam", "--box", "mask")
    coco = opened("labels.json")
    for annotation in coco.anns.values():
        x, y, width, height = map(int, annotation["bbox"])
        mask = coco.annToMask(annotation)
        inside = mask[y : y + height, x : x + width]
        assert inside.sum() == mask.sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


# Filters.


def test_filters_leave_out_what_is_below_and_say_how_many(exported: Callable[..., Any]) -> None:
    ended = exported("coco", "all.json", "--mask", "sam")
    everything, before = opened("all.json").anns, told(ended.out)
    score = float(np.median([annotation["score"] for annotation in everything.values()]))
    agreement = float(np.median([annotation["agreement"] for annotation in everything.values()]))
    ended = exported("coco", "some.json", "--mask", "sam", "--min-score", score, "--min-agreement", agreement)
    weak = {number for number, annotation in everything.items() if annotation["score"] < score}
    loose = {number for number, annotation in everything.items() if annotation["agreement"] < agreement} - weak
    assert weak
    assert loose
    assert opened("some.json").anns == {number: everything[number] for number in everything.keys() - weak - loose}
    after = told(ended.out)
    assert after["labels"] == before["labels"] - len(weak) - len(loose)
    assert sum(after.values()) - after["sentences"] == after["sentences"]  # each sentence is counted once


def test_agreement_is_the_overlap_of_the_box_on_the_photo_with_the_box_around_the_mask(
    exported: Callable[..., Any],
) -> None:
    exported("coco", "predicted.json", "--mask", "sam")
    exported("coco", "tight.json", "--mask", "sam", "--box", "mask")
    exported("jsonl", "exact.jsonl", "--mask", "sam")
    rows = [json.loads(line) for line in Path("exact.jsonl").read_text().splitlines()]
    exact = {(row["ref_id"], row["sent_id"]): row["bbox"] for row in rows}
    coco, tight = opened("predicted.json"), opened("tight.json").anns
    for number, annotation in coco.anns.items():
        photo, (x1, y1, w1, h1) = coco.imgs[annotation["image_id"]], tight[number]["bbox"]
        x0, y0, w0, h0 = exact[annotation["ref_id"], annotation["sent_id"]]
        cut = np.clip([x0, y0, x0 + w0, y0 + h0], 0, [photo["width"], photo["height"]] * 2)
        overlap = box_iou(cut, np.array([x1, y1, x1 + w1, y1 + h1]))
        assert annotation["agreement"] == tight[number]["agreement"] == pytest.approx(float(overlap))


def test_filters_that_let_nothing_through_write_nothing(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    for form in ("coco", "jsonl"):
        ended = run("export", "--run", demo / "run", "--split", "val", "--format", form, "--out", "x", "--min-score", 1)
        assert ended.status == 1
        assert (
            "no label is left, so nothing was written (54: objectness below 1 (--min-score)); ask for less" in ended.err
        )
        assert list(tmp_path.iterdir()) == []


# SimREC.


def test_our_reader_reads_a_simrec_export_back_to_the_same_references(exported: Callable[..., Any]) -> None:
    exported("coco", "labels.json", "--mask", "sam")
    exported("simrec", "simrec", "--mask", "sam")
    coco, read = opened("labels.json"), load_annotations(Path("simrec"), DEMO)
    assert len(read.references) == len(coco.anns)
    for reference in read.references:
        label = coco.anns[reference.ref_id]
        photo = coco.imgs[label["image_id"]]
        assert (reference.split, reference.sentences) == ("val", (label["phrase"],))
        assert reference.file_name == Path(photo["file_name"]).name
        assert (reference.height, reference.width) == (photo["height"], photo["width"])
        assert reference.box == tuple(label["bbox"])
        assert run_lengths(reference) == label["segmentation"]["counts"]


def test_a_store_can_be_made_of_a_simrec_export(run: Weakmcn, exported: Callable[..., Any], demo: Path) -> None:
    exported("simrec", "simrec", "--mask", "sam")
    Path("simrec/images").symlink_to(demo / "data" / "images")
    planned = run(
        *("precompute", "--data", "simrec", "--dataset", DEMO, "--split", "val", "--store", "new", "--dry-run")
    )
    assert planned.status == 0, planned.err


def test_an_export_is_no_data_set_as_it_was_published(exported: Callable[..., Any], demo: Path) -> None:
    """Its photographs stay whose they were, and no published count is held against it."""
    exported("simrec", "simrec", "--mask", "sam")
    Path("simrec/images").symlink_to(demo / "data" / "images")
    read = load_annotations(Path("simrec"), DEMO)
    assert read.source == load_annotations(demo / "data", DEMO).source == "pocket-3"
    assert read.warnings == []
    found = check_data(Path("simrec"))
    assert (found.notes, found.problems, found.coco_evaluated) == ((), (), 0)
    assert [each.is_published for each in found.datasets] == [False]


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"run": 1, "source": "coco"}', "[" * 100_000])
def test_a_file_called_export_by_somebody_else_says_nothing(tmp_path: Path, demo: Path, content: str) -> None:
    for name in ("refcoco+", "images"):
        (tmp_path / name).symlink_to(demo / "data" / name)
    (tmp_path / "export.json").write_text(content)
    assert exported_by(tmp_path) is None
    assert load_annotations(tmp_path, DEMO).source == "coco"


def test_figures_against_an_export_say_so_and_are_not_kept(
    run: Weakmcn, exported: Callable[..., Any], demo: Path, tmp_path: Path
) -> None:
    exported("simrec", "simrec", "--mask", "sam")
    Path("simrec/images").symlink_to(demo / "data" / "images")
    data = ("--data", "simrec", "--dataset", DEMO, "--split", "val", "--store", "store", "--executor", "local")
    assert run("precompute", *data).status == 0
    before = {path: path.read_bytes() for path in (demo / "run").iterdir() if path.is_file()}
    ended = run("eval", "--run", demo / "run", "--shards", "store", "--split", "val")
    assert ended.status == 0
    assert f"pseudo labels of pocket {DEMO}, percent of all sentences" in ended.out
    assert f"nobody annotated it: the truth is what {demo / 'run'} predicted" in ended.out
    assert f"not kept in {demo / 'run'}" in ended.err
    assert {path: path.read_bytes() for path in (demo / "run").iterdir() if path.is_file()} == before
    label = load_annotations(Path("simrec"), DEMO).references[0]
    row = {"ref_id": label.ref_id, "sent_id": label.sent_ids[0], "bbox": label.box}
    Path("one.jsonl").write_text(json.dumps(row))
    scored = run("eval", "--predictions", "one.jsonl", "--shards", "store", "--dataset", DEMO, "--split", "val")
    assert scored.status == 3
    assert "pseudo labels of" in scored.out
    assert "nobody annotated it" in scored.out


def test_a_killed_export_is_taken_up_and_nothing_else_is_written_over(
    run: Weakmcn, exported: Callable[..., Any], demo: Path
) -> None:
    words = (
        "export",
        "--run",
        demo / "run",
        "--split",
        "val",
        "--format",
        "simrec",
        "--out",
        "simrec",
        "--mask",
        "sam",
    )
    exported("simrec", "simrec", "--mask", "sam")
    whole = {path: path.read_bytes() for path in Path("simrec").rglob("*") if path.is_file()}
    again = run(*words)
    assert again.status == 2
    assert "--out simrec: holds these labels already, all of them" in again.err
    killed = Path(f"simrec/anns/{DEMO}.json")  # what is written last
    killed.unlink()
    next(Path(f"simrec/masks/{DEMO}").iterdir()).unlink()
    assert run(*words, "--min-score", "0.5").status == 2
    assert run(*words).status == 0
    assert {path: path.read_bytes() for path in Path("simrec").rglob("*") if path.is_file()} == whole


def test_a_folder_of_annotations_is_never_written_into(run: Weakmcn, demo: Path) -> None:
    before = sorted((demo / "data").rglob("*"))
    ended = run("export", "--run", demo / "run", "--split", "val", "--format", "simrec", "--out", demo / "data")
    assert ended.status == 2
    assert sorted((demo / "data").rglob("*")) == before


def test_a_file_that_is_no_export_is_never_written_over(run: Weakmcn, exported: Callable[..., Any], demo: Path) -> None:
    for form in ("coco", "jsonl"):
        exported(form, f"labels.{form}")
        exported(form, f"labels.{form}", "--mask", "sam")  # an export is
        for content in (b'{"run": 1}', b"[]", b"\x89PNG", b"", b'{"ref_id": 1, "sent_id": 2, "bbox": [1, 2, 3, 4]}\n'):
            Path("theirs").write_bytes(content)
            ended = run("export", "--run", demo / "run", "--split", "val", "--format", form, "--out", "theirs")
            assert ended.status == 2
            assert "--out theirs: is there already, and no export" in ended.err
            assert Path("theirs").read_bytes() == content


# JSON lines.


def test_json_lines_score_what_the_run_scores(run: Weakmcn, exported: Callable[..., Any], demo: Path) -> None:
    exported("jsonl", "val.jsonl")
    own = json.loads(run("eval", "--run", demo / "run", "--split", "val", "--json").out)
    scored = run(
        *("eval", "--predictions", "val.jsonl", "--shards", demo / "store", "--dataset", DEMO, "--split", "val"),
        "--json",
    )
    assert scored.status == 0, scored.err
    told = json.loads(scored.out)
    figures = [name for name in own if isinstance(own[name], float | int)]
    assert len(figures) == 10
    assert {name: told[name] for name in figures} == pytest.approx({name: own[name] for name in figures})


# Other methods, and stores with gaps.


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a few kilobytes in which the detector skipped one photo of val, and runs of two methods on it."""
    folder = tmp_path_factory.mktemp("toy")
    recipe = replace(RECIPE, epochs=1, warmup_epochs=0)
    make_store(folder / "store", train=8, val=4, skipped=[9])
    boxes_only = replace(TINY, banks=(), wrec_dim=32)
    for method, model in (("weakmcn", TINY), ("refclip", boxes_only)):
        train(
            TrainSettings(
                store=folder / "store",
                dataset=DATASET,
                out=folder / method,
                model=model,
                train=recipe,
                method=method,
                device="cpu",
            )
        )
    return folder


def test_a_skipped_photograph_is_told_and_makes_the_exit_code_3(run: Weakmcn, toy: Path) -> None:
    ended = run("export", "--run", toy / "weakmcn", "--split", "val", "--format", "jsonl", "--out", "val.jsonl")
    assert ended.status == 3
    assert "toy val: 8 sentences, 6 labels" in ended.out
    assert "left out: 2, precompute skipped the image" in ended.out
    assert key_of(9) not in Path("val.jsonl").read_text()
    assert len(lines_of("val.jsonl")) == 6


def test_a_method_without_masks_takes_sams_where_there_are_some(run: Weakmcn, toy: Path) -> None:
    words = ("export", "--run", toy / "refclip", "--format", "coco", "--out", "train.json")
    ended = run(*words)
    assert ended.status == 0, ended.err
    coco = opened("train.json")
    assert len(coco.anns) == 16  # train is the split where none is named
    for annotation in coco.anns.values():  # the candidates of the toy world are squares, and their masks fill them
        mask = coco.annToMask(annotation)
        x, y, width, height = map(round, annotation["bbox"])
        assert mask[y : y + height, x : x + width].all()
        assert mask.sum() == width * height
    refused = run(*words, "--mask", "network")
    assert refused.status == 2
    assert "--mask network: refclip predicts no masks; write --mask sam." in refused.err


def test_without_any_masks_there_are_boxes_and_no_filter_by_agreement(run: Weakmcn, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", train=8, val=1, stages=("detect",))
    recipe = replace(RECIPE, epochs=1, warmup_epochs=0)
    settings = TrainSettings(
        store=store,
        dataset=DATASET,
        out=tmp_path / "run",
        model=replace(TINY, banks=(), wrec_dim=32),
        train=recipe,
        method="refclip",
        device="cpu",
    )
    train(settings)
    words = ("export", "--run", "run", "--format", "coco", "--out", "train.json")
    assert run(*words).status == 0
    annotations = opened("train.json").anns.values()
    assert all("segmentation" not in each and "agreement" not in each for each in annotations)
    assert all(each["area"] == pytest.approx(each["bbox"][2] * each["bbox"][3]) for each in annotations)
    for more in (("--min-agreement", "0.5"), ("--box", "mask")):
        refused = run(*words, *more)
        assert refused.status == 2
        assert "need masks" in refused.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--format", "coco", "--out", "."], "is a folder; name a file"),
        (["--format", "yolo", "--out", "x"], "invalid value for '--format'"),
        (["--format", "coco", "--out", "x", "--min-score", "2"], "invalid value for '--min-score'"),
        (["--format", "coco", "--out", "x", "--split", "tset"], "splits present: train, val"),
    ],
)
def test_a_wrong_line_is_told_and_nothing_is_written(
    run: Weakmcn, toy: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    ended = run("export", "--run", toy / "weakmcn", *words)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
    assert list(tmp_path.iterdir()) == []

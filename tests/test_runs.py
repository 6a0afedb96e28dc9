"""`weakmcn runs` and `runs compare`: what runs there are, and how far two of them are apart, sentence by sentence."""

import importlib.util
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weakmcn.model.compare import compare
from weakmcn.model.results import RECORD, Kept, read_results
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards.errors import InputError

from .tiny import digests
from .worlds import DATASET, RECIPE, TINY, make_store


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and two runs on it, `runs/long` of two epochs and `runs/short` of one; val is measured."""
    root = tmp_path_factory.mktemp("runs")
    make_store(root / "store", train=8, val=4)
    for name, epochs in (("long", 2), ("short", 1)):
        recipe = replace(RECIPE, epochs=epochs, batch=4)
        train(TrainSettings(store=root / "store", dataset=DATASET, out=root / "runs" / name, model=TINY, train=recipe))
    return root


def copied(world: Path, folder: Path) -> Path:
    return Path(shutil.copytree(world / "runs", folder / "runs"))


def records(hits: Mapping[str, Sequence[int]], masks: float = 0.5) -> list[dict[str, Any]]:
    """A sentence for each number: box right or wrong, by photograph."""
    made = []
    for key, right in hits.items():
        for hit in right:
            place = len(made)
            made.append(
                {"key": key, "ref_id": place, "sentence": f"s{place}", "box_iou": float(hit), "mask_iou": masks}
            )
    return made


def kept(made: Sequence[Mapping[str, Any]], path: str = "run/eval-val.json", **summary: float) -> Kept:
    figures = {"rec_acc50": 0.0, "res_miou": 0.0} | summary
    return Kept(path=Path(path), dataset="toy", split="val", epoch=1, step=1, summary=figures, records=made, notes=[])


# What eval keeps


def test_eval_keeps_its_figures_and_every_sentence_in_the_run(world: Path, tmp_path: Path, run) -> None:
    path = copied(world, tmp_path) / "long"
    ended = run("eval", "--run", path, "--json")
    assert ended.status == 0, ended.err
    told, found = json.loads(ended.out), read_results(path / "eval-val.json")
    assert found.summary["rec_acc50"] == told["rec_acc50"]
    assert found.summary["res_miou"] == told["res_miou"]
    assert (found.epoch, found.step) == (2, 4)
    assert len(found.records) == told["sentences"] == 8
    assert set(found.records[0]) == set(RECORD)
    assert 100 * np.mean([record["box_iou"] > 0.5 for record in found.records]) == found.summary["rec_acc50"]


def test_a_folder_that_cannot_be_written_costs_no_figures(world: Path, tmp_path: Path, run) -> None:
    path = copied(world, tmp_path) / "long"
    (path / "eval-val.json").mkdir()  # nothing can be renamed over it
    ended = run("eval", "--run", path)
    assert ended.status == 0
    assert "REC" in ended.out
    assert "the figures are not kept" in ended.err


# runs


def test_every_run_is_a_row_with_settings_figures_and_time(world: Path, tmp_path: Path, run) -> None:
    runs = copied(world, tmp_path)
    assert run("eval", "--run", runs / "long", "--json").status == 0
    before = digests(runs)
    rows = {Path(row["run"]).name: row for row in json.loads(run("runs", runs, "--json").out)}
    long, short = rows["long"], rows["short"]
    assert (long["method"], long["dataset"], long["epochs"], long["epochs_total"]) == ("weakmcn", DATASET, 2, 2)
    assert (short["epochs"], short["measured"]) == (1, {})
    assert long["seconds"] > 0
    (figures,) = long["measured"].values()
    assert figures["is_newest"]
    assert figures["rec_acc50"] == read_results(runs / "long" / "eval-val.json").summary["rec_acc50"]
    assert long["preset"] == "pocket"
    assert long["changes"]["model.wres_dim"] == TINY.wres_dim
    assert long["changes"]["train.epochs"] == 2
    assert "train.eps" not in long["changes"]
    assert digests(runs) == before

    printed = run("runs", tmp_path).out
    assert max(map(len, printed.splitlines())) <= 80
    assert f"{figures['rec_acc50']:.1f}" in printed
    assert "2/2" in printed


def test_figures_of_an_earlier_epoch_are_marked(world: Path, tmp_path: Path, run) -> None:
    path = copied(world, tmp_path) / "long"
    assert run("eval", "--run", path, "--json").status == 0
    facts = json.loads((path / "eval-val.json").read_text())
    (path / "eval-val.json").write_text(json.dumps(facts | {"epoch": 1, "step": 2}))
    assert "val, epoch 1" in run("runs", "list", path).out


def test_a_damaged_run_is_told_and_hides_no_other(world: Path, tmp_path: Path, run) -> None:
    runs = copied(world, tmp_path)
    (runs / "long" / "run.json").write_text("{")
    ended = run("runs", "list", runs, "--json")
    assert ended.status == 0
    assert [(Path(row["run"]).name, "damaged" in (row["fault"] or "")) for row in json.loads(ended.out)] == [
        ("long", True),
        ("short", False),
    ]
    assert "damaged" in run("runs", runs).out


@pytest.mark.parametrize(("place", "says"), [("nowhere", "no such folder"), ("empty", "no run")])
def test_a_folder_without_runs_is_one_line(tmp_path: Path, run, place: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    ended = run("runs", tmp_path / place)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.count("\n") == 1


# compare


def test_differences_are_paired_and_counted_by_hand() -> None:
    a = kept(records({"x": [1, 0], "y": [0, 0]}))
    b = kept(records({"x": [1, 1], "y": [1, 0]}, masks=0.75))
    found = compare(a, b)
    assert (found.images, found.sentences) == (2, 4)
    assert found.right == {"both": 1, "only a": 0, "only b": 2, "neither": 1}
    rec, res = found.figures
    assert (rec.a, rec.b, rec.difference) == (25, 75, 50)
    assert (rec.low, rec.high) == (50, 50), "each photograph gains one of its two sentences, whatever is drawn"
    assert (res.difference, res.low, res.high) == (25, 25, 25)
    assert rec.is_clear


def test_a_run_does_not_differ_from_itself() -> None:
    each = kept(records({"x": [1, 0], "y": [0]}))
    (rec, _) = compare(each, each).figures
    assert (rec.difference, rec.low, rec.high) == (0, 0, 0)
    assert not rec.is_clear


def test_the_interval_is_that_of_the_normal_distribution_for_many_photographs() -> None:
    rng = np.random.default_rng(1)
    hits = rng.integers(0, 2, (2, 2000))
    names = [f"{place:04d}" for place in range(2000)]
    a, b = (kept(records(dict(zip(names, ([hit] for hit in row), strict=True)))) for row in hits)
    (rec, _) = compare(a, b).figures
    gaps = 100.0 * (hits[1] - hits[0])
    half = 1.96 * gaps.std() / math.sqrt(2000)
    assert rec.high - rec.low == pytest.approx(2 * half, rel=0.05)
    assert rec.difference == pytest.approx(gaps.mean())


def test_sentences_of_one_photograph_make_nothing_surer() -> None:
    rng = np.random.default_rng(2)
    hits = rng.integers(0, 2, (2, 50))
    names = [f"{place:02d}" for place in range(50)]
    once, tenfold = (
        compare(*(kept(records({key: [hit] * times for key, hit in zip(names, row, strict=True)})) for row in hits))
        for times in (1, 10)
    )
    assert asdict(tenfold.figures[0]) == pytest.approx(asdict(once.figures[0]))
    assert tenfold.sentences == 10 * once.sentences


def test_the_same_comparison_gives_the_same_interval_and_another_seed_nearly_it() -> None:
    a = kept(records({str(place): [place % 2] for place in range(40)}))
    b = kept(records({str(place): [place % 3 == 0] for place in range(40)}))
    assert compare(a, b) == compare(a, b)
    assert compare(a, b, seed=1).figures[0].low == pytest.approx(compare(a, b).figures[0].low, abs=2)


def test_records_in_another_order_are_paired_all_the_same() -> None:
    made = records({"x": [1, 0, 1], "y": [0, 0]})
    assert compare(kept(made), kept(made[::-1])).figures[0].difference == 0
    assert compare(kept(made), kept(made[::-1])).right == {"both": 2, "only a": 0, "only b": 0, "neither": 3}


def test_other_sentences_are_refused_with_one_of_them() -> None:
    made = records({"x": [1, 0]})
    with pytest.raises(InputError, match=r"not the same sentences \(1 differ; reference 1, 's1', is in one alone\)"):
        compare(kept(made), kept(made[:1]))
    with pytest.raises(InputError, match="is of another photograph"):
        compare(kept(made), kept([record | {"key": "z"} for record in made]))
    with pytest.raises(InputError, match="compare the same"):
        compare(kept(made), replace(kept(made), split="testA"))


def test_without_masks_boxes_alone_are_compared() -> None:
    made = records({"x": [1, 0], "y": [1]})
    boxes_only = replace(kept(made), summary={"rec_acc50": 50.0})
    found = compare(kept(made), boxes_only)
    assert [each.figure for each in found.figures] == ["rec_acc50"]
    assert found.lacking == {"res_miou": ("b",)}
    assert compare(boxes_only, boxes_only).lacking == {"res_miou": ("a", "b")}
    assert compare(kept(made), kept(made)).lacking == {}


def test_without_boxes_masks_alone_are_compared_and_without_a_common_figure_nothing_is() -> None:
    made = records({"x": [1, 0], "y": [1]})
    masks_only = replace(kept(made), summary={"res_miou": 50.0})
    found = compare(kept(made), masks_only)
    assert [each.figure for each in found.figures] == ["res_miou"]
    assert (found.right, found.lacking) == ({}, {"rec_acc50": ("b",)})
    with pytest.raises(InputError, match="no figure is of both"):
        compare(replace(kept(made), summary={"rec_acc50": 50.0}), masks_only)


def test_the_command_compares_two_runs_and_says_what_it_resampled(world: Path, tmp_path: Path, run) -> None:
    runs = copied(world, tmp_path)
    a, b = runs / "long", runs / "short"
    ended = run("runs", "compare", a, b)
    assert ended.status == 2
    assert f"weakmcn eval --run {a} --split val" in ended.err
    for path in (a, b):
        assert run("eval", "--run", path, "--json").status == 0
    facts = json.loads(run("runs", "compare", a, b, "--json").out)
    assert facts["resamples_of"] == "images"
    assert (facts["sentences"], facts["images"]) == (8, 4)
    assert sum(facts["right"].values()) == 8
    printed = run("runs", "compare", a, b).out
    assert "8 sentences of 4 photographs" in printed
    assert "95 % interval" in printed


def test_a_control_is_told_as_one_wherever_its_figures_are(
    world: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    runs = copied(world, tmp_path)
    a, b = runs / "long", runs / "short"
    facts = json.loads((b / "run.json").read_text())
    (b / "run.json").write_text(json.dumps(facts | {"shuffle_captions": True}))
    said = "it is a control: it was trained on expressions of other images"
    for path, told in ((a, False), (b, True)):
        ended = run("eval", "--run", path)
        assert ended.status == 0
        assert (said in ended.out) == told
        assert ("shuffle_captions=true" in run("runs", path).out) == told
    assert f"note: {b}: {said}" in run("runs", "compare", a, b).out


def test_options_of_a_training_that_change_what_it_learns_are_told_beside_its_settings(
    world: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    path = copied(world, tmp_path) / "long"
    before = json.loads(run("runs", path, "--json").out)[0]["changes"]
    facts = json.loads((path / "run.json").read_text())
    unlike = {"split": "val", "negatives": "local, 2 ranks", "precision": "bfloat16", "compile": "inductor"}
    (path / "run.json").write_text(json.dumps(facts | unlike))
    assert json.loads(run("runs", path, "--json").out)[0]["changes"] == unlike | before
    assert "split=val, negatives=local, 2 ranks, precision=bfloat16" in run("runs", path).out


def test_masks_of_a_head_that_has_not_begun_to_learn_are_no_figure(demo: Path, run) -> None:
    assert run("eval", "--run", demo / "run", "--split", "val").status == 0
    (told,) = json.loads(run("runs", demo / "run", "--json").out)
    assert told["masks_mean_nothing"]
    (row,) = [line for line in run("runs", demo / "run").out.splitlines() if "weakmcn pocket" in line]
    assert f" {told['measured']['refcoco+ val']['rec_acc50']:.1f} " in row
    assert " – " in row


def test_a_store_that_was_moved_is_asked_for(world: Path, tmp_path: Path, run) -> None:
    path = copied(world, tmp_path) / "long"
    facts = json.loads((path / "run.json").read_text())
    moved = {"store": "gone", "store_absolute": str(tmp_path / "gone")}
    (path / "run.json").write_text(json.dumps(facts | moved))
    ended = run("eval", "--run", path)
    assert ended.status == 2
    assert f"{tmp_path / 'gone'}: the store that {path} was trained on is not here any more" in ended.err
    assert "--shards STORE" in ended.err
    assert run("eval", "--run", path, "--shards", facts["store_absolute"]).status == 0


def test_a_damaged_measurement_is_refused_with_the_mend(world: Path, tmp_path: Path, run) -> None:
    runs = copied(world, tmp_path)
    for path in (runs / "long", runs / "short"):
        (path / "eval-val.json").write_text('{"format": 1}')
    ended = run("runs", "compare", runs / "long", runs / "short")
    assert (ended.status, ended.out) == (2, "")
    assert "measure the run again" in ended.err
    assert run("runs", runs).status == 0


# TensorBoard


def test_events_hold_what_the_journal_holds(world: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", exc_type=ImportError)
    settings = TrainSettings(
        store=world / "store",
        dataset=DATASET,
        out=tmp_path / "run",
        model=TINY,
        train=replace(RECIPE, epochs=2, batch=4),
        log_steps=1,
        tensorboard=True,
    )
    run = train(settings)
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    told = [(event.step, event.value) for event in events.Scalars("train/det")]
    assert [step for step, _ in told] == [line["step"] for line in lines]
    assert [value for _, value in told] == pytest.approx([line["det"] for line in lines])
    assert [event.step for event in events.Scalars("epoch/seconds")] == [1, 2]
    assert not (world / "runs" / "long" / "tensorboard").exists()


def test_a_missing_package_is_told_before_any_work(
    world: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("weakmcn.model.events.find_spec", lambda name: None if name == "tensorboard" else found(name))
    words = ["train", "--shards", world / "store", "--dataset", DATASET, "--preset", "pocket", "--tensorboard"]
    ended = run(*words, "--out", tmp_path / "run")
    assert ended.status == 2
    assert "pip install 'weakmcn[tensorboard]'" in ended.err
    assert not (tmp_path / "run").exists()

"""`weakmcn check`: what a folder holds, what it lacks, what to beware of; nothing is written, nothing is computed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from weakmcn.pipeline import datasets
from weakmcn.pipeline.check import check_data
from weakmcn.pipeline.datasets import Counts, find_dataset
from weakmcn.pipeline.layouts import names_to_look_for

from .annotated import SIMREC, write_simrec, write_unc
from .tiny import digests, photo, write_data, write_photo

Split = Sequence[tuple[int, str, list[str]]]


def write_split(root: Path, dataset: str, spoken: Split) -> None:
    """A data set of (number of the photograph, split, expressions), a reference each, beside those of `root`."""
    spec = find_dataset(dataset)
    folder = root / spec.folder
    folder.mkdir(exist_ok=True)
    (root / "images" / "train2014").mkdir(parents=True, exist_ok=True)
    images, annotations, refs = [], [], []
    for place, (number, split, sentences) in enumerate(spoken):
        if not photo(root, number).exists():
            write_photo(photo(root, number), 40, 60, seed=number)
        images.append({"id": number, "file_name": photo(root, number).name, "height": 40, "width": 60})
        outline = [[4, 5, 24, 5, 24, 21, 4, 21]]
        annotations.append(
            {"id": place, "image_id": number, "category_id": 1, "bbox": [4, 5, 20, 16], "segmentation": outline}
        )
        said = [{"sent_id": 10 * place + i, "sent": text} for i, text in enumerate(sentences)]
        refs.append({"ref_id": place, "ann_id": place, "image_id": number, "split": split, "sentences": said})
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / f"refs({spec.partition}).json").write_text(json.dumps(refs))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says that other numbers were published of a data set."""

    def publish(name: str, **splits: Counts) -> None:
        monkeypatch.setitem(datasets.DATASETS, name, replace(datasets.DATASETS[name], counts=splits))

    return publish


def facts_of(run: Any, *words: object) -> tuple[int, dict[str, Any]]:
    ended = run("check", *words, "--json")
    assert ended.err == ""
    return ended.status, json.loads(ended.out)


def test_a_pocket_data_set_is_whole_and_nothing_is_written(demo: Path, run) -> None:
    before = digests(demo / "data")
    status, facts = facts_of(run, demo / "data", "--decode")
    assert status == 0
    assert facts["problems"] == facts["notes"] == []
    splits = facts["datasets"]["refcoco+"]["splits"]
    assert sum(split["images"] for split in splits.values()) == facts["photographs"]["total"] == 64
    assert "published" not in splits["train"]
    assert facts["photographs"]["decoded"]
    assert digests(demo / "data") == before


def test_counts_are_held_against_the_published_ones(tmp_path: Path, run, counted) -> None:
    write_split(tmp_path, "refcoco", [(1, "train", ["a", "b"]), (2, "val", ["c"])])
    counted("refcoco", train=Counts(1, 1, 2), val=Counts(1, 1, 3), testA=Counts(750, 1975, 5657))
    status, facts = facts_of(run, tmp_path)
    assert status == 0, "a count that differs is no fault"
    train, val = (facts["datasets"]["refcoco"]["splits"][split] for split in ("train", "val"))
    assert train == {"images": 1, "references": 1, "sentences": 2, "published": train["published"]}
    assert {name: train[name] for name in train["published"]} == train["published"]
    assert (val["sentences"], val["published"]["sentences"]) == (1, 3)
    assert any(note.startswith("counts of refcoco differ") for note in facts["notes"])

    lines = run("check", tmp_path).out.splitlines()
    assert any(line.split() == ["val", "1", "1", "1", "(3)"] for line in lines)
    assert any(line.split() == ["testA", "0", "(750)", "0", "(1,975)", "0", "(5,657)"] for line in lines)


def test_a_simrec_file_of_one_of_two_partitions_is_told_by_its_counts(tmp_path: Path, counted) -> None:
    write_simrec(tmp_path, SIMREC, None).rename(tmp_path / "anns" / "refcocog.json")
    counted("refcocog-umd", train=Counts(9, 9, 9), val=Counts(9, 9, 9))
    counted("refcocog-google", train=Counts(1, 1, 3), val=Counts(1, 1, 2))
    found = check_data(tmp_path)
    assert [each.name for each in found.datasets] == ["refcocog-google"]
    assert any("it has the published counts of refcocog-google" in note for note in found.notes)
    asked = check_data(tmp_path, datasets=["refcocog"])
    assert [each.name for each in asked.datasets] == ["refcocog-umd"], "who names one gets it"


@pytest.mark.parametrize("place", ["anns/refcoco.json", "anns/refcoco/refcoco.json"])
def test_both_spellings_of_simrec_are_found(tmp_path: Path, place: str) -> None:
    written = write_simrec(tmp_path, SIMREC, None)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    written.rename(tmp_path / place)
    assert [each.file for each in check_data(tmp_path).datasets] == [place]


def test_of_two_layouts_one_is_read_and_the_other_one_named(tmp_path: Path) -> None:
    write_unc(tmp_path)
    write_simrec(tmp_path, SIMREC, None)
    (each,) = check_data(tmp_path).datasets
    assert (each.file, each.unread) == ("refcoco/refs(unc).p", ("anns/refcoco.json",))


def test_photographs_that_are_missing_or_broken_are_listed(tmp_path: Path, run) -> None:
    write_data(tmp_path, images=4)
    photo(tmp_path, 1).unlink()
    photo(tmp_path, 2).write_bytes(photo(tmp_path, 2).read_bytes()[:-40])
    photo(tmp_path, 3).write_bytes(b"<html>")
    status, facts = facts_of(run, tmp_path)
    assert status == 2
    assert facts["photographs"]["missing"] == ["images/train2014/COCO_train2014_000000000001.jpg"]
    (page,) = facts["photographs"]["broken"]
    assert "a web page" in page

    status, facts = facts_of(run, tmp_path, "--decode")
    cut, page = facts["photographs"]["broken"]
    assert "cut short" in cut
    assert len(facts["problems"]) == 2
    lines = run("check", tmp_path).out
    assert "photographs missing: 1 of 4, first" in " ".join(lines.split())


def test_no_folder_of_photographs_is_told_with_the_place_for_it(tmp_path: Path) -> None:
    write_unc(tmp_path)
    (problem,) = check_data(tmp_path).problems
    assert "no photographs; put them in images/train2014" in problem


def test_broken_annotations_of_one_data_set_do_not_hide_the_others(tmp_path: Path, run) -> None:
    write_split(tmp_path, "refcoco", [(1, "train", ["a"])])
    write_split(tmp_path, "refcoco+", [(1, "train", ["a"])])
    (tmp_path / "refcoco" / "instances.json").unlink()
    status, facts = facts_of(run, tmp_path)
    assert status == 2
    assert "instances.json: missing" in facts["datasets"]["refcoco"]["fault"]
    assert facts["datasets"]["refcoco+"]["fault"] is None
    assert facts["photographs"]["total"] == 1


def test_photographs_of_a_test_split_that_another_data_set_trains_on_are_counted(tmp_path: Path, run) -> None:
    write_split(tmp_path, "refcoco", [(1, "train", ["a"]), (2, "train", ["a"]), (3, "val", ["a"])])
    write_split(tmp_path, "refcocog-umd", [(1, "test", ["a"]), (2, "val", ["a"]), (3, "train", ["a"])])
    status, facts = facts_of(run, tmp_path)
    assert status == 0
    assert {(each["train"], each["evaluated"], each["split"], each["images"]) for each in facts["shared"]} == {
        ("refcoco", "refcocog-umd", "test", 1),
        ("refcoco", "refcocog-umd", "val", 1),
        ("refcocog-umd", "refcoco", "val", 1),
    }
    assert facts["coco_photographs_evaluated"] == 3
    assert any("3 photographs of val and test splits are from COCO" in note for note in facts["notes"])


def test_words_of_all_splits_are_counted_and_looked_up(tmp_path: Path, run) -> None:
    write_split(tmp_path, "refcoco", [(1, "train", ["Left dog!", "..."]), (2, "val", ["dog " * 16])])
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("dog" + " 0.5" * 300 + "\n")
    status, facts = facts_of(run, tmp_path, "--words", vectors)
    assert status == 0
    assert facts["datasets"]["refcoco"]["words"] == {
        "words": 2,
        "expressions": 3,
        "longest": 16,
        "cut": 1,
        "blank": 1,
        "covered": 1,
    }
    assert any(
        line.split()[:3] == ["refcoco", "2", "1"]
        for line in run("check", tmp_path, "--words", vectors).out.splitlines()
    )
    vectors.write_text("dog" + " 0.5" * 50 + "\n")
    status, facts = facts_of(run, tmp_path, "--words", vectors)
    assert status == 2
    assert "vectors.txt" in facts["problems"][0]


def test_a_data_set_that_is_asked_for_and_not_there_is_named_with_its_files(tmp_path: Path, run) -> None:
    write_split(tmp_path, "refcoco", [(1, "train", ["a"])])
    assert run("check", tmp_path, "--dataset", "refcoco").status == 0
    status, facts = facts_of(run, tmp_path, "--dataset", "refcocog")
    assert status == 2
    assert "refcocog/refs(umd).p or anns/refcocog.json" in facts["problems"][0]
    assert list(facts["datasets"]) == []
    ended = run("check", tmp_path, "--dataset", "refcco")
    assert (ended.status, ended.out) == (2, "")
    assert "did you mean 'refcoco'?" in ended.err


@pytest.mark.parametrize("place", [".", "inner", "inner/refcoco", "far/away"])
def test_data_sets_that_lie_elsewhere_are_found_with_the_command_that_checks_them(tmp_path: Path, place: str) -> None:
    data = tmp_path / "inner"
    data.mkdir()
    write_split(data, "refcoco", [(1, "train", ["a"])])
    (tmp_path / "far" / "away").mkdir(parents=True)
    found = check_data(tmp_path / place)
    if place == "inner":
        assert found.problems == ()
        return
    (problem,) = found.problems
    assert (f"weakmcn check {data}" in problem) == (place != "far/away")
    assert ("refcoco/refs(unc).p" in problem) == (place == "far/away")
    absent, *near = check_data(tmp_path / place, datasets=["refcoco"]).problems
    assert absent.startswith("refcoco: not here")
    assert near == ([problem] if place != "far/away" else [])


def test_an_export_of_the_hub_is_named_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val-00000-of-00002.parquet").write_bytes(b"PAR1")
    found = check_data(tmp_path)
    assert found.problems
    assert any("val-00000-of-00002.parquet" in note and "8,811" in note for note in found.notes)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, run) -> None:
    ended = run("check", tmp_path / "nowhere")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert "no such folder" in ended.err


def test_every_data_set_that_is_known_says_what_to_look_for() -> None:
    for spec in datasets.DATASETS.values():
        assert f"refs({spec.partition}).p" in names_to_look_for(spec)

"""`weakmcn predict`: what phrases name on photographs, one or many, as `eval` would score it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from weakmcn.cli.answering import KEY, Answerer, frozen_networks
from weakmcn.model.evaluate import SentenceRecord, evaluate_run
from weakmcn.model.run import Run
from weakmcn.pipeline.images import Photo
from weakmcn.pipeline.work import Worker
from weakmcn.shards.codec import rle_decode
from weakmcn.shards.store import Store

Weakmcn = Callable[..., Any]
NOTE = "note: its mask head has learned nothing, its masks mean nothing: it begins after 3 epochs.\n"
"""Of the demo of two epochs."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written beside nothing named lands in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def photos_of(demo: Path, keys: list[str]) -> list[Path]:
    store = Store.open(demo / "store")
    files = dict(zip(store.keys, store.images["file"].to_pylist(), strict=True))
    return [demo / "data" / files[key] for key in keys]


def some_photos(demo: Path, folder: Path, count: int) -> list[Path]:
    """Copies of the first photographs of val, as folder/0.jpg, 1.jpg, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = sorted((demo / "data" / "images" / "train2014").iterdir())[:count]
    return [Path(shutil.copy(original, folder / f"{place}.jpg")) for place, original in enumerate(originals)]


def answers_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def val(demo: Path) -> list[SentenceRecord]:
    """What `eval` says of one sentence of each photograph of val."""
    records = evaluate_run(Run.open(demo / "run"), "val").records
    return list({record.key: record for record in records}.values())


@pytest.fixture
def answerer(demo: Path) -> Iterator[Answerer]:
    run = Run.open(demo / "run")
    worker = Worker("cpu")  # threads as precompute sets them
    yield Answerer(run, frozen_networks(run, {}), "cpu")
    del worker


def test_as_many_photographs_as_a_batch_are_answered_exactly_as_eval_scores_them(
    demo: Path, val: list[SentenceRecord], answerer: Answerer
) -> None:
    photos = [Photo.read(KEY, path, side=answerer.side) for path in photos_of(demo, [record.key for record in val])]
    total = 16  # the largest batch of the pocket networks
    for record, photo, columns in zip(val, photos, answerer.see(photos, of=total), strict=True):
        (found,) = answerer.answers(photo, columns, [record.sentence])
        assert record.mask is not None
        assert found.box is not None
        assert (tuple(found.box), found.objectness) == (record.box_photo, record.score)
        np.testing.assert_array_equal(found.mask, rle_decode(record.mask, *photo.rgb.shape[:2]))


def test_one_photograph_is_answered_as_eval_scores_it_but_for_rounding(
    demo: Path, val: list[SentenceRecord], answerer: Answerer
) -> None:
    for record in val[:2]:
        photo = Photo.read(KEY, photos_of(demo, [record.key])[0], side=answerer.side)
        (found,) = answerer.answers(photo, answerer.see([photo])[0], [record.sentence])
        assert record.mask is not None
        assert record.box_photo is not None
        assert found.box is not None
        np.testing.assert_allclose(found.box, record.box_photo, atol=1e-3)
        true_mask = rle_decode(record.mask, *photo.rgb.shape[:2])
        assert np.mean(found.mask != true_mask) < 1e-3


def test_the_phrases_of_a_photograph_are_answered_as_each_alone(demo: Path, answerer: Answerer) -> None:
    photo = Photo.read(KEY, sorted((demo / "data" / "images" / "train2014").iterdir())[0], side=answerer.side)
    (columns,) = answerer.see([photo])
    phrases = ["red ring", "the big striped star", "blue"] * 30  # more than one batch of phrases
    together = answerer.answers(photo, columns, phrases)
    assert [found.phrase for found in together] == phrases
    for place in (0, 1, 2, 88):
        (alone,) = answerer.answers(photo, columns, [phrases[place]])
        boxes = [np.array(found.box) for found in (together[place], alone)]
        assert boxes[0].shape == (4,)
        np.testing.assert_allclose(boxes[0], boxes[1], atol=1e-4)


def test_one_photograph_gives_a_picture_numbers_and_a_mask_for_each_phrase(
    run: Weakmcn, demo: Path, tmp_path: Path
) -> None:
    (photo,) = photos_of(demo, ["000000000005"])
    words = ["--image", photo, "--phrase", "red ring", "--phrase", "the blorp ring", "--out", "found.png"]
    ended = run("predict", "--run", demo / "run", *words)
    assert ended.status == 0, ended.err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"found.png", "found.json", "found-mask-1.png", "found-mask-2.png"}
    assert ended.err == NOTE + "“the blorp ring”: the run has never seen: blorp\n"
    told = json.loads(Path("found.json").read_text())
    first, second = told["answers"]
    assert (first["phrase"], first["unknown_words"], second["unknown_words"]) == ("red ring", [], ["blorp"])
    assert 0 <= first["objectness"] <= 1
    with Image.open(photo) as image, Image.open(first["mask_file"]) as mask:
        assert [told["height"], told["width"]] == first["mask"]["size"] == [image.height, image.width]
        inside = rle_decode(first["mask"]["counts"], image.height, image.width)
        np.testing.assert_array_equal(np.asarray(mask), inside * np.uint8(255))


def test_a_phrase_without_a_known_word_is_answered_and_told_to_mean_nothing(run: Weakmcn, demo: Path) -> None:
    (photo,) = photos_of(demo, ["000000000005"])
    ended = run("predict", "--run", demo / "run", "--image", photo, "--phrase", "blorp dog blorp", "--out", "found.png")
    assert ended.status == 0
    why = "the run has never seen: blorp, dog; it knows no word of this, and its answer means nothing"
    assert ended.err == f"{NOTE}“blorp dog blorp”: {why}\n"


def test_a_phrase_longer_than_is_read_is_told_and_so_is_no_unknown_word_behind_its_end(
    run: Weakmcn, demo: Path
) -> None:
    (photo,) = photos_of(demo, ["000000000005"])
    long = " ".join(["red"] * 13 + ["blorp", "ring", "dog"])
    ended = run("predict", "--run", demo / "run", "--image", photo, "--phrase", long, "--out", "found.png")
    why = "only its first 15 words are read, up to “ring”; the run has never seen: blorp"
    assert ended.err == f"{NOTE}“{long}”: {why}\n"
    (answer,) = json.loads(Path("found.json").read_text())["answers"]
    assert (answer["unknown_words"], answer["remark"]) == (["blorp"], why)


def test_boxes_are_given_by_their_corners_and_by_corner_and_size(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    some_photos(demo, tmp_path / "photos", 1)
    printed = json.loads(run("predict", "--run", demo / "run", "--image", "photos", "--phrase", "ring", "--json").out)
    ((answer,),) = (photograph["answers"] for photograph in printed["photographs"])
    x0, y0, x1, y1 = answer["box_xyxy"]
    assert answer["box_xywh"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.02)


def test_a_folder_is_answered_photograph_by_photograph_into_a_folder(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    some_photos(demo, tmp_path / "photos", 2)
    some_photos(demo, tmp_path / "photos" / "more", 1)
    (tmp_path / "photos" / "notes.txt").write_text("no photograph")
    (tmp_path / "photos" / ".hidden.jpg").write_text("nor this")
    words = ["--image", "photos", "--phrase", "red ring", "--phrase", "blue"]
    ended = run("predict", "--run", demo / "run", *words)
    assert (ended.status, ended.err) == (0, NOTE)
    out = tmp_path / "weakmcn-answers"
    rows = answers_in(out)
    assert [row["image"] for row in rows] == ["photos/0.jpg", "photos/1.jpg", "photos/more/0.jpg"]
    assert [row["picture"] for row in rows] == ["0.png", "1.png", "more/0.png"]
    files = {"answers.jsonl", *(row["picture"] for row in rows)}
    files |= {answer["mask_file"] for row in rows for answer in row["answers"]}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == files
    assert len(files) == 1 + 3 + 6


def test_answers_in_a_folder_of_photographs_are_not_taken_for_photographs(
    run: Weakmcn, demo: Path, tmp_path: Path
) -> None:
    some_photos(demo, tmp_path, 1)
    words = ["predict", "--run", demo / "run", "--image", ".", "--phrase", "red"]
    for _ in range(2):
        assert run(*words).status == 0
        assert [row["image"] for row in answers_in(tmp_path / "weakmcn-answers")] == ["0.jpg"]


def test_pictures_that_earlier_answers_left_are_passed_by_and_told(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    first, _ = some_photos(demo, tmp_path / "photos", 2)
    (tmp_path / "photos/theirs.json").write_text("{}")
    shutil.copy(first, tmp_path / "photos/theirs.png")
    words = ["predict", "--run", demo / "run", "--phrase", "red", "--phrase", "blue"]
    assert run(*words, "--image", first, "--out", "photos/one.png").status == 0
    assert run(*words, "--image", "photos", "--out", "photos/inside").err.count("passed by: 3 pictures") == 1
    again = run(*words, "--image", "photos", "--json")
    assert "passed by: 12 pictures of earlier answers" in again.err
    asked = [row["image"] for row in json.loads(again.out)["photographs"]]
    assert asked == ["photos/0.jpg", "photos/1.jpg", "photos/theirs.png"]
    refused = run(*words, "--image", "photos/inside")
    assert refused.status == 2
    assert "no photograph in this folder but those of earlier answers" in refused.err


def test_nothing_is_written_over_but_an_earlier_answer(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    (photo,) = some_photos(demo, tmp_path / "photos", 1)
    words = ["predict", "--run", demo / "run", "--image", photo, "--phrase", "red", "--out"]
    assert run(*words, "mine.png").status == run(*words, "mine.png").status == 0
    for theirs in ("a.png", "b.json", "c-mask.png"):
        Path(theirs).write_bytes(b"theirs")
        ended = run(*words, f"{theirs[0]}.png")
        assert ended.status == 2
        assert f"{theirs[0]}.png: " in ended.err
        assert "and no earlier answer; choose another name, or move it away" in ended.err
        assert Path(theirs).read_bytes() == b"theirs"


def test_photographs_of_one_name_are_called_on_the_screen_as_they_were_typed(
    run: Weakmcn, demo: Path, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        some_photos(demo, tmp_path / folder, 1)
    told = run("predict", "--run", demo / "run", "--image", "a", "--image", "b", "--phrase", "red").out.splitlines()
    assert [line.partition(" “")[0] for line in told[:2]] == ["a/0.jpg", "b/0.jpg"]


def test_photographs_of_one_name_get_files_of_their_own(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    (first,) = some_photos(demo, tmp_path / "a", 1)
    (second,) = some_photos(demo, tmp_path / "b", 1)
    mask_like = first.rename(first.with_name("0-mask.jpg"))
    shutil.copy(second, first)
    words = ["--image", first, "--image", second, "--image", mask_like, "--phrase", "red", "--out", "out"]
    assert run("predict", "--run", demo / "run", *words).status == 0
    names = [name for row in answers_in(tmp_path / "out") for name in (row["picture"], row["answers"][0]["mask_file"])]
    assert len(set(names)) == 6
    assert all((tmp_path / "out" / name).is_file() for name in names)


def test_pairs_ask_each_photograph_its_own_phrases(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    some_photos(demo, tmp_path / "data" / "photos", 2)
    pairs = tmp_path / "data" / "pairs.jsonl"
    rows = [("photos/1.jpg", "red"), ("photos/0.jpg", "blue ring"), ("photos/1.jpg", "star"), ("photos/1.jpg", "red")]
    pairs.write_text("\n".join(json.dumps({"image": image, "phrase": phrase}) for image, phrase in rows))
    ended = run("predict", "--run", demo / "run", "--pairs", pairs, "--json")
    assert ended.status == 0, ended.err
    found = [
        (Path(row["image"]).name, [answer["phrase"] for answer in row["answers"]])
        for row in json.loads(ended.out)["photographs"]
    ]
    assert found == [("1.jpg", ["red", "star"]), ("0.jpg", ["blue ring"])]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # with --json nothing is written unasked
    told = run("predict", "--run", demo / "run", "--pairs", pairs, "--out", "answers").out
    assert "photos/1.jpg “star”: " in told
    assert [row["picture"] for row in answers_in(tmp_path / "answers")] == ["photos/1.png", "photos/0.png"]


def test_a_box_that_holds_hardly_anything_is_told(
    run: Weakmcn, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photo,) = some_photos(demo, tmp_path / "photos", 1)
    words = ["predict", "--run", demo / "run", "--image", photo, "--phrase", "red"]
    said = "(the detector sees hardly anything there)"
    assert said not in run(*words).out
    objectness = json.loads(run(*words, "--json").out)["photographs"][0]["answers"][0]["objectness"]
    monkeypatch.setattr("weakmcn.cli.answering.FAINT", objectness + 0.01)
    assert said in run(*words).out
    told = json.loads(run(*words, "--json").out)["photographs"][0]["answers"][0]["remark"]
    assert f"({told})" == said


def test_json_is_printed_alone_and_files_are_written_where_out_says(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    (photo,) = some_photos(demo, tmp_path / "photos", 1)
    words = ["predict", "--run", demo / "run", "--image", photo, "--phrase", "red"]
    alone = json.loads(run(*words, "--json").out)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    beside = json.loads(run(*words, "--json", "--out", "a.png").out)
    assert beside["photographs"][0].pop("picture") == "a.png"
    assert beside["photographs"][0]["answers"][0].pop("mask_file") == "a-mask.png"
    assert alone == beside
    assert alone["checkpoint"]["weights"] == "ema"
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["answers"][0]["mask"] == alone["photographs"][0]["answers"][0]["mask"]


def test_what_of_a_photograph_is_not_looked_at_is_told(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    (photo, *_) = some_photos(demo, tmp_path / "photos", 1)
    with Image.open(photo) as picture:
        for name, orientation in (("turned", 6), ("upright", 1)):
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture.save(tmp_path / f"photos/{name}.jpg", exif=exif)
        for name, alpha in (("clear", 0), ("solid", 255)):
            picture.putalpha(alpha)
            picture.save(tmp_path / f"photos/{name}.png")
    ended = run("predict", "--run", demo / "run", "--image", "photos", "--phrase", "red ring")
    assert ended.status == 0
    assert [line.partition(" ignored")[0] for line in ended.err.splitlines() if "ignored" in line] == [
        "photos/clear.png: its transparency is",
        "photos/turned.jpg: its EXIF rotation is",
    ]
    remarks = {row["image"]: row["remark"] for row in answers_in(tmp_path / "weakmcn-answers") if "remark" in row}
    assert remarks.keys() == {"photos/clear.png", "photos/turned.jpg"}
    assert "store it upright" in remarks["photos/turned.jpg"]


@pytest.fixture
def broken(demo: Path, tmp_path: Path) -> Path:
    """A folder of two sound photographs and two that are none."""
    photos = some_photos(demo, tmp_path / "photos", 3)
    photos[1].write_bytes(photos[1].read_bytes()[:2000])
    (tmp_path / "photos" / "page.png").write_bytes(b"<!DOCTYPE html>")
    return tmp_path / "photos"


def test_broken_photographs_are_all_told_before_any_work(
    run: Weakmcn, demo: Path, tmp_path: Path, broken: Path
) -> None:
    ended = run("predict", "--run", demo / "run", "--image", broken, "--phrase", "red")
    assert (ended.status, ended.out) == (2, "")
    count, first, second = ended.err.splitlines()
    assert count == ("weakmcn: 2 of 4 photographs cannot be used; mend them, or leave them out with --skip-bad:")
    assert first.startswith(f"{broken / '1.jpg'}: cut short or damaged")
    assert second.startswith(f"{broken / 'page.png'}: not an image (a web page)")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_broken_photographs_are_left_out_and_told_on_request(
    run: Weakmcn, demo: Path, tmp_path: Path, broken: Path
) -> None:
    words = ["predict", "--run", demo / "run", "--image", broken, "--phrase", "red", "--skip-bad"]
    ended = run(*words)
    assert ended.status == 3
    assert ended.err.count("left out: ") == 2
    assert [row["image"] for row in answers_in(tmp_path / "weakmcn-answers")] == [f"{broken}/0.jpg", f"{broken}/2.jpg"]
    printed = json.loads(run(*words, "--json").out)
    assert [row["image"] for row in printed["skipped"]] == [f"{broken}/1.jpg", f"{broken}/page.png"]
    assert [row["reason"].partition(" (")[0] for row in printed["skipped"]] == ["cut short or damaged", "not an image"]
    assert len(printed["photographs"]) == 2
    for path in (broken / "0.jpg", broken / "2.jpg"):
        path.unlink()
    ended = run(*words)
    assert ended.status == 2
    assert "2 of 2 photographs cannot be used; mend some: none is left:" in ended.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "missing option '--image' or '--pairs'; see weakmcn predict --help."),
        (
            ["--image", "photos"],
            "missing option '--phrase', or --pairs in place of --image; see weakmcn predict --help.",
        ),
        (["--phrase", "red", "--pairs", "pairs.jsonl"], "--phrase is for photographs of --image"),
        (["--image", "empty", "--phrase", "red"], "--image empty: no photograph in this folder"),
        (["--image", "photos", "--phrase", "red", "--out", "a.png"], "--out a.png: several photographs need a folder"),
        (["--image", "photos", "--phrase", "red", "--out", "pairs.jsonl"], "--out pairs.jsonl: is a file"),
        (["--image", "photos", "--phrase", "red", "--out", "photos"], "--out photos: holds other things"),
        (["--image", "photos/*.jpg", "--phrase", "red"], "--image photos/*.jpg: a pattern in quotes stays one"),
        (["--image", "photos", "--phrase", "?!"], '--phrase "?!": no words in it'),
        (["--image", "photos/0.jpg", "--phrase", "red", "--out", "a.jpg"], "--out a.jpg: the picture is a PNG"),
        (["--pairs", "nowhere.jsonl"], "nowhere.jsonl: missing"),
        (["--pairs", "pairs.jsonl"], 'pairs.jsonl: line 2 is no {"image": "a.jpg", "phrase": "left dog"}'),
        (["--pairs", "text.jsonl"], "text.jsonl: line 1 is no JSON"),
        (["--pairs", "mute.jsonl"], 'mute.jsonl: line 1 "...": no words in it'),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_one_line(
    run: Weakmcn, demo: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    some_photos(demo, tmp_path / "photos", 1)
    (tmp_path / "empty").mkdir()
    asked = json.dumps({"image": "photos/0.jpg", "phrase": "red"})
    (tmp_path / "pairs.jsonl").write_text(f'{asked}\n{{"image": "photos/0.jpg"}}\n')
    (tmp_path / "text.jsonl").write_text("red ring\n")
    (tmp_path / "mute.jsonl").write_text(asked.replace("red", "..."))
    before = sorted(tmp_path.rglob("*"))
    ended = run("predict", "--run", demo / "run", *words)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_the_run_was_not_trained_behind_are_refused(run: Weakmcn, demo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    words = ["--image", *photos_of(demo, ["000000000001"]), "--phrase", "ring", "--checkpoint", f"dino={other}"]
    ended = run("predict", "--run", demo / "run", *words, "--out", tmp_path / "found.png")
    assert ended.status == 2
    assert "trained on dino columns that cannot be made here: checkpoint differs" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]

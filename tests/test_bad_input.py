"""What is wrong with the input is told in one clear line, with its exit code, and nothing is half-written."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATASET = "refcoco+"
SMALL = ("--set", "train.batch=8", "--set", "train.warmup_epochs=1")
Edit = Callable[[Path], Any]


def photo_of_val(data: Path) -> Path:
    """A photograph that a reference of val stands on."""
    refs = pickle.loads((data / DATASET / "refs(unc).p").read_bytes())
    image = next(ref["image_id"] for ref in refs if ref["split"] == "val")
    return data / "images" / "train2014" / f"COCO_train2014_{image:012d}.jpg"


def remove_photo(data: Path) -> Any:
    photo_of_val(data).unlink()


def write_a_page(data: Path) -> Any:
    photo_of_val(data).write_text("<html>404 not found</html>")


def cut_in_half(data: Path) -> Any:
    photo = photo_of_val(data)
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])


def forget_an_annotation(data: Path) -> Any:
    refs = pickle.loads((data / DATASET / "refs(unc).p").read_bytes())
    path = data / DATASET / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"] = [each for each in content["annotations"] if each["id"] != refs[0]["ann_id"]]
    path.write_text(json.dumps(content))


@pytest.fixture
def data(demo: Path, tmp_path: Path) -> Path:
    """The demo's data set, to be damaged."""
    return shutil.copytree(demo / "data", tmp_path / "data")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_photo, "missing"),
        (write_a_page, "not an image"),
        (cut_in_half, "truncated"),
        (forget_an_annotation, "annotation"),
    ],
)
def test_a_data_set_that_is_broken_is_refused_before_anything_is_written(
    run, data: Path, tmp_path: Path, damage: Edit, says: str
) -> None:
    damage(data)
    store = tmp_path / "store"
    ended = run("precompute", "--data", data, "--dataset", DATASET, "--split", "val", "--store", store)
    assert ended.status == 2
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert not store.exists()


def test_with_skip_bad_the_rest_is_made_and_the_exit_code_tells(run, data: Path, tmp_path: Path) -> None:
    cut_in_half(data)
    words = ["--data", data, "--dataset", DATASET, "--split", "val", "--store", tmp_path / "store"]
    ended = run("precompute", *words, "--stages", "dino", "--executor", "local", "--skip-bad")
    assert ended.status == 3
    assert "1" in ended.out


def test_what_was_skipped_is_left_out_of_training_and_counted_as_missed(run, data: Path, tmp_path: Path) -> None:
    cut_in_half(data)
    store, out = tmp_path / "store", tmp_path / "run"
    words = ["--data", data, "--dataset", DATASET, "--split", "train,val", "--store", store]
    assert run("precompute", *words, "--executor", "local", "--skip-bad").status == 3
    trained = run("train", "--shards", store, "--dataset", DATASET, "--out", out, "--epochs", "1", *SMALL)
    assert trained.status == 0, trained.err
    measured = run("eval", "--run", out, "--split", "val", "--json")
    assert measured.status == 3, measured.err
    assert "skipped" in measured.out


def test_an_unknown_split_names_those_there_are(run, data: Path, tmp_path: Path) -> None:
    ended = run("precompute", "--data", data, "--dataset", DATASET, "--split", "vall", "--store", tmp_path / "store")
    assert ended.status == 2
    assert "testA" in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_store_that_lacks_a_column_is_refused_with_the_command_that_makes_it(run, data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = ["--data", data, "--dataset", DATASET, "--split", "train", "--store", store]
    assert run("precompute", *words, "--stages", "detect", "--executor", "local").status == 0
    ended = run("train", "--shards", store, "--dataset", DATASET, "--out", tmp_path / "run")
    assert ended.status == 2
    assert "weakmcn precompute" in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_question_without_words_is_refused(run, demo: Path, tmp_path: Path) -> None:
    ended = run("predict", "--run", demo / "run", "--image", photo_of_val(demo / "data"), "--phrase", " ?! ")
    assert ended.status == 2
    assert ended.err.count("\n") == 1


def test_a_picture_never_takes_the_place_of_its_photograph(run, demo: Path, tmp_path: Path) -> None:
    photo = Path(shutil.copy(photo_of_val(demo / "data"), tmp_path / "photo.png"))
    before = photo.read_bytes()
    ended = run("predict", "--run", demo / "run", "--image", photo, "--phrase", "red", "--out", photo)
    assert ended.status == 2
    assert photo.read_bytes() == before


def test_an_answer_takes_the_place_of_an_earlier_one_and_of_nothing_else(run, demo: Path, tmp_path: Path) -> None:
    words = ["predict", "--run", demo / "run", "--image", photo_of_val(demo / "data"), "--out", tmp_path / "a.png"]
    assert run(*words, "--phrase", "red").status == 0
    first = (tmp_path / "a.json").read_bytes()
    assert run(*words, "--phrase", "blue").status == 0
    assert (tmp_path / "a.json").read_bytes() != first
    for stranger, phrases in (("a.json", ["red"]), ("a-mask-2.png", ["red", "blue"])):
        kept = tmp_path / stranger
        kept.write_text("somebody's")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        ended = run(*words, *(word for phrase in phrases for word in ("--phrase", phrase)))
        assert ended.status == 2
        assert f"{kept} would be written too" in ended.err
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        (tmp_path / "a.json").write_bytes(first)


def test_an_answer_names_the_checkpoint_it_comes_from(run, demo: Path, tmp_path: Path) -> None:
    words = ["predict", "--run", demo / "run", "--image", photo_of_val(demo / "data"), "--out", tmp_path / "a.png"]
    assert run(*words, "--phrase", "red").status == 0
    told = json.loads((tmp_path / "a.json").read_text())
    newest = sorted((demo / "run" / "checkpoints").glob("*.safetensors"))[-1]
    assert told["checkpoint"] == {"file": newest.name, "step": int(newest.stem), "weights": "ema"}
    (answer,) = told["answers"]
    assert 0 <= answer["objectness"] <= 1
    assert "score" not in answer


def test_an_answer_from_an_older_checkpoint_says_so(run, demo: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(demo / "run", tmp_path / "run")
    older, newest = sorted((copy / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:1_000])
    words = ["predict", "--run", copy, "--image", photo_of_val(demo / "data"), "--out", tmp_path / "a.png"]
    ended = run(*words, "--phrase", "red")
    assert ended.status == 0
    assert newest.name in ended.err
    assert json.loads((tmp_path / "a.json").read_text())["checkpoint"]["file"] == older.name

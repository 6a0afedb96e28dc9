"""`weakmcn convert`: official checkpoints become runs bit by bit; what does not fit is told before a file is written.

The round trips are at the official sizes. The rest is at the pocket's: the demo's own network, written as the authors
write theirs, with a detector whose statistics have drifted, as a released checkpoint's have.
"""

import io
import json
import os
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from weakmcn.model.convert import convert, fitting_preset, grouped
from weakmcn.model.methods import method_of, recipe
from weakmcn.model.official import to_official
from weakmcn.model.origin import Origin
from weakmcn.model.run import Run
from weakmcn.pipeline.encoders.weights import SHIPPED_FOLDER
from weakmcn.pipeline.remembered import configured
from weakmcn.pipeline.stages import recipes, stage_named
from weakmcn.shards.errors import CheckpointError, ConfigError
from weakmcn.shards.fingerprint import file_sha256
from weakmcn.shards.store import Store

FACTS = json.loads((Path(__file__).parent / "data" / "official_keys.json").read_text())
ROWS = 9
SENTENCES = ("the left dog", "a dog near people")
"""Six words, so with the reserved rows nine."""
LAYOUTS = {
    ("weakmcn", "refcoco"): FACTS["tiny"],
    ("weakmcn", "refcocog-small"): FACTS["tiny"],
    ("weakmcn", "refcoco+-small"): FACTS["tiny"] | FACTS["small"],
    ("refclip", "refcoco"): FACTS["refclip"],
    ("apl", "refcoco"): FACTS["refclip"] | FACTS["apl"],
}
"""(system, preset) -> keys and shapes of its checkpoints outside the frozen encoders; -1 stands for the vocabulary."""
SAM_WIDTH = {"refcoco": 192, "refcocog-small": 384, "refcoco+-small": 384}
DATASET = "refcoco+"


def official(system: str, preset: str) -> dict[str, Tensor]:
    """A state dict of the official layout filled at random, with some keys of each frozen encoder."""
    g = torch.Generator().manual_seed(5)
    state = {
        key: torch.tensor(7) if not shape else torch.rand([ROWS if size == -1 else size for size in shape], generator=g)
        for key, shape in LAYOUTS[system, preset].items()
    }
    state["visual_encoder.module_list.0.conv.weight"] = torch.zeros(32, 3, 3, 3)
    if system == "weakmcn":
        patches = torch.zeros(1).expand(SAM_WIDTH[preset], 3, 16, 16)
        state["efficientsam.image_encoder.patch_embed.proj.weight"] = patches
        state["dino_model.layernorm.weight"] = torch.zeros(768)
    return state


@pytest.mark.parametrize(("system", "preset"), LAYOUTS)
def test_every_key_of_an_official_checkpoint_is_kept_exactly_frozen_or_dead(system: str, preset: str) -> None:
    state = official(system, preset)
    dataset = preset.removesuffix("-small").replace("refcocog", "refcocog-umd")
    assert fitting_preset(state, system, dataset) == preset
    made = convert(state, system, preset, dataset, SENTENCES)

    back = to_official(made.net)
    fate_of = {entry.key: entry.fate for entry in made.ledger}
    assert fate_of.keys() == state.keys()
    assert {key for key, fate in fate_of.items() if fate == "mapped"} == back.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    prefixes = ("visual_encoder.", "efficientsam.", "dino_model.")
    assert {key for key, fate in fate_of.items() if fate == "frozen"} == {k for k in state if k.startswith(prefixes)}
    assert len(made.vocabulary) == ROWS
    assert (made.model, made.train) == recipe(system, preset)


DEAD = {
    "weakmcn": {
        *(f"multi_scale_manner_sup.{block}" for block in ("down_modules.0", "down_modules.1", "mid_proj", "top_proj")),
        "attention_manner.w_m",
    },
    "refclip": {"multi_scale_manner.bot_proj", "multi_scale_manner.mid_proj"},
    "apl": {"multi_scale_manner_sup.bot_proj", "multi_scale_manner_sup.mid_proj", "attention_manner.w_m"},
}


@pytest.mark.parametrize(("system", "preset"), LAYOUTS)
def test_the_ledger_counts_modules_as_the_method_page_does(system: str, preset: str) -> None:
    shapes = {key: [ROWS if size == -1 else size for size in shape] for key, shape in LAYOUTS[system, preset].items()}
    state = {key: torch.zeros(1).expand(size) if size else torch.tensor(7) for key, size in shapes.items()}
    groups = grouped(convert(state, system, preset, "refcoco", SENTENCES).ledger)
    assert {group.official for group in groups if group.fate == "dead"} == DEAD[system]
    assert [group.fate for group in groups] == sorted((g.fate for g in groups), key=["mapped", "frozen", "dead"].index)
    words = ROWS * 300 * (2 if system == "apl" else 1)
    total = sum(group.parameters for group in groups if group.fate != "frozen") - words
    r512, r256 = 32_317_447, 21_551_879
    weakmcn = {"refcoco": r256, "refcocog-small": r256, "refcoco+-small": r512}
    assert total == {"weakmcn": weakmcn.get(preset), "refclip": 27_501_057, "apl": 49_910_539}[system]


def test_words_are_numbered_in_the_order_of_the_file_whatever_its_splits() -> None:
    made = convert(official("refclip", "refcoco"), "refclip", "refcoco", "refcoco", SENTENCES)
    assert made.vocabulary.rows[3:] == ("the", "left", "dog", "a", "near", "people")


def test_annotations_of_another_size_are_refused_with_both_numbers() -> None:
    with pytest.raises(CheckpointError, match=r"has 9 rows, the annotations give 10; .* --annotations FILE"):
        convert(official("refclip", "refcoco"), "refclip", "refcoco", "refcoco", [*SENTENCES, "zebra"])


def shaped(r: int | None, sam: int | None = None) -> dict[str, Tensor]:
    state = {"multi_scale_manner.top_proj.conv.weight": torch.zeros(512, 1, 1, 1)}
    if r:
        state["fusion_manner.0.v_proj.0.weight"] = torch.zeros(r, 1, 1, 1)
    if sam:
        state["efficientsam.image_encoder.patch_embed.proj.weight"] = torch.zeros(sam, 3, 16, 16)
    return state


@pytest.mark.parametrize(
    ("r", "sam", "dataset", "preset"),
    [
        (256, 192, "refcoco", "refcoco"),
        (256, None, "refcoco+", "refcoco+"),
        (512, 384, "refcoco", "refcoco-small"),
        (512, None, "refcoco+", "refcoco+-small"),
        (256, 192, "refcocog-umd", "refcocog"),
        (256, 384, "refcocog-google", "refcocog-small"),
    ],
)
def test_the_preset_is_told_by_widths_and_by_the_segmenter(r: int, sam: int | None, dataset: str, preset: str) -> None:
    assert fitting_preset(shaped(r, sam), "weakmcn", dataset) == preset


@pytest.mark.parametrize(
    ("r", "sam", "dataset", "says"),
    [
        (256, None, "refcocog-umd", "refcocog and refcocog-small have both"),  # they differ in the segmenter only
        (512, 384, "refcocog-umd", "no preset of refcocog has them"),
        (300, None, "refcoco", "wres_dim 300: no preset of refcoco has them"),
        (256, 192, "refclef-unc", "no preset of refclef has them"),
    ],
)
def test_where_no_preset_or_two_fit_the_option_that_decides_is_named(
    r: int, sam: int | None, dataset: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{says}; .* --preset "):
        fitting_preset(shaped(r, sam), "weakmcn", dataset)


# From here on the pocket's sizes.


@pytest.fixture(scope="module")
def data(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data set with SimREC's JSON of it in anns/."""
    root = tmp_path_factory.mktemp("data set")  # the blank is there to be quoted
    for name in ("images", DATASET, "pocket.json"):
        (root / name).symlink_to(demo / "data" / name)
    splits: dict[str, list[dict]] = {}
    store = Store.open(demo / "store")
    for row in store.references(DATASET).to_pylist():
        entry = {"iid": int(row["key"]), "bbox": row["box"], "cat_id": 0, "mask_id": row["ref_id"]}
        spoken = [row["sentences"]] if row["split"] == "train" else [[text] for text in row["sentences"]]
        splits.setdefault(row["split"], []).extend(entry | {"refs": refs} for refs in spoken)
    (root / "anns").mkdir()
    (root / "anns" / f"{DATASET}.json").write_text(json.dumps(splits))
    return root


@pytest.fixture(scope="module")
def state(demo: Path) -> dict[str, Tensor]:
    """The demo's network in the authors' layout, a drifted detector with it."""
    g = torch.Generator().manual_seed(0)
    detector = load_file(SHIPPED_FOLDER / "detect.safetensors")
    drifted = {
        key: value * (1 + 0.2 * torch.rand(value.shape, generator=g)) if key.endswith("running_var") else value
        for key, value in detector.items()
    }
    return to_official(Run.open(demo / "run").network()) | {f"visual_encoder.{k}": v for k, v in drifted.items()}


def write(path: Path, state: Mapping[str, Any], **more: Any) -> Path:
    """A training checkpoint as the authors' loop writes it, of a run on several GPUs."""
    named = {f"module.{key}": value for key, value in state.items()}
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}
    content = {"epoch": 24, "state_dict": named, "optimizer": {"state": moments}, "scheduler": {}, "lr": 1e-4}
    torch.save(content | more, path)
    return path


@pytest.fixture
def words(data: Path, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line that converts the demo's network to `out`, the current folder being empty otherwise."""
    monkeypatch.chdir(tmp_path)
    write(Path("det_best.pth"), state)
    return ["convert", "det_best.pth", "--annotations", str(data / "anns" / f"{DATASET}.json"), "--out", "out"]


def test_a_converted_run_has_the_weights_the_words_and_the_detector_of_its_checkpoint(
    run, demo: Path, state: dict[str, Tensor], words: list[str]
) -> None:
    ended = run(*words)
    assert ended.status == 0, ended.err
    made, trained = Run.open("out"), Run.open(demo / "run")
    ours, theirs = made.network().state_dict(), trained.network().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert made.vocabulary.rows == trained.vocabulary.rows
    assert (made.dataset, made.model, made.finished) == (DATASET, trained.model, True)
    detector = load_file("out/detector.safetensors")
    assert all(torch.equal(value, state[f"visual_encoder.{key}"]) for key, value in detector.items())
    assert len(detector) == sum(key.startswith("visual_encoder.") for key in state)


def test_what_it_prints_next_makes_columns_that_it_evaluates_on_and_another_store_is_refused(
    run, demo: Path, words: list[str]
) -> None:
    printed = run(*words).out
    commands = [shlex.split(line)[1:] for line in printed.split("Next:\n")[1].splitlines()]
    assert [command[0] for command in commands] == ["precompute", "eval"]

    refused = run("eval", "--run", "out", "--shards", demo / "store", "--split", "val")
    assert refused.status == 2
    assert "made with the detector inside det_best.pth" in refused.err
    mend = shlex.split(refused.err.partition("make them: ")[2])
    assert mend[:2] == ["weakmcn", "precompute"]
    assert mend[mend.index("--checkpoint") + 1] == "detect=out/detector.safetensors"

    made = run(*commands[0], "--executor", "local")
    assert made.status == 0, made.err
    measured = run(*commands[1], "--json")
    assert measured.status == 0, measured.err
    assert json.loads(measured.out)["sentences"] > 0


def test_predict_takes_the_runs_own_detector_and_refuses_another(run, demo: Path, words: list[str]) -> None:
    run(*words)
    photo = sorted((demo / "data" / "images" / "train2014").iterdir())[0]
    asked = ["predict", "--run", "out", "--image", photo, "--phrase", "red star", "--out", "answer.png"]
    answered = run(*asked)
    assert answered.status == 0, answered.err
    assert Path("answer-mask.png").is_file()
    refused = run(*asked, "--checkpoint", "detect=pocket:detect")
    assert refused.status == 2
    assert "needs the detector inside det_best.pth, this is another; name" in refused.err


def test_the_checkpoint_itself_and_its_detector_alone_are_both_accepted_as_its_detector(run, words: list[str]) -> None:
    run(*words)
    origin = Run.open("out").converted
    assert isinstance(origin, Origin)
    assert (origin.sha256, origin.detector_sha256) == (
        file_sha256(Path("det_best.pth")),
        file_sha256(Path("out/detector.safetensors")),
    )
    accepted = {"det_best.pth": True, "out/detector.safetensors": True, "pocket:detect": False}
    for name, is_own in accepted.items():
        config = configured({}, preset="pocket", checkpoints={"detect": name})
        hashed = {name: made.hashed for name, made in recipes(config, [stage_named("detect")]).items()}
        assert (origin.other_detector(hashed) is None) == is_own


def test_columns_of_other_networks_or_of_reestimated_statistics_are_told_apart(run, words: list[str]) -> None:
    run(*words)
    origin = Run.open("out").converted
    assert origin is not None
    stages = [stage_named(name) for name in ("detect", "dino", "sam")]
    own = {name: made.hashed for name, made in recipes(configured({}, preset="pocket"), stages).items()}
    assert origin.other_network(own) is None
    assert origin.other_network({k: v for k, v in own.items() if k != "sam"}) == "needs sam columns, there are none"

    def changed(stage: str, **parameters: Any) -> dict[str, dict]:
        return own | {stage: own[stage] | {"parameters": own[stage]["parameters"] | parameters}}

    assert "needs dino columns with channels 96" in str(origin.other_network(changed("dino", channels=128)))
    reestimated = changed("detect", statistics={"dataset": "refcoco"})
    assert "there are re-estimated ones" in str(origin.other_network(reestimated))


def test_the_detector_goes_where_it_is_told_and_is_found_there(run, words: list[str], tmp_path: Path) -> None:
    ended = run(*words, "--detector", "mine.safetensors")
    assert ended.status == 0, ended.err
    assert not Path("out/detector.safetensors").exists()
    origin = Run.open("out").converted
    assert origin is not None
    assert origin.detector_file(Path("elsewhere")) == tmp_path / "mine.safetensors"


def test_a_checkpoint_without_its_encoders_is_converted_and_that_is_said(
    run, state: dict[str, Tensor], words: list[str]
) -> None:
    torch.save({k: v for k, v in state.items() if not k.startswith("visual_encoder.")}, "det_best.pth")
    ended = run(*words)
    assert ended.status == 0, ended.err
    assert "holds no detector" in ended.out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        *("checkpoints", "columns.json", "run.json", "vocabulary.json"),
    ]


@pytest.mark.parametrize("system", ["refclip", "apl"])
def test_checkpoints_of_the_other_systems_become_runs_that_are_measured_too(
    run, demo: Path, words: list[str], system: str
) -> None:
    vocabulary = Run.open(demo / "run").vocabulary
    net = method_of(system).build(recipe(system, "pocket")[0], vocabulary, None)
    torch.save(to_official(net), "det_best.pth")
    ended = run(*words)
    assert ended.status == 0, ended.err
    assert f"out: {system}, preset pocket" in ended.out
    measured = run("eval", "--run", "out", "--shards", demo / "store", "--split", "val", "--json")
    assert measured.status == 0, measured.err
    assert 0 <= json.loads(measured.out)["rec_acc50"] <= 100


def test_the_table_names_every_module_and_json_every_key(run, state: dict[str, Tensor], words: list[str]) -> None:
    table = run(*words).out.partition("frozen:")[0]
    assert all(len(line) <= 80 for line in table.splitlines())
    for module in dict.fromkeys(key.partition(".")[0] for key in state):
        assert re.search(rf"^{module} ", table, re.MULTILINE)
    shutil.rmtree("out")
    lines = run(*words, "--all").out.splitlines()
    assert [line.partition(" -> ")[0] for line in lines if " -> " in line] == list(state)
    assert "linear_vs.bias -> matcher.visual.bias" in lines
    shutil.rmtree("out")
    facts = json.loads(run(*words, "--json").out)
    assert [entry["key"] for entry in facts["keys"]] == list(state)
    assert facts["preset"] == "pocket"


def test_a_converted_run_cannot_be_trained_on(run, demo: Path, words: list[str]) -> None:
    run(*words)
    ended = run("train", "--shards", demo / "store", "--dataset", DATASET, "--out", "out")
    assert ended.status == 2
    assert "out: converted from det_best.pth, not trained here, so it cannot be trained on" in ended.err


def test_a_converted_run_asks_for_a_store(run, words: list[str]) -> None:
    run(*words)
    ended = run("eval", "--run", "out")
    assert ended.status == 2
    assert "has no store of its own; name one: --shards STORE" in ended.err


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def with_more(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {key: value}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("linear_vs.bias"), r"1 missing \(linear_vs.bias\)"),
        (with_more("linear_vs.gain", torch.ones(1)), r"1 unknown \(linear_vs.gain\)"),
        (with_more("linear_vs.bias", torch.ones(5)), r"linear_vs.bias is \[5\] where \[128\] is wanted"),
        (without("visual_encoder.module_list.0.conv.weight"), r"1 keys missing \(module_list.0.conv.weight\)"),
        (with_more("visual_encoder.head.bias", torch.ones(1)), r"1 keys surplus \(head.bias\)"),
        (
            with_more("visual_encoder.module_list.0.conv.weight", torch.ones(2, 3, 3, 3)),
            r"this is YOLOv3 of width 2 \(8 classes\); YOLOv3 of width 4 \(8 classes\) was asked for",
        ),
        (with_more("fusion_manner.0.v_proj.0.weight", torch.ones(50, 1, 1, 1)), r"wres_dim 50: no preset"),
        (lambda state: {"image_encoder.patch_embed.proj.weight": torch.ones(768)}, "this is an EfficientSAM of width"),
        (lambda state: {"lang_encoder.x": torch.ones(1)}, "a checkpoint of WeakMCN, RefCLIP or APL was asked for"),
    ],
    ids=["missing", "surplus", "shape", "detector missing", "detector surplus", "narrow", "R", "SAM", "fragment"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key_and_nothing_is_written(
    run, state: dict[str, Tensor], words: list[str], change: Callable, says: str
) -> None:
    write(Path("det_best.pth"), change(state))
    refuse(run, words, says)


def refuse(run, words: list[str], says: str) -> None:
    ended = run(*words)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert re.search(says, ended.err), ended.err
    assert not Path("out").exists()


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def saved(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def archive(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, data)
    return buffer.getvalue()


def script() -> bytes:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(Module(), torch.ones(1)), buffer)
    return buffer.getvalue()


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut short": (lambda good: good[: len(good) // 2], "damaged or partial download"),
    "one bit": (lambda good: good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], "damaged or partial download"),
    "empty": (lambda good: b"", "is empty"),
    "web page": (lambda good: b"<!DOCTYPE html><html>quota exceeded</html>", "is a web page"),
    "LFS pointer": (lambda good: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "zip of a picture": (lambda good: archive("photo.jpg", b"\xff\xd8"), "a zip with 0 checkpoints"),
    "script": (lambda good: script(), "a TorchScript archive"),
    "code": (lambda good: saved({"state_dict": {"a": Payload()}}), "asks for posix.mkdir"),
    "code, old format": (lambda good: saved({"state_dict": {"a": Payload()}}, zipped=False), "asks for posix.mkdir"),
    "code in a zip": (lambda good: archive("w.pth", saved(Payload())), "asks for posix.mkdir"),
    "code beside weights": (lambda good: saved({"state_dict": {}, "args": Payload()}), "asks for posix.mkdir"),
    "a module": (lambda good: saved(torch.nn.Linear(2, 2)), "asks for torch.nn.modules.linear.Linear"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_one_line_and_no_code_in_it_runs(run, words: list[str], kind: str) -> None:
    change, says = BAD_FILES[kind]
    path = Path("det_best.pth")
    path.write_bytes(change(path.read_bytes()))
    refuse(run, words, rf"det_best.pth: .*{says}")
    assert not Path("ran").exists()


def test_a_good_checkpoint_under_a_wrong_ending_is_read_for_what_it_is(run, words: list[str]) -> None:
    Path("det_best.pth").rename("det_best.txt")
    ended = run(*[word.replace(".pth", ".txt") for word in words])
    assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--dataset", "refcocoo"], "did you mean 'refcoco'"),
        (["--preset", "refcoco"], "not an official WeakMCN state dict of this configuration"),
        (["--detector", "det_best.pth"], "name it det_best.safetensors"),
        (["--annotations", "det_best.pth"], "det_best.pth: no data set goes by that name; .* --dataset refcoco"),
        (["--annotations", "gone/refcoco.json"], "gone/refcoco.json: missing"),
    ],
)
def test_options_that_do_not_fit_are_refused(run, words: list[str], more: list[str], says: str) -> None:
    refuse(run, [*words, *more], says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"ref_id": 1}], "not a list of entries for every split"),
        ({"train": [{"iid": 1, "cat_id": 0, "mask_id": 0, "refs": "left dog"}]}, "entry 0 of train has no list of"),
        ({"train": [{"iid": 1, "cat_id": 0, "mask_id": 0, "refs": [3]}]}, "which is no text"),
        ({"train": []}, r"its word table has \d+ rows, the annotations give 3"),
    ],
)
def test_annotations_that_are_not_those_are_refused(run, words: list[str], content: Any, says: str) -> None:
    Path(f"{DATASET}.json").write_text(json.dumps(content))
    refuse(run, [*words, "--annotations", f"{DATASET}.json"], says)


def test_a_folder_or_a_detector_that_is_there_is_never_written_over(run, words: list[str]) -> None:
    Path("mine.safetensors").write_text("mine")
    refuse(run, [*words, "--detector", "mine.safetensors"], "mine.safetensors: is there already")
    Path("full").mkdir()
    Path("full/note.txt").write_text("mine")
    ended = run(*words[:-1], "full")
    assert ended.status == 2
    assert "--out full: holds something already" in ended.err
    assert os.listdir("full") == ["note.txt"]

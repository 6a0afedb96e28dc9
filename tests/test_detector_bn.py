"""The detector's BatchNorm statistics: the checkpoint's own, or taken from a data set's training photographs."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from weakmcn.pipeline.config import DetectConfig, PipelineConfig, preset
from weakmcn.pipeline.encoders.reestimate import batch_statistics
from weakmcn.pipeline.encoders.weights import frozen
from weakmcn.pipeline.encoders.yolov3 import DetectEncoder, YOLOv3, normalised
from weakmcn.pipeline.images import Photo
from weakmcn.pipeline.measure import measure
from weakmcn.pipeline.precompute import Report, precompute, settings
from weakmcn.pipeline.progress import Progress
from weakmcn.pipeline.remembered import config_of
from weakmcn.pipeline.stages import differences, load_encoder, recipes, recorded, stage_named
from weakmcn.pipeline.statistics import BATCHES_A_PART
from weakmcn.pipeline.tasks import Outcome, ShardDone, ShardTask
from weakmcn.pipeline.work import Worker
from weakmcn.shards.errors import CheckpointError, ConfigError, InputError
from weakmcn.shards.store import Store, gc

from .tiny import SIDE, digests, photo, write_data, write_photo, write_weights

QUIET = Console(quiet=True)
TRAINED = 14
"""Training photographs: five batches of three, the last one short; so two parts."""
VAL = 2


@dataclass(frozen=True)
class World:
    """Two data sets over the same photographs, and a store whose detector has the statistics of refcoco's."""

    config: PipelineConfig
    data: Path
    store: Path

    def run(self, store: Path, **options) -> Report:
        is_made = any(store.glob("detect-*"))
        asked = {"config": settings(store) if is_made else self.config, "data": self.data}
        asked |= {"dataset": "refcoco", "splits": ["train"], "stages": ["detect"], "executor": "local"}
        return precompute(**(asked | {"store": store, "console": QUIET} | options))

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.store, folder / "store"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    data = write_data(root / "data", images=TRAINED + VAL, val=VAL)
    write_other_dataset(data)
    made = World(write_weights(root / "weights"), data, root / "store")
    assert made.run(made.store, detector_bn="reestimate", stages=None).exit_code == 0
    return made


def write_other_dataset(data: Path) -> None:
    """refcoco+ over the same photographs: the first three of refcoco's training photographs are its split val."""
    shutil.copytree(data / "refcoco", data / "refcoco+")
    path = data / "refcoco+" / "refs(unc).json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["split"] = "val" if row["image_id"] <= 3 else "train"
    path.write_text(json.dumps(rows))


def family(store: Path) -> str:
    return Store.open(store).families["detect"].name


def statistics_file(store: Path) -> Path:
    (file,) = store.glob("weights/statistics-*.safetensors")
    return file


def detector(config: DetectConfig) -> YOLOv3:
    return frozen(YOLOv3(config.width, config.classes, SIDE), config.checkpoint, "cpu")


def read(data: Path, number: int) -> Photo:
    return Photo.read(f"{number:012d}", photo(data, number), side=SIDE)


# What they are.


def test_those_of_a_batch_are_of_every_layers_own_input_and_leave_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    net = YOLOv3(2, 3, SIDE).eval()
    for value in net.buffers():
        value.uniform_(0.5, 2) if value.is_floating_point() else value.fill_(7)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        first = net.module_list[0].conv(images)  # type: ignore[union-attr]
        found = batch_statistics(net, images)
        assert torch.equal(batch_statistics(net, images), found)
    torch.testing.assert_close(found[0, :2].float(), first.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found[1, :2].float(), first.var(dim=(0, 2, 3)))
    assert found.shape == (
        2,
        sum(module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d)),
    )
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert {module.momentum for module in net.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert not any(module.training for module in net.modules())


def test_they_are_the_means_that_torch_accumulates_in_training_mode_over_the_training_photographs(world: World) -> None:
    net = detector(world.config.detect)
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    canvases = [read(world.data, number).letterbox.image(read(world.data, number).rgb) for number in range(1, 15)]
    with torch.no_grad():
        for first in range(0, TRAINED, 3):
            net.features(normalised(np.stack(canvases[first : first + 3]), "cpu"))

    found = load_file(statistics_file(world.store))
    assert len(found) == 3 * len(norms)
    for name, norm in norms.items():
        assert found[f"{name}.num_batches_tracked"] == 5
        torch.testing.assert_close(found[f"{name}.running_mean"], norm.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[f"{name}.running_var"], norm.running_var, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found[f"{name}.running_mean"], torch.zeros(norm.num_features))


def test_the_columns_are_those_of_the_checkpoints_weights_with_these_statistics(world: World) -> None:
    net = detector(world.config.detect)
    net.load_state_dict(load_file(statistics_file(world.store)), strict=False)
    photos = [read(world.data, number) for number in (1, 2, 3)]
    canvases = np.stack([each.letterbox.image(each.rgb) for each in photos])
    s32 = net.features(normalised(canvases, "cpu"))[32][0]
    stored = Store.open(world.store)[photos[0].key]["detect.s32"]
    np.testing.assert_allclose(stored, s32.numpy(), rtol=2e-3, atol=1e-3)
    plain = DetectEncoder(world.config, "cpu").encode(photos, [{}] * 3)[0]["s32"]
    assert np.abs(plain - stored).max() > 0.05


@dataclass
class Backwards:
    """An executor of which no two tasks share a worker, and that runs the last task first."""

    device: str = "cpu"
    workers: int = 1

    def run(self, tasks: Sequence[ShardTask]) -> Iterator[Outcome]:
        for task in reversed(tasks):
            yield Worker("cpu").run(task)


def test_their_bytes_do_not_depend_on_who_makes_which_part_when(world: World, tmp_path: Path) -> None:
    assert 3 * BATCHES_A_PART < TRAINED
    plan = world.run(tmp_path / "store", detector_bn="reestimate", dry_run=True).plan
    assert plan.statistics is not None
    assert len(plan.statistics.due) == 2
    threads = torch.get_num_threads()
    with Progress(QUIET) as progress:
        assert list(measure(plan.statistics, plan.config, Backwards(), progress)) == []
    torch.set_num_threads(threads)
    assert statistics_file(tmp_path / "store").read_bytes() == statistics_file(world.store).read_bytes()


@pytest.fixture(scope="module")
def interrupted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store all of whose parts are done and not yet joined."""
    store = tmp_path_factory.mktemp("interrupted") / "store"
    world.run(store, stages=["dino"])
    plan = world.run(store, detector_bn="reestimate", dry_run=True).plan
    assert plan.statistics is not None

    class Interrupted(Backwards):
        def run(self, tasks: Sequence[ShardTask]) -> Iterator[Outcome]:
            assert all(isinstance(outcome, ShardDone) for outcome in super().run(tasks))
            raise KeyboardInterrupt
            yield

    with Progress(QUIET) as progress, pytest.raises(KeyboardInterrupt):
        list(measure(plan.statistics, plan.config, Interrupted(), progress))
    return store


@pytest.mark.parametrize("harm", ["lost", "cut", "flipped", "of other photographs"])
def test_parts_that_are_done_are_kept_and_harmed_ones_are_made_again(
    world: World, interrupted: Path, tmp_path: Path, harm: str
) -> None:
    store = Path(shutil.copytree(interrupted, tmp_path / "store"))
    first, second = sorted(store.glob("weights/*/*.safetensors"))
    if harm == "lost":
        first.unlink()
    elif harm == "cut":
        first.write_bytes(first.read_bytes()[:-9])
    elif harm == "flipped":
        data = bytearray(first.read_bytes())
        data[-9] ^= 1
        first.write_bytes(data)
    else:
        shutil.copy(second, first)
    plan = world.run(store, detector_bn="reestimate").plan.statistics
    assert plan is not None
    assert (plan.due, plan.why) == ((0,), "1 of 2 parts missing")
    assert statistics_file(store).read_bytes() == statistics_file(world.store).read_bytes()
    assert not first.parent.exists()


# What they are part of.


def test_they_are_known_before_they_are_made(world: World, tmp_path: Path) -> None:
    report = world.run(tmp_path / "store", detector_bn="reestimate", dry_run=True, stages=None)
    assert not (tmp_path / "store").exists()
    assert report.plan.families["detect"] == family(world.store)
    assert report.plan.statistics is not None
    assert (report.plan.statistics.images_due, report.plan.statistics.why) == (TRAINED, "not computed yet")


def test_stage_json_tells_them_in_clear_and_settings_read_it_back(world: World) -> None:
    content = Store.open(world.store).families["detect"].stage_json
    told = content["hashed"]["parameters"]["statistics"]
    assert (told["dataset"], told["images"]) == ("refcoco", TRAINED)
    assert content["recorded"]["statistics_file"] == f"weights/{statistics_file(world.store).name}"
    config = settings(world.store)
    assert config.detect.statistics is not None
    assert Path(config.detect.statistics_file) == statistics_file(world.store)


def test_a_store_without_them_has_the_fingerprints_it_always_had(world: World) -> None:
    hashed = recipes(world.config, [stage_named("detect")])["detect"].hashed
    assert hashed["parameters"].keys() == {"width", "classes", "keep", "side_px"}
    beside = recorded(recipes(world.config, [stage_named("detect")])["detect"], world.config, "cpu")
    read_back = config_of({"detect": {"hashed": hashed, "recorded": beside}})
    assert read_back is not None
    assert read_back.detect == world.config.detect


def test_other_statistics_are_a_reason_that_is_told_in_words(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    report = world.run(store, detector_bn="frozen", stages=["detect", "masks"], dry_run=True)
    why = {stage.stage.name: stage.why for stage in report.plan.stages}
    assert re.fullmatch(
        r"stale: statistics of 14 training photographs of refcoco \([0-9a-f]{8}\) -> of the checkpoint", why["detect"]
    )
    assert why["masks"] == "stale: its input detect changed"
    before = Store.open(world.store).families["detect"].stage_json["hashed"]
    assert len(differences(before, report.plan.stages[0].recipe.hashed)) == 1


# What a store keeps.


def test_photographs_and_data_sets_that_are_added_change_nothing(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    before = digests(store)
    for options in ({"splits": ["val"]}, {"dataset": "refcoco+", "splits": ["train", "val"]}):
        report = world.run(store, **options)
        assert report.plan.statistics is not None
        assert report.plan.statistics.why == "up to date"
        assert family(store) == family(world.store)
    assert report.images == {"detect": 0}
    after = digests(store)
    kept = [name for name in before if name.endswith((".tar", ".safetensors")) or name.startswith("weights/")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_a_preset_that_is_named_leaves_them_as_they_are(world: World) -> None:
    detect = settings(world.store, preset="pocket").detect
    assert detect.statistics == settings(world.store).detect.statistics
    assert detect.width == preset("pocket").detect.width


def test_the_checkpoints_own_come_back_and_so_do_they(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    report = world.run(store, detector_bn="frozen")
    assert report.images == {"detect": TRAINED}
    assert settings(store).detect.statistics is None
    assert Store.open(store).stale_inputs("masks") == ["detect"]
    report = world.run(store, detector_bn="reestimate")
    assert report.plan.is_done
    assert family(store) == family(world.store)


def test_another_data_sets_do_not_replace_them_unasked(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    before = digests(store)
    with pytest.raises(InputError, match=r"has the statistics of refcoco's .* asks for refcoco\+'s; leave --detector"):
        world.run(store, dataset="refcoco+", detector_bn="reestimate")
    assert digests(store) == before


def test_training_photographs_have_to_be_there_and_may_be_there_from_before(world: World, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(
        ConfigError, match=r"the training photographs of refcoco are not in it, .* add train to --split"
    ):
        world.run(new, splits=["val"], detector_bn="reestimate")
    assert not new.exists()
    world.run(new, splits=["val"], detector_bn="frozen")
    with pytest.raises(ConfigError, match=r"14 of 14 training photographs of refcoco are not in it"):
        world.run(new, splits=["val"], detector_bn="reestimate")
    world.run(new, splits=["train"])
    report = world.run(new, splits=["val"], detector_bn="reestimate")
    assert report.images == {"detect": TRAINED + VAL}
    assert report.plan.families["detect"] == family(world.store)


def test_a_choice_that_cannot_be_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'warm' is not known; choose one of frozen, reestimate"):
        world.run(tmp_path / "store", detector_bn="warm")
    with pytest.raises(ConfigError, match="about the stage detect; name it among --stages too"):
        world.run(tmp_path / "store", detector_bn="reestimate", stages=["dino"])
    assert not (tmp_path / "store").exists()


# What is lost or changed.


@pytest.mark.parametrize("harm", ["lost", "cut", "flipped", "without record", "without anything"])
def test_harmed_statistics_are_made_again_to_the_same_bytes(world: World, tmp_path: Path, harm: str) -> None:
    store = world.copy(tmp_path)
    file = statistics_file(store)
    if harm == "lost":
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif harm == "flipped":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif harm == "without record":
        file.with_suffix(".json").write_text("{}")
    else:
        shutil.rmtree(store / "weights")
    if harm != "without record":
        with pytest.raises(CheckpointError, match=r"statistics are not there|its SHA-256 is not the one recorded"):
            load_encoder(stage_named("detect"), settings(store), "cpu")
    report = world.run(store)
    assert report.images == {"detect": 0}
    assert digests(store) == digests(world.store)


def test_a_changed_training_photograph_makes_its_shard_stale_and_leaves_the_statistics(
    world: World, tmp_path: Path
) -> None:
    data, store = Path(shutil.copytree(world.data, tmp_path / "data")), world.copy(tmp_path)
    write_photo(photo(data, 6), 58, 70, seed=99)
    report = world.run(store, data=data)
    assert report.plan.stages[0].due == (1,)
    assert family(store) == family(world.store)

    statistics_file(store).unlink()
    with pytest.raises(
        InputError, match=r"1 of their photographs have changed .*new ones: weakmcn .* --detector-bn re"
    ):
        world.run(store, data=data)
    report = world.run(store, data=data, detector_bn="reestimate")
    assert report.plan.stages[0].why.startswith("stale: statistics of 14 training photographs of refcoco (")
    assert report.images == {"detect": TRAINED}
    assert family(store) != family(world.store)


def test_a_part_that_fails_leaves_what_needs_the_detector_undone_and_nothing_else(world: World, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world.data, tmp_path / "data"))

    class Changing(Console):
        """Changes a photograph once the plan is told, as somebody else might."""

        def print(self, *words: object, **options: object) -> None:
            write_photo(photo(data, 13), 79, 65, seed=7)

    store = tmp_path / "store"
    report = world.run(store, data=data, stages=None, detector_bn="reestimate", console=Changing(quiet=True))
    assert report.exit_code == 1
    assert report.failures[0].stage == "detect-bn"
    assert "000000000013.jpg: changed since it was indexed" in report.failures[0].reason
    assert report.images == {"detect": 0, "dino": 12, "sam": 12, "masks": 0}

    shutil.copy(photo(world.data, 13), photo(data, 13))
    assert world.run(store, data=data, stages=None, detector_bn="reestimate").exit_code == 0
    assert statistics_file(store).read_bytes() == statistics_file(world.store).read_bytes()


# What is told, and what gc does.


def test_evaluated_photographs_of_another_data_set_among_them_are_told(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    assert world.run(store, dry_run=True).plan.notes == ()
    (note,) = world.run(store, dataset="refcoco+", splits=["val"], dry_run=True).plan.notes
    assert "taken from training photographs of refcoco" in note
    assert note.endswith("photographs that refcoco+ evaluates on: 3 of val.")


def test_ls_tells_whose_they_are_and_whether_they_are_there(world: World, tmp_path: Path, run) -> None:
    store = world.copy(tmp_path)
    line = f"{family(store)}: BatchNorm statistics of 14 training photographs of refcoco ({statistics_file(store)}"
    assert f"{line})\n" in run("store", "ls", store).out
    statistics_file(store).unlink()
    assert f"{line.rpartition('(')[0]}" in run("store", "ls", store).out
    assert "missing: precompute makes them again" in run("store", "ls", store).out


def test_gc_keeps_the_statistics_in_use_and_removes_others(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    kept = digests(store)
    world.run(store, detector_bn="frozen")
    removed = gc(store)
    assert {each.path.name.partition("-")[0] for each in removed} == {"detect", "statistics"}
    assert not list(store.glob("weights/*"))

    store = world.copy(tmp_path / "other")
    assert gc(store) == []
    stray = store / "weights" / "statistics-00000000" / "000000.safetensors"
    stray.parent.mkdir()
    stray.write_bytes(b"half")
    assert [(each.path, each.bytes) for each in gc(store)] == [(stray.parent, 4)]
    assert digests(store) == kept


def test_a_store_that_was_moved_still_finds_them(world: World, tmp_path: Path) -> None:
    moved = world.copy(tmp_path / "elsewhere")
    encoder = load_encoder(stage_named("detect"), settings(moved), "cpu")
    assert isinstance(encoder, DetectEncoder)
    mean = load_file(statistics_file(world.store))["module_list.0.batch_norm.running_mean"]
    assert torch.equal(encoder.net.state_dict()["module_list.0.batch_norm.running_mean"], mean)

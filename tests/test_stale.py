"""What changed is made again with all that is made from it, and nothing else; what only looks changed is kept."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from weakmcn.pipeline import stages
from weakmcn.pipeline.config import PipelineConfig
from weakmcn.pipeline.precompute import precompute
from weakmcn.shards.store import Store

from .tiny import config_with, other_weights, photo, write_data, write_photo, write_weights

ALL = (0, 1, 2)
"""Shards."""
UPPER = ("detect", "masks", "clip")
"""The detector's stage and those made from it."""
EVERY = ("detect", "dino", "sam", "masks", "clip")


class World:
    """A data set, weights and a whole store in one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config: PipelineConfig = config_with(root / "weights")

    def run(self, **options):
        return precompute(
            self.config,
            store=self.root / "store",
            data=self.root / "data",
            dataset="refcoco",
            splits=["train", "val"],
            stages=["all"],
            console=Console(quiet=True),
            **{"executor": "local", **options},
        )

    def due(self) -> dict[str, tuple[int, ...]]:
        """Stage -> shards that a run would make, for those where it would make any."""
        return {stage.stage.name: stage.due for stage in self.run(dry_run=True).plan.stages if stage.due}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stale")
    write_data(root / "data")
    write_weights(root / "weights")
    assert World(root).run().exit_code == 0
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path) -> World:
    """A copy, moved: which is one of the things that must not count."""
    return World(Path(shutil.copytree(made, tmp_path / "moved")))


def other_checkpoint(section: str) -> Callable[[World], None]:
    def change(world: World) -> None:
        """Other weights under the same name, with the times of the old file."""
        file = Path(getattr(world.config, section).checkpoint)
        before = file.stat()
        changed = other_weights(world.config, section, world.root / "others")
        shutil.copyfile(getattr(changed, section).checkpoint, file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    return change


def setting(section: str, **values: object) -> Callable[[World], None]:
    def change(world: World) -> None:
        world.config = replace(world.config, **{section: replace(getattr(world.config, section), **values)})

    return change


def codec(world: World) -> None:
    world.config = replace(world.config, codec="u8")


def photograph(world: World) -> None:
    write_photo(photo(world.root / "data", 6), 58, 70, seed=99)


@pytest.mark.parametrize(
    ("change", "due"),
    [
        pytest.param(other_checkpoint("detect"), dict.fromkeys(UPPER, ALL), id="weights of the detector"),
        pytest.param(other_checkpoint("dino"), {"dino": ALL}, id="weights of DINO"),
        pytest.param(other_checkpoint("sam"), dict.fromkeys(("sam", "masks", "clip"), ALL), id="weights of SAM"),
        pytest.param(other_checkpoint("clip"), {"clip": ALL}, id="weights of CLIP"),
        pytest.param(photograph, dict.fromkeys(EVERY, (1,)), id="bytes of a photograph"),
        pytest.param(setting("detect", keep=2), dict.fromkeys(UPPER, ALL), id="number of candidates"),
        pytest.param(setting("detect", batch=2), dict.fromkeys(UPPER, ALL), id="batch of the detector"),
        pytest.param(setting("dino", batch=4), {"dino": ALL}, id="batch of DINO"),
        pytest.param(setting("dino", position_resampling="size"), {"dino": ALL}, id="position table of DINO"),
        pytest.param(setting("clip", softness_px=2.0), {"clip": ALL}, id="softness of CLIP's masks"),
        pytest.param(codec, dict.fromkeys(EVERY, ALL), id="codec"),
    ],
)
def test_a_change_makes_its_stage_stale_and_what_is_made_from_it(
    world: World, change: Callable[[World], None], due: dict[str, tuple[int, ...]]
) -> None:
    change(world)
    assert world.due() == due


@pytest.mark.parametrize("stage", ["dino", "masks"])
def test_a_new_version_of_a_computation_makes_its_stage_stale(
    world: World, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tuple(replace(each, code=each.code + 1) if each.name == stage else each for each in stages.STAGES)
    monkeypatch.setattr(stages, "STAGES", newer)
    assert world.due() == dict.fromkeys({"dino": ("dino",), "masks": ("masks", "clip")}[stage], ALL)


def test_other_annotations_renew_the_table_of_references_and_no_column(world: World) -> None:
    before = Store.open(world.root / "store").references("refcoco")
    instances = world.root / "data" / "refcoco" / "instances.json"
    content = json.loads(instances.read_text())
    content["annotations"][0]["bbox"] = [5, 5, 20, 16]
    instances.write_text(json.dumps(content))
    refs = world.root / "data" / "refcoco" / "refs(unc).json"
    said = json.loads(refs.read_text())
    said[1]["sentences"][0]["sent"] = "the other thing"
    refs.write_text(json.dumps(said))

    report = world.run()
    assert report.plan.is_done
    after = Store.open(world.root / "store").references("refcoco")
    assert after.to_pylist()[0]["box"] == [5, 5, 20, 16]
    changed = [old != new for old, new in zip(before.to_pylist(), after.to_pylist(), strict=True)]
    assert changed == [True, True] + [False] * 8


def touched(world: World) -> None:
    """Every file of another day."""
    for file in world.root.rglob("*"):
        os.utime(file, (0, 0))


def renamed_weights(world: World) -> None:
    (world.root / "weights").rename(world.root / "elsewhere")
    world.config = config_with(world.root / "elsewhere")


def another_host(world: World) -> None:
    """As if another machine, with other libraries, had made it."""
    for file in (world.root / "store").glob("*/stage.json"):
        content = json.loads(file.read_text())
        content["recorded"] |= {"device": "another GPU", "versions": {"torch": "0.0"}}
        file.write_text(json.dumps(content))


@pytest.mark.parametrize("harmless", [lambda world: None, touched, renamed_weights, another_host])
def test_place_time_host_and_device_make_nothing_stale(world: World, harmless: Callable[[World], None]) -> None:
    harmless(world)
    assert world.due() == {}


@pytest.mark.parametrize("options", [{"executor": "ray", "workers": 1}, {"executor": "ray", "workers": 7}])
def test_neither_does_who_would_do_the_work(world: World, options: dict[str, object]) -> None:
    assert all(not stage.due for stage in world.run(dry_run=True, **options).plan.stages)

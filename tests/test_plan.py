"""`precompute --dry-run`: a plan that is measured, knows what is there already, and writes nothing."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from weakmcn.pipeline.config import PipelineConfig
from weakmcn.pipeline.plan import Plan
from weakmcn.pipeline.precompute import Report, precompute, settings
from weakmcn.pipeline.sizes import codec_table
from weakmcn.shards.codec import CODECS
from weakmcn.shards.store import Store

from .tiny import digests, photo, write_data, write_photo, write_weights

STAGES = ("detect", "dino", "sam", "masks")


@dataclass(frozen=True)
class World:
    """RefCOCO with ten photographs and its store; RefCOCO+ with eight of these and two others, not in the store."""

    config: PipelineConfig
    data: Path
    store: Path

    def run(self, store: Path, *, told: StringIO | None = None, **options) -> Report:
        console = Console(file=told, width=80) if told else Console(quiet=True)
        asked = {"dataset": "refcoco", "splits": ["train", "val"], "executor": "local", "console": console} | options
        return precompute(asked.pop("config", self.config), store=store, data=asked.pop("data", self.data), **asked)

    def plan(self, store: Path, **options) -> Plan:
        asked: dict[str, Any] = {"dry_run": True, "probe": True} | options
        return self.run(store, **asked).plan


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(write_weights(root / "weights"), write_data(root / "data"), root / "store")
    data = made.data
    other = json.loads((data / "refcoco" / "instances.json").read_text())
    refs = json.loads((data / "refcoco" / "refs(unc).json").read_text())
    for number, new in ((9, 11), (10, 12)):
        write_photo(photo(data, new), 50, 70, seed=new)
        other["images"][number - 1] = {"id": new, "file_name": photo(data, new).name, "height": 50, "width": 70}
        other["annotations"][number - 1]["image_id"] = refs[number - 1]["image_id"] = new
    (data / "refcoco+").mkdir()
    (data / "refcoco+" / "instances.json").write_text(json.dumps(other))
    (data / "refcoco+" / "refs(unc).json").write_text(json.dumps(refs))
    assert made.run(made.store).exit_code == 0
    return made


def due(plan: Plan) -> dict[str, int]:
    return {stage.stage.name: stage.images_due for stage in plan.stages}


def test_the_second_data_set_costs_only_its_new_photographs(world: World, tmp_path: Path) -> None:
    store = Path(shutil.copytree(world.store, tmp_path / "store"))
    plan = world.plan(store, dataset="refcoco+")
    assert due(plan) == dict.fromkeys(STAGES, 2)
    assert any(
        note.startswith(
            "8 of the 10 photographs asked for are in the store already; they have detect, dino, sam, masks"
        )
        for note in plan.notes
    )
    before = digests(store)
    report = world.run(store, dataset="refcoco+")
    assert report.images == dict.fromkeys(STAGES, 2)
    tars = {name: digest for name, digest in before.items() if name.endswith(".tar")}
    assert len(tars) == 12
    assert tars.items() <= digests(store).items()


def test_photographs_whose_columns_are_stale_are_not_told_as_kept(world: World) -> None:
    plan = world.plan(world.store, dataset="refcoco+", config=replace(world.config, codec="u8"))
    assert due(plan) == dict.fromkeys(STAGES, 12)
    assert any("8 of the 10" in note and "none of their columns can be kept" in note for note in plan.notes)


def test_a_probe_measures_seconds_and_touches_nothing(world: World, tmp_path: Path) -> None:
    before = digests(world.data)
    plan = world.plan(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert digests(world.data) == before
    assert [stage.probed for stage in plan.stages] == [10] * 4
    rough = world.plan(tmp_path / "new", probe=False)
    assert [stage.probed for stage in rough.stages] == [0] * 4
    assert all(stage.seconds > 0 for stage in plan.stages if not stage.made_with)
    assert {stage.stage.name: stage.made_with for stage in plan.stages} == {
        "detect": "",
        "dino": "",
        "sam": "",
        "masks": "sam",
    }, "one pass of SAM makes both, and is counted once"
    assert plan.stages[0].seconds != rough.stages[0].seconds


def test_bytes_are_those_that_are_then_written(world: World, tmp_path: Path) -> None:
    config = replace(world.config, images_per_shard=10)
    plan = world.plan(tmp_path / "store", config=config)
    report = world.run(tmp_path / "store", config=config)
    for stage in plan.stages:
        (tar,) = (tmp_path / "store" / stage.recipe.family).glob("*.tar")
        assert tar.stat().st_size == pytest.approx(stage.bytes + 5_000, abs=6_000), "a tar ends on 10,240 bytes"
        assert sum(stage.columns.values()) == stage.bytes
    assert report.bytes > 0


def test_a_stage_that_reads_a_column_finds_it_in_the_store(world: World, tmp_path: Path) -> None:
    store = Path(shutil.copytree(world.store, tmp_path / "store"))
    (store / Store.open(store).families["masks"].name / "000001.json").unlink()
    before = digests(store)
    plan = world.plan(store)
    assert due(plan) == {"detect": 0, "dino": 0, "sam": 0, "masks": 4}
    assert plan.stages[-1].probed == 4
    assert plan.stages[-1].made_with == ""
    assert plan.notes[0].startswith("10 of the 10 photographs asked for")
    assert "masks for 6" in plan.notes[0]
    assert digests(store) == before


def test_a_photograph_that_cannot_be_decoded_is_a_note(world: World, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    photo(data, 3).write_bytes(photo(data, 3).read_bytes()[:-40])
    plan = world.plan(tmp_path / "store", data=data)
    assert [stage.probed for stage in plan.stages] == [9] * 4
    assert any(re.search(r"probe: .*000003\.jpg: cut short", note) for note in plan.notes)


def test_a_network_that_gives_nonsense_is_a_note_and_its_figures_stay_rough(world: World, tmp_path: Path) -> None:
    state = load_file(world.config.dino.checkpoint)
    state["norm.bias"][3] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    config = replace(world.config, dino=replace(world.config.dino, checkpoint=str(tmp_path / "nan.safetensors")))
    told = StringIO()
    plan = world.run(tmp_path / "store", config=config, dry_run=True, probe=True, told=told).plan
    assert [stage.probed for stage in plan.stages] == [10, 0, 10, 10]
    assert any("probe of dino" in note and "NaN" in note for note in plan.notes)
    assert "in part a rough estimate" in told.getvalue()


def test_statistics_that_are_to_be_taken_first_are_part_of_the_time(world: World, tmp_path: Path) -> None:
    plan = world.plan(tmp_path / "store", detector_bn="reestimate")
    assert plan.statistics is not None
    assert 0 < plan.statistics.seconds < plan.seconds


def test_statistics_that_are_all_that_is_missing_are_planned_without_a_probe(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert world.run(store, stages=["detect"], detector_bn="reestimate").exit_code == 0
    shutil.rmtree(store / "weights")
    told = StringIO()
    plan = world.run(store, stages=["detect"], config=settings(store), dry_run=True, probe=True, told=told).plan
    assert not plan.is_done
    assert due(plan) == {"detect": 0}
    assert "a rough estimate" in told.getvalue()
    assert "bytes to write" not in told.getvalue()


def test_each_codec_has_the_bytes_that_a_plan_with_it_has(world: World, tmp_path: Path) -> None:
    totals = {
        codec: world.plan(tmp_path / "s", probe=False, config=replace(world.config, codec=codec)) for codec in CODECS
    }
    printed = StringIO()
    Console(file=printed, width=80).print(codec_table(totals["f16"]))
    (line,) = [line for line in printed.getvalue().splitlines() if line.startswith("all ")]
    sizes = [float(number) * {"kB": 1, "MB": 1000}[unit] for number, unit in re.findall(r"([\d.]+) (kB|MB)", line)]
    assert sizes == pytest.approx([totals[codec].bytes / 1000 for codec in CODECS], rel=0.01)
    assert "f16 *" in printed.getvalue()


def test_the_whole_plan_fits_into_80_characters(world: World, tmp_path: Path) -> None:
    told = StringIO()
    world.run(tmp_path / "store", dry_run=True, probe=True, stages=["all"], told=told)
    assert max(map(len, told.getvalue().splitlines())) <= 80
    for text in ("measured on", "free ", "clip.tokens", "masks.bits", "with sam"):
        assert text in told.getvalue()


def test_a_store_that_is_up_to_date_has_no_network_to_try(world: World) -> None:
    told = StringIO()
    plan = world.run(world.store, dry_run=True, probe=True, told=told).plan
    assert plan.is_done
    assert plan.notes == ()
    assert "nothing to do" in told.getvalue()
    assert "bytes to write" not in told.getvalue()


def test_the_command_measures_unless_it_is_told_not_to(demo: Path, tmp_path: Path, run) -> None:
    words = ["precompute", "--data", demo / "data", "--dataset", "refcoco+", "--store", tmp_path / "new", "--dry-run"]
    measured, rough = run(*words), run(*words, "--no-probe")
    assert (measured.status, rough.status) == (0, 0)
    assert re.search(r"measured on 16( to \d+)?\s+images", measured.out)
    assert "a rough estimate" in rough.out
    assert not (tmp_path / "new").exists()

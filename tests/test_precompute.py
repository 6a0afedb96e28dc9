"""Photographs in, columns out: incremental, the same bytes after any interruption, nothing half-done."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from weakmcn.cli.precompute import precompute as precompute_command
from weakmcn.pipeline.config import PipelineConfig
from weakmcn.pipeline.precompute import Report, precompute, settings, shards_of
from weakmcn.pipeline.tasks import ShardFailed, ShardTask
from weakmcn.pipeline.work import Worker
from weakmcn.shards.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    InputError,
    StoreError,
    WeakmcnError,
)
from weakmcn.shards.lock import LOCK, only_writer
from weakmcn.shards.store import Store

from .tiny import digests, other_weights, photo, write_data, write_photo, write_weights

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class World:
    """A data set, settings, and the store that an undisturbed run makes of them."""

    config: PipelineConfig
    data: Path
    store: Path

    def run(self, store: Path, *, config: PipelineConfig | None = None, data: Path | None = None, **options) -> Report:
        asked = {"dataset": "refcoco", "splits": ["train", "val"], "executor": "local", "console": QUIET} | options
        return precompute(config or self.config, store=store, data=data or self.data, **asked)

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.store, folder / "store"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(write_weights(root / "weights"), write_data(root / "data"), root / "store")
    report = made.run(made.store)
    assert report.exit_code == 0
    assert report.images == dict.fromkeys(("detect", "dino", "sam", "masks"), 10)
    return made


def families(store: Path) -> dict[str, str]:
    return {stage: family.name for stage, family in Store.open(store).families.items()}


def test_every_photograph_gets_every_column(world: World) -> None:
    store = Store.open(world.store)
    assert store.verify() == []
    store.require(["detect", "dino", "sam", "masks"], store.keys)
    assert len(store.keys) == 10
    columns = store[store.keys[-1]]
    assert columns["detect.s32"].shape == (64, 2, 2)
    assert columns["detect.boxes"].shape == (3, 4, 5)
    assert columns["dino.tokens"].shape == columns["sam.embedding"].shape == (16, 4, 4)
    assert columns["masks.iou"].shape == (3,)


def test_a_second_run_finds_nothing_to_do(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/*")}
    report = world.run(store)
    assert report.plan.is_done
    assert [stage.why for stage in report.plan.stages] == ["up to date"] * 4
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/*")} == before
    assert digests(store) == digests(world.store)


def test_splits_added_one_by_one_end_with_the_same_bytes(world: World, tmp_path: Path) -> None:
    world.run(tmp_path / "store", splits=["train"])
    first = digests(tmp_path / "store")
    report = world.run(tmp_path / "store", splits=["val"])
    assert report.images["detect"] == 2
    assert digests(tmp_path / "store") == digests(world.store)
    tars = [name for name in first if name.endswith(".tar")]
    assert len(tars) == 8
    assert {name: first[name] for name in tars}.items() <= digests(tmp_path / "store").items()


def test_a_shard_that_fails_is_reported_and_stops_no_other(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    folder = store / families(store)["detect"]
    for name in ("000001.tar", "000001.json"):
        (folder / name).unlink()
    (folder / "000001.tar").mkdir()  # nothing can be renamed over it
    for stage in ("dino", "masks"):
        shutil.rmtree(store / families(world.store)[stage])
    report = world.run(store)
    assert report.exit_code == 1
    assert [(failure.stage, failure.shard) for failure in report.failures] == [("detect", 1)]
    assert "IsADirectoryError" in report.failures[0].reason
    assert report.images == {"detect": 0, "dino": 10, "sam": 0, "masks": 6}  # for masks of shard 1 there are no boxes

    (folder / "000001.tar").rmdir()
    assert world.run(store).exit_code == 0
    assert digests(store) == digests(world.store)


def test_a_run_killed_midway_is_gone_on_with_to_the_same_bytes(world: World, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from weakmcn.pipeline.precompute import precompute, settings\n"
        "precompute(settings(Path(sys.argv[1])), store=Path(sys.argv[2]), data=Path(sys.argv[3]),"
        " dataset='refcoco', splits=['train', 'val'], executor='local')"
    )
    store = tmp_path / "store"
    run = subprocess.Popen([sys.executable, "-c", program, world.store, store, world.data], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(store.glob("dino-*/*.tar")) and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not list(store.glob("masks-*/*.tar"))

    assert world.run(store).exit_code == 0
    assert digests(store) == digests(world.store)


def test_another_sam_checkpoint_renews_sam_and_masks_and_nothing_else(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    before, used = digests(store), families(store)
    other = other_weights(world.config, "sam", tmp_path / "other")
    report = world.run(store, config=other)
    assert report.images == {"detect": 0, "dino": 0, "sam": 10, "masks": 10}
    why = {stage.stage.name: stage.why for stage in report.plan.stages}
    assert why["sam"].startswith("stale: checkpoint differs")
    assert "its input sam changed" in why["masks"]

    after, now = digests(store), families(store)
    assert {stage for stage in now if now[stage] != used[stage]} == {"sam", "masks"}
    del before["store.json"], after["store.json"]
    assert before.items() <= after.items()
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {now["sam"], now["masks"]}

    again = world.run(store)  # the first checkpoint's families are still there
    assert again.plan.is_done
    assert families(store) == used


def test_weights_replaced_under_the_same_name_are_noticed(world: World, tmp_path: Path) -> None:
    weights = Path(shutil.copytree(Path(world.config.sam.checkpoint).parent, tmp_path / "weights"))
    config = replace(world.config, sam=replace(world.config.sam, checkpoint=str(weights / "sam.safetensors")))
    store = world.copy(tmp_path)
    world.run(store, config=config)
    assert families(store) == families(world.store)
    shutil.copy(other_weights(config, "sam", tmp_path / "other").sam.checkpoint, weights / "sam.safetensors")
    shutil.copystat(world.config.sam.checkpoint, weights / "sam.safetensors")
    report = world.run(store, config=settings(store))
    assert [stage.stage.name for stage in report.plan.stages if stage.due] == ["sam", "masks"]


def test_sam_alone_leaves_masks_stale_until_they_are_renewed(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    other = other_weights(world.config, "sam", tmp_path / "other")
    report = world.run(store, config=other, stages=["sam"])
    assert report.images == {"sam": 10}
    assert any("masks will be stale" in note for note in report.plan.notes)
    opened = Store.open(store)
    with pytest.raises(StoreError, match=r"made from another sam column.*weakmcn precompute .* --stages masks$"):
        opened.require(["masks"], opened.keys)

    renewed = world.run(store, config=settings(store), stages=["masks"])
    assert renewed.images == {"masks": 10}
    opened = Store.open(store)
    opened.require(["detect", "dino", "sam", "masks"], opened.keys)


def test_a_stage_alone_needs_its_inputs(world: World, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"masks needs detect, which is not computed yet; .*--stages detect,masks"):
        world.run(tmp_path / "store", stages=["masks"])
    store = world.copy(tmp_path / "copy")
    other = other_weights(world.config, "sam", tmp_path / "other")
    with pytest.raises(StoreError, match=r"masks needs sam, which is stale: checkpoint differs"):
        world.run(store, config=other, stages=["masks"])
    assert families(store) == families(world.store)


def test_clip_is_made_when_asked_for_and_kept_up_to_date_from_then_on(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    assert world.run(store, stages=["clip"]).images == {"clip": 10}
    report = world.run(store, config=replace(world.config, detect=replace(world.config.detect, keep=2)))
    assert report.images == {"detect": 10, "dino": 0, "sam": 0, "masks": 10, "clip": 10}
    opened = Store.open(store)
    assert opened[opened.keys[0]]["clip.candidates"].shape == (2, 8)


def test_a_changed_photograph_makes_its_shard_stale_and_nothing_else(world: World, tmp_path: Path) -> None:
    data, store = Path(shutil.copytree(world.data, tmp_path / "data")), world.copy(tmp_path)
    write_photo(photo(data, 6), 58, 70, seed=99)
    report = world.run(store, data=data)
    assert all(stage.due == (1,) for stage in report.plan.stages)
    assert report.plan.stages[0].why == "1 of 3 shards stale: photographs changed"
    fresh = tmp_path / "fresh"
    world.run(fresh, data=data)
    assert digests(store) == digests(fresh) != digests(world.store)


def test_a_photograph_that_changes_after_the_index_is_never_encoded(world: World, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    rows = shards_of(world.store, data)[0]
    write_photo(photo(data, 2), 46, 70, seed=99)
    task = ShardTask(
        stage="dino", shard=0, images=rows, config=world.config, folder=tmp_path / "dino-0a0a0a0a", fingerprint="0" * 64
    )
    outcome = Worker("cpu").run(task)
    assert isinstance(outcome, ShardFailed)
    assert "000000000002.jpg: changed since it was indexed" in outcome.reason
    assert not outcome.may_pass
    assert list((tmp_path / "dino-0a0a0a0a").iterdir()) == []


def test_a_bad_photograph_stops_the_run_before_anything_is_written(world: World, tmp_path: Path) -> None:
    data = Path(shutil.copytree(world.data, tmp_path / "data"))
    photo(data, 3).write_bytes(photo(data, 3).read_bytes()[:-200])
    photo(data, 7).unlink()
    with pytest.raises(ImageError, match=r"2 of 10 photos(.|\n)*000003\.jpg: cut short(.|\n)*000007\.jpg: missing"):
        world.run(tmp_path / "store", data=data)
    assert not (tmp_path / "store").exists()

    report = world.run(tmp_path / "store", data=data, skip_bad=True)
    assert report.exit_code == 3
    assert "2 photographs skipped" in report.summary()
    assert len(Store.open(tmp_path / "store").keys) == 8


def test_a_dry_run_writes_nothing(world: World, tmp_path: Path) -> None:
    report = world.run(tmp_path / "new", dry_run=True)
    assert [stage.images_due for stage in report.plan.stages] == [10] * 4
    assert not (tmp_path / "new").exists()

    store = world.copy(tmp_path)
    (store / families(store)["sam"] / "000002.json").unlink()
    before = digests(store)
    report = world.run(store, dry_run=True, config=replace(world.config, codec="u8"))
    assert report.plan.stages[0].why == "stale: codec f16 -> u8"
    report = world.run(store, dry_run=True)
    assert report.plan.stages[2].why == "1 of 3 shards missing"
    assert report.plan.stages[2].due == (2,)
    assert digests(store) == before


def test_values_that_are_not_finite_are_never_published(world: World, tmp_path: Path) -> None:
    state = load_file(world.config.dino.checkpoint)
    state["norm.bias"][3] = torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    config = replace(world.config, dino=replace(world.config.dino, checkpoint=str(tmp_path / "nan.safetensors")))
    report = world.run(tmp_path / "store", config=config, stages=["dino"])
    assert report.exit_code == 1
    assert len(report.failures) == 3
    assert "image 000000000001, tokens: 16 of 256 values are NaN" in report.failures[0].reason
    assert not list((tmp_path / "store").glob("dino-*/*.tar"))


@pytest.mark.parametrize("stage", ["detect", "dino", "sam"])
def test_unfit_weights_of_any_stage_are_found_before_the_first_one_runs(
    world: World, tmp_path: Path, stage: str
) -> None:
    other = world.config.dino.checkpoint if stage != "dino" else world.config.sam.checkpoint
    section = replace(getattr(world.config, stage), checkpoint=other)
    with pytest.raises(CheckpointError, match=r"(sam|dino)\.safetensors: this is .* was asked for: .* keys missing"):
        world.run(tmp_path / "store", config=replace(world.config, **{stage: section}))
    assert not list((tmp_path / "store").glob("*/*"))
    with pytest.raises(CheckpointError, match="was asked for"):
        world.run(tmp_path / "new", config=replace(world.config, **{stage: section}), dry_run=True)


def test_unfit_weights_of_a_stage_that_is_not_asked_for_stop_nothing(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    config = replace(world.config, clip=replace(world.config.clip, checkpoint=world.config.sam.checkpoint))
    assert world.run(store, config=config).plan.is_done
    with pytest.raises(CheckpointError, match="was asked for"):
        world.run(store, config=config, stages=["clip"])
    assert families(store) == families(world.store)


def test_a_store_on_another_canvas_is_refused(world: World) -> None:
    for dry_run in (False, True):
        with pytest.raises(StoreError, match=f"{world.store} was made for a canvas of 64 pixels, this run wants 96"):
            world.run(world.store, config=replace(world.config, side_px=96), dry_run=dry_run)


def test_a_second_writer_is_told_who_holds_the_store(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    with only_writer(store, "precompute"), pytest.raises(WeakmcnError) as told:
        world.run(store)
    assert f"another precompute (pid {os.getpid()} on " in str(told.value)
    assert told.value.exit_code == 1
    assert not (store / LOCK).exists()


def test_the_lock_of_a_killed_run_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"what": "precompute", "pid": 1, "host": "gone", "since": "yesterday"}')
    with only_writer(tmp_path, "precompute"):
        assert (tmp_path / LOCK).exists()


def test_a_disk_that_is_too_small_is_told_beforehand(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2000, 1000, 1000))
    with pytest.raises(InputError, match=r"kB are to be written, 1 kB are free; make room"):
        world.run(tmp_path / "store")


def test_a_cluster_without_authentication_is_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    told = StringIO()
    with pytest.raises(InputError, match="RAY_AUTH_MODE=token, or say --insecure-ray"):
        world.run(tmp_path / "store", executor="ray", address="head:6379", console=Console(file=told))
    assert "starting Ray …" in told.getvalue()


def test_the_plan_fits_into_80_characters(world: World, tmp_path: Path) -> None:
    told = StringIO()
    world.run(
        tmp_path / "s", dry_run=True, detector_bn="reestimate", stages=["all"], console=Console(file=told, width=80)
    )
    lines = told.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for stage in ("detect-bn", "detect", "dino", "sam", "masks", "clip"):
        (row,) = [line for line in lines if line.startswith(f"{stage} ")]
        assert "not computed yet" in row
        assert re.search(r" (8|10) +(8|10) .* s$", row)


def test_a_folder_of_other_files_is_no_place_for_a_store(world: World, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    before = digests(tmp_path)
    with pytest.raises(StoreError, match=rf"{tmp_path}: no store, but a folder with other files \(first: thesis.tex\)"):
        world.run(tmp_path)
    assert digests(tmp_path) == before
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "lost+found").mkdir()
    assert world.run(tmp_path, stages=["dino"]).exit_code == 0


def test_the_command_that_a_fault_names_mends_it(world: World, tmp_path: Path) -> None:
    store = tmp_path / "a store"
    world.run(store, splits=["train"])
    rows = Store.open(store).references("refcoco").to_pylist()
    val = [row["key"] for row in rows if row["split"] == "val"]

    def mend(keys: list[str], fault: str, **whose: str) -> list[str]:
        opened = Store.open(store)
        with pytest.raises(StoreError, match=fault) as refusal:
            opened.require(["dino", "masks"], keys, **whose)
        assert str(refusal.value).count("weakmcn precompute") == 1
        words = shlex.split(str(refusal.value).partition("make them: weakmcn precompute ")[2])
        assert command(*words, "--executor", "local")[0] == 0
        Store.open(store).require(["dino", "masks"], keys)
        return words

    words = mend(val, "2 of 2 images are not in it", dataset="refcoco", split="val")
    assert words[-1] == "detect,dino,sam,masks"  # what masks are made from has no image of this split either
    (store / families(store)["dino"] / "000001.json").unlink()
    assert mend(Store.open(store).keys, "4 of 10 images are not in it")[-1] == "dino"


def command(*words: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(precompute_command)
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_goes_by_what_the_store_was_made_with(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    words = ["--data", world.data, "--dataset", "refcoco", "--split", "train,val", "--store", store]
    status, output = command(*words)
    assert status == 0
    assert output.endswith(f"{store}: up to date\n")
    other = other_weights(world.config, "sam", tmp_path / "other").sam.checkpoint
    status, output = command(*words, "--checkpoint", f"sam={other}", "--executor", "local")
    assert status == 0
    assert "images encoded: sam 10, masks 10" in output
    assert settings(store).sam.checkpoint == other
    assert "up to date" in command(*words)[1]  # and it remembers that too


def test_the_command_refuses_what_it_cannot_use(world: World, tmp_path: Path) -> None:
    words = ["--data", world.data, "--dataset", "refcoco", "--store", tmp_path / "store"]
    assert command(*words, "--checkpoint", "sam")[0] == 2
    assert command(*words, "--stages", ",")[0] == 2
    with pytest.raises(ConfigError, match="stage 'smasks' is not known"):
        command(*words, "--stages", "smasks")
    with pytest.raises(ConfigError, match="did you mean 'pocket'"):
        command(*words, "--preset", "poket")
    assert not (tmp_path / "store").exists()


def test_a_new_store_takes_the_networks_that_fit_its_photographs(run, demo: Path, tmp_path: Path) -> None:
    photographs = write_data(tmp_path / "photographs", images=3, val=1)
    new = tmp_path / "store"
    assert settings(new, data=demo / "data").name == "pocket"
    assert settings(new, data=photographs).name == "refcoco"
    assert settings(new, data=photographs, preset="sam-b").name == "sam-b"
    assert settings(demo / "store", data=photographs).name == "pocket"  # it is as it was made
    ended = run("precompute", "--data", photographs, "--dataset", "refcoco", "--store", new, "--executor", "local")
    assert (ended.status, new.exists()) == (2, False)
    assert "3 checkpoints are missing: weights/yolov3_coco.pth" in ended.err


def test_the_data_set_is_looked_for_before_the_weights(run, tmp_path: Path) -> None:
    photographs = write_data(tmp_path / "photographs", images=3, val=1)
    for data, dataset, says in (
        (tmp_path / "nowhere", "refcoco", "there is no such folder"),
        (photographs, "refcocog", "no refcocog-umd"),
    ):
        ended = run("precompute", "--data", data, "--dataset", dataset, "--store", tmp_path / "store")
        assert ended.status == 2
        assert says in ended.err

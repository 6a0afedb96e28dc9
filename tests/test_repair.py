"""`store repair` drops what is broken and names the command that makes it again, to the same bytes."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from weakmcn.pipeline.precompute import precompute, settings
from weakmcn.pipeline.stages import STAGES
from weakmcn.shards.errors import DamagedShardError, StoreError, WeakmcnError
from weakmcn.shards.layout import remember_source
from weakmcn.shards.lock import only_writer
from weakmcn.shards.mend import NEEDS, fact, refill, with_inputs
from weakmcn.shards.repair import Repaired, repair
from weakmcn.shards.store import Store, gc

from .tiny import digests, write_data, write_weights

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class World:
    """A store of three shards a stage, with re-estimated statistics; its paths need quoting."""

    data: Path
    store: Path

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.store, folder / "my store"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(write_data(root / "my data"), root / "store")
    precompute(
        write_weights(root / "weights"),
        store=made.store,
        data=made.data,
        dataset="refcoco",
        splits=["train", "val"],
        detector_bn="reestimate",
        executor="local",
        console=QUIET,
    )
    return made


def folder(store: Path, stage: str) -> Path:
    (found,) = store.glob(f"{stage}-*")
    return found


def statistics(store: Path) -> Path:
    (found,) = store.glob("weights/*.safetensors")
    return found


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.with_suffix(".json").unlink()
    path.mkdir()


def other_shard(path: Path) -> None:
    """The shard before stands under this one's name."""
    before = path.with_name("000001.tar")
    shutil.copy(before, path)
    shutil.copy(before.with_suffix(".json"), path.with_suffix(".json"))


HARMS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "flipped bit": ("dino-*/000001.tar", lambda path: flip(path, 5000), "fails its checksum|another SHA-256"),
    "cut short": ("sam-*/000000.tar", cut, "bytes, its sidecar says"),
    "tar gone": ("masks-*/000001.tar", Path.unlink, "is missing"),
    "sidecar gone": ("detect-*/000002.json", Path.unlink, "has no sidecar"),
    "sidecar flipped": ("masks-*/000000.json", lambda path: flip(path, 30), "not a valid sidecar"),
    "folder instead": ("detect-*/000001.tar", folder_instead, "is a folder, where a shard should be"),
    "another shard": ("dino-*/000002.tar", other_shard, "it says it is shard 1"),
    "foreign file": ("sam-*/stage.json", lambda path: shutil.copy(path, path.with_name("n.txt")), "no file of a store"),
    "dead writer": ("sam-*/stage.json", lambda path: shutil.copy(path, path.with_name(".tmp-0-x")), "was killed"),
    "statistics flipped": ("weights/*.safetensors", lambda path: flip(path, -1), "has another SHA-256 than its record"),
    "record flipped": ("weights/*.json", lambda path: path.write_text("{"), "is damaged"),
    "list flipped": ("weights/*.parquet", lambda path: flip(path, 60), "is damaged"),
}
"""Name -> the file it befalls, how, and what repair says of it."""


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_broken_is_named_and_dropped_and_nothing_else(world: World, tmp_path: Path, harm: str) -> None:
    pattern, befall, says = HARMS[harm]
    store = world.copy(tmp_path)
    (file,) = store.glob(pattern)
    befall(file)
    planned, before = repair(store, dry_run=True), digests(store)
    assert re.search(says, planned.damages[0].fault)
    assert planned.damages[0].fault.startswith(str(file.parent))
    done = repair(store)
    assert (done.damages, done.bytes) == (planned.damages, planned.bytes)
    gone = {path.relative_to(store).as_posix() for damage in done.damages for path in damage.files}
    after = digests(store)
    assert {name for name in before if name not in after} == gone & before.keys()
    kept = {name for name in before if name not in gone and not name.endswith("index.parquet")}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert repair(store) == Repaired(damages=(), bytes=0, commands=())


def test_the_command_that_repair_names_ends_with_the_same_bytes(world: World, tmp_path: Path, run) -> None:
    store = world.copy(tmp_path)
    for pattern, befall, _ in HARMS.values():
        (file,) = store.glob(pattern)
        befall(file)
    assert run("store", "verify", store).status == 1
    ended = run("store", "repair", store)
    assert ended.status == 0
    (command,) = re.findall(r"^To make it again: weakmcn (.*)$", ended.out, re.MULTILINE)
    words = shlex.split(command)
    assert words[words.index("--data") + 1] == str(world.data)
    assert words[words.index("--split") + 1] == "train,val"
    assert words[-2:] == ["--stages", "detect,dino,sam,masks"]
    ended = run(*words, "--executor", "local")
    assert ended.status == 0, ended.err
    assert run("store", "verify", store).status == 0
    assert run("store", "repair", store).out == f"{store}: nothing is broken.\n"
    assert digests(store) == digests(world.store)


def test_a_dry_run_says_what_would_be_dropped_and_changes_nothing(world: World, tmp_path: Path, run) -> None:
    store = world.copy(tmp_path)
    cut(folder(store, "sam") / "000000.tar")
    before = digests(store)
    ended = run("store", "repair", store, "--dry-run")
    assert ended.status == 0
    assert re.search(r"1 fault, \d+\.\d kB would be dropped\.", ended.out)
    assert re.search(r"To make it again: weakmcn precompute --data '.*my data' .* --stages sam$", ended.out, re.M)
    assert digests(store) == before


def test_lost_references_come_back_with_their_data_set(world: World, tmp_path: Path, run) -> None:
    store = world.copy(tmp_path)
    flip(store / "refs-refcoco.parquet", 100)
    assert any("refs-refcoco.parquet is damaged" in problem for problem in Store.open(store).verify(deep=False))
    (command,) = repair(store).commands
    assert not (store / "refs-refcoco.parquet").exists()
    assert run(*shlex.split(command)[1:], "--executor", "local").status == 0
    assert digests(store) == digests(world.store)


def test_a_family_whose_settings_are_lost_keeps_its_shards_for_who_names_them_again(
    world: World, tmp_path: Path, run
) -> None:
    store = world.copy(tmp_path)
    config = settings(world.store)
    (folder(store, "sam") / "stage.json").write_text("{}")
    done = repair(store)
    assert "its shards stay" in done.damages[0].fault
    assert not (folder(store, "sam") / "stage.json").exists()
    assert len(list(folder(store, "sam").glob("*.tar"))) == 3
    report = precompute(
        config, store=store, data=world.data, dataset="refcoco", splits=["train"], executor="local", console=QUIET
    )
    assert set(report.images.values()) == {0}
    assert digests(store) == digests(world.store)


def test_what_is_not_made_from_the_store_is_left_and_told(world: World, tmp_path: Path) -> None:
    for name, says in (("images.parquet", "put a copy of it back, or remove it"), ("store.json", "remove it and run")):
        store = world.copy(tmp_path / name)
        file = store / name
        file.write_bytes(file.read_bytes()[:-20])
        before = digests(store)
        with pytest.raises(DamagedShardError, match=rf"{name} is damaged .*{says}.*weakmcn precompute --data"):
            repair(store)
        assert digests(store) == before
    with pytest.raises(StoreError, match="is not a store"):
        repair(tmp_path / "nothing")


def test_a_store_json_that_is_removed_comes_back_with_the_settings(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    config = settings(world.store)
    (store / "store.json").unlink()
    report = precompute(
        config,
        store=store,
        data=world.data,
        dataset="refcoco",
        splits=["train", "val"],
        executor="local",
        console=QUIET,
    )
    assert set(report.images.values()) == {0}
    assert digests(store) == digests(world.store)


def test_a_run_that_holds_the_store_is_not_disturbed(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    cut(folder(store, "sam") / "000000.tar")
    before = digests(store)
    with only_writer(store, "weakmcn precompute"):
        with pytest.raises(WeakmcnError, match=rf"weakmcn precompute \(pid {os.getpid()}"):
            repair(store)
        assert len(repair(store, dry_run=True).damages) == 1
    assert digests(store) == before


# The command that fills a store.


def test_every_word_that_needs_it_is_quoted_and_the_data_is_named_as_it_was_given(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = world.copy(tmp_path)
    monkeypatch.chdir(world.data.parent)
    remember_source(store, "refcoco", Path("my data"), ["testA"])
    assert json.loads((store / "store.json").read_text())["sources"]["refcoco"]["splits"] == ["train", "val", "testA"]
    assert refill(store, stages=["sam"]) == (
        f"weakmcn precompute --data 'my data' --dataset refcoco --split train,val,testA --store '{store}' --stages sam"
    )
    monkeypatch.chdir(tmp_path)
    assert f"--data '{world.data}'" in refill(store)
    assert "--dataset refcoco+ --split val " in refill(store, dataset="refcoco+", splits=["val"])


def test_without_a_memory_the_words_to_fill_in_are_named(tmp_path: Path) -> None:
    assert (
        refill(tmp_path / "no")
        == f"weakmcn precompute --data DATA --dataset DATASET --split train --store {tmp_path}/no"
    )


def test_the_stages_that_are_made_from_others_are_those_of_the_pipeline() -> None:
    assert {stage.name: stage.needs for stage in STAGES if stage.needs} == NEEDS
    assert with_inputs(["clip"]) == ["detect", "sam", "masks", "clip"]


def test_a_fault_is_told_without_its_mend() -> None:
    assert fact("a.json is missing; make it again: weakmcn precompute") == "a.json is missing"
    assert fact("a.json is missing.") == "a.json is missing"


@pytest.mark.parametrize(
    "wrong", ["text", {"refcoco": 1}, {"refcoco": {"data": 1, "data_absolute": "/", "splits": []}}]
)
def test_a_memory_that_cannot_be_true_is_no_memory(world: World, tmp_path: Path, wrong: object) -> None:
    store = world.copy(tmp_path)
    record = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(record | {"sources": wrong}))
    assert "--data DATA --dataset DATASET" in refill(store)
    remember_source(store, "refcoco", world.data, ["train"])
    assert f"--data '{world.data}' --dataset refcoco --split train " in refill(store)


def test_a_store_cannot_have_files_elsewhere_dropped(world: World, tmp_path: Path) -> None:
    store = world.copy(tmp_path)
    victim = tmp_path / "statistics-00000000.safetensors"
    victim.write_bytes(b"mine")
    path = folder(store, "detect") / "stage.json"
    content = json.loads(path.read_text())
    content["recorded"]["statistics_file"] = f"../{victim.name}"
    path.write_text(json.dumps(content))
    repair(store)
    gc(store)
    assert victim.exists()

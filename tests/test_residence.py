"""Columns in files, in memory or on a device make the same batches, and which it is follows from sizes."""

import re
from pathlib import Path

import pytest
import torch
from weakmcn.model import residence
from weakmcn.model.loader import Loader
from weakmcn.model.residence import Asked, DeviceFeatures, RamFeatures, choose
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards.errors import ConfigError
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import Store

from .test_loader import FIELDS, KEYS, TOKENS
from .worlds import DATASET, RECIPE, TINY, key_of, make_store

HELD = [key_of(image) for image in (0, 1, 3, 0)]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(make_store(tmp_path / "store", train=4, val=1))


@pytest.mark.parametrize("kind", [RamFeatures, DeviceFeatures])
@pytest.mark.parametrize("codec", ["f16", "bf16", "u8", "f32"])
def test_held_columns_make_the_batches_that_the_files_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, kind: type
) -> None:
    monkeypatch.setattr(residence, "CHUNK", 2)  # of three images: a whole one and a rest
    opened = Store.open(make_store(tmp_path / "store", train=4, val=1, codec=codec))
    files = Loader(opened, FIELDS)
    reader = files.reader
    held = kind(reader, HELD, "cpu") if kind is DeviceFeatures else kind(reader, HELD)
    for reuse in (False, True):
        loader = Loader(opened, FIELDS, reuse=reuse, features=held)
        for count in (1, 3, 2, 3, 3, 3):
            keys, tokens = KEYS[-count:], TOKENS[-count:]
            one, other = loader.batch(keys, tokens), files.batch(keys, tokens)
            for field in FIELDS:
                assert torch.equal(getattr(one, field), getattr(other, field)), field
        assert loader.batch(KEYS, TOKENS, fields=("cells", "boxes", "sam")).masks is None


def test_once_held_the_files_are_not_read_again(store: Store) -> None:
    reader = Loader(store, FIELDS).reader
    features = [RamFeatures(reader, HELD), DeviceFeatures(reader, HELD, "cpu")]
    wanted = Loader(store, FIELDS).batch(KEYS, TOKENS)
    loaders = [Loader(store, FIELDS, features=each) for each in features]
    for tar in store.path.glob("*/*.tar"):
        tar.write_bytes(b"")
    for loader in loaders:
        assert torch.equal(loader.batch(KEYS, TOKENS).boxes, wanted.boxes)


def machine(monkeypatch: pytest.MonkeyPatch, *, memory: int | None, gpu: int | None) -> None:
    """Have this free memory and a GPU with that."""
    monkeypatch.setattr(residence, "available_bytes", lambda: memory)
    monkeypatch.setattr(residence, "_free_on", lambda device: gpu if device.type == "cuda" else None)


def sizes(store: Store) -> tuple[Reader, int, int]:
    """A reader; the bytes of the columns of HELD in the tars, and with unpacked masks."""
    reader = Loader(store, FIELDS).reader
    rows = reader.gather(HELD[:3])
    return reader, reader.stored_bytes(HELD), sum(array.nbytes for array in rows.values())


def test_auto_takes_the_gpu_then_memory_then_the_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, stored, unpacked = sizes(store)
    third = -(-unpacked * 3 // 2)

    def place(memory: int | None, gpu: int | None, *, ranks: int = 1) -> str:
        machine(monkeypatch, memory=memory, gpu=gpu)
        return choose("auto", reader, HELD, CPU if gpu is None else GPU, ranks=ranks).place

    assert place(10**12, third) == "gpu"
    assert place(10**12, third - 2) == "ram"
    assert place(2 * stored, None) == "ram"
    assert place(2 * stored - 1, None) == "disk"
    assert place(2 * stored, None, ranks=2) == "disk"
    assert place(None, None) == "disk"


@pytest.mark.parametrize(
    ("asked", "memory", "gpu", "told"),
    [
        ("auto", 10**12, 10**12, r"loaded onto the GPU once \(1,000\.0 GB of its memory are free\)"),
        ("auto", 10**12, None, r"loaded into memory once \(1,000\.0 GB are free\)"),
        (
            "auto",
            1000,
            None,
            r"read from the store at every step \(0\.0 MB of memory are free; through the page cache: ",
        ),
        ("ram", 10**12, None, r"loaded into memory once \(as asked\)"),
        ("gpu", 0, 10**12, r"loaded onto the GPU once \(as asked\)"),
        ("disk", 10**12, 10**12, r"read from the store at every step \(as asked; through the page cache: "),
    ],
)
def test_what_was_chosen_is_told_with_its_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch, asked: Asked, memory: int, gpu: int | None, told: str
) -> None:
    machine(monkeypatch, memory=memory, gpu=gpu)
    line = str(choose(asked, sizes(store)[0], HELD, CPU if gpu is None else GPU))
    assert re.search(rf"^Features: [\d.]+ MB of 3 images, {told}", line), line


def test_what_does_not_fit_where_it_is_asked_to_be_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, stored, unpacked = sizes(store)
    machine(monkeypatch, memory=stored, gpu=unpacked)
    with pytest.raises(ConfigError, match=r"features=ram wants .* of memory are free; choose disk or auto"):
        choose("ram", reader, HELD, CPU)
    with pytest.raises(
        ConfigError, match=r"features=gpu wants .* of cuda:0's memory are free; choose ram, disk or auto"
    ):
        choose("gpu", reader, HELD, GPU)
    with pytest.raises(ConfigError, match="features=gpu, but this run is on cpu; choose ram, disk or auto"):
        choose("gpu", reader, HELD, CPU)


def test_a_run_that_asks_for_what_there_is_not_starts_nothing(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", train=12, val=1)
    settings = TrainSettings(
        store=path, dataset=DATASET, out=tmp_path / "run", model=TINY, train=RECIPE, features="gpu", device="cpu"
    )
    with pytest.raises(ConfigError, match="features=gpu"):
        train(settings)
    assert not settings.out.exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("place", ["disk", "ram", "gpu"])
def test_batches_on_a_gpu_are_those_on_the_host(store: Store, place: Asked) -> None:
    loader, host = Loader(store, FIELDS, device=GPU, reuse=True), Loader(store, FIELDS)
    loader.features = choose(place, loader.reader, HELD, GPU).features(loader.reader, HELD, GPU)
    for _ in range(6):
        one, other = loader.batch(KEYS, TOKENS), host.batch(KEYS, TOKENS)
        for field in FIELDS:
            assert torch.equal(getattr(one, field).cpu(), getattr(other, field))

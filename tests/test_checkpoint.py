"""A checkpoint is what was saved or it is refused; there is always a sound one."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weakmcn.model import checkpoint
from weakmcn.model.checkpoint import Position
from weakmcn.shards.errors import CheckpointError

TENSORS = {
    "net/a": torch.arange(6.0).reshape(2, 3),
    "adam/step/a": torch.tensor(3.0),
    "rng/cpu": torch.arange(5).byte(),
}


def position(step: int, batch: int = 0, epoch: int = 0) -> Position:
    return Position(epoch=epoch, batch=batch, step=step, metrics_bytes=10 * step, window_steps=0)


def kept(folder: Path) -> list[int]:
    steps = [int(path.stem) for path in sorted(folder.glob("*.safetensors"))]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{step:08d}{suffix}" for step in steps for suffix in (".json", ".safetensors")
    )
    return steps


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, TENSORS, position(7, batch=3, epoch=1))
    found, faults = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.path, faults) == (saved, [])
    assert found.position == position(7, batch=3, epoch=1)
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].dtype == tensor.dtype


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    one = checkpoint.save(tmp_path / "one", TENSORS, position(1))
    two = checkpoint.save(tmp_path / "two", dict(reversed(TENSORS.items())), position(1))
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".json").read_bytes() == two.with_suffix(".json").read_bytes()


def test_two_are_kept_and_the_end_of_an_epoch_is_kept_longer(tmp_path: Path) -> None:
    history = []
    for step, batch in [(2, 2), (4, 4), (5, 0), (7, 2), (9, 4), (10, 0), (15, 0)]:
        checkpoint.save(tmp_path, TENSORS, position(step, batch))
        history.append(kept(tmp_path))
    assert history == [[2], [2, 4], [5], [5, 7], [5, 9], [5, 10], [10, 15]]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one checkpoint, by name."""
    folder = tmp_path_factory.mktemp("pristine")
    checkpoint.save(folder, TENSORS, position(1))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(
    place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), suffix=st.sampled_from([".json", ".safetensors"])
)
def test_with_a_flipped_bit_it_is_refused_or_still_the_same(
    pristine: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    for name, content in pristine.items():
        (folder / name).write_bytes(content)
    damaged = folder / f"00000001{suffix}"
    data = bytearray(damaged.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    damaged.write_bytes(data)
    try:
        found = checkpoint.read(folder / "00000001.safetensors")
    except CheckpointError:
        return
    assert suffix == ".json"  # in the weights every bit counts
    assert found.position == position(1)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("length", [0, 1, 100])
def test_with_the_newest_cut_short_the_older_one_is_used_and_that_is_told(
    tmp_path: Path, suffix: str, length: int
) -> None:
    checkpoint.save(tmp_path, TENSORS, position(5))
    newest = checkpoint.save(tmp_path, TENSORS, position(7, batch=2)).with_suffix(suffix)
    newest.write_bytes(newest.read_bytes()[:length])
    found, (fault,) = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.position.step == 5
    assert "00000007" in fault


def test_what_a_kill_leaves_behind_is_no_checkpoint_and_goes_with_the_next_save(tmp_path: Path) -> None:
    weights = checkpoint.save(tmp_path, TENSORS, position(4, batch=1))
    record = weights.with_suffix(".json")
    record.rename(tmp_path / f".tmp-0123456789ab-{record.name}")  # killed before the record had its name
    assert checkpoint.newest(tmp_path) == (None, [])
    checkpoint.save(tmp_path, TENSORS, position(5, batch=2))
    (tmp_path / f".tmp-0123456789ab-{record.name}").unlink()
    assert kept(tmp_path) == [5]


def test_a_record_beside_the_weights_of_another_step_is_refused(tmp_path: Path) -> None:
    one = checkpoint.save(tmp_path / "one", TENSORS, position(5))
    record = one.with_suffix(".json")
    record.write_text(record.read_text().replace('"step": 5', '"step": 6'))
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        checkpoint.read(one)


def test_a_save_that_fails_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, TENSORS, position(5))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        checkpoint.save(tmp_path, TENSORS, position(9))
    assert kept(tmp_path) == [5]


def test_what_a_resume_passed_over_is_gone_after_the_next_save(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, TENSORS, position(5))
    damaged = checkpoint.save(tmp_path, TENSORS, position(10))
    damaged.write_bytes(b"")
    checkpoint.save(tmp_path, TENSORS, position(7, batch=2))
    assert kept(tmp_path) == [5, 7]


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"net/weight": torch.ones(1, 2)}, position(1))
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    with pytest.raises(CheckpointError, match="bias"):
        checkpoint.load_weights(torch.nn.Linear(2, 1), saved, ema=False)


def test_the_average_takes_the_place_of_what_it_follows(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 1)
    raw = {f"net/{name}": tensor for name, tensor in net.state_dict().items()}
    checkpoint.save(tmp_path, raw | {"ema/weight": torch.full((1, 2), 7.0)}, position(1))
    saved, _ = checkpoint.newest(tmp_path)
    assert saved is not None
    bias = net.bias.detach().clone()
    checkpoint.load_weights(net, saved, ema=True)
    assert net.weight.tolist() == [[7, 7]]
    assert torch.equal(net.bias, bias)

"""What is timed from file to answer is what `precompute` computes, and the figures are those of the clock."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from weakmcn.pipeline.images import Photo
from weakmcn.pipeline.precompute import precompute
from weakmcn.pipeline.speed import READ, Columns, Networks, Speed
from weakmcn.shards.store import Store

from .tiny import photo, write_data, write_weights

STAGES = ("detect", "dino", "sam", "masks")


@pytest.mark.parametrize("readers", [0, 2])
def test_photographs_go_through_the_networks_one_batch_after_the_other(tmp_path: Path, readers: int) -> None:
    config = replace(write_weights(tmp_path / "weights"), codec="f32")
    data = write_data(tmp_path / "data", images=7)
    seen: list[Columns] = []

    def keep(photos: Sequence[Photo], columns: Sequence[Columns]) -> None:
        assert len(photos) == len(columns) == 3
        time.sleep(0.05)
        seen.extend(columns)

    files = [photo(data, number) for number in range(1, 8)]
    speed = Networks(config, STAGES, "cpu").measured(files, batch=3, last={"answers": keep}, readers=readers)

    assert list(speed.steps) == [READ, *STAGES, "answers"]
    assert all(len(seconds) == 1 for seconds in speed.steps.values())  # the first is not counted, the last not full
    assert speed.step_s("answers") >= 0.05 / 3
    assert speed.images_per_s == 3 / speed.wall_s
    assert speed.latency_s(0.5) <= speed.wall_s

    precompute(
        config,
        store=tmp_path / "store",
        data=data,
        dataset="refcoco",
        splits=["train", "val"],
        executor="local",
        console=Console(quiet=True),
    )
    store = Store.open(tmp_path / "store")
    assert len(seen) == 6
    for key, columns in zip(store.keys[:3], seen[:3], strict=True):  # the same batch there: four photographs a shard
        stored = store[key]
        assert stored.keys() == columns.keys()
        for name, value in columns.items():
            np.testing.assert_array_equal(stored[name], value.astype(stored[name].dtype), err_msg=name)


def test_latency_is_of_whole_batches_and_a_step_is_told_an_image() -> None:
    speed = Speed(batch=2, steps={READ: (1.0, 1.0, 3.0), "detect": (2.0, 4.0, 5.0)}, wall_s=16.0)
    assert speed.latency_s(0.5) == 5.0
    assert speed.latency_s(1.0) == 8.0
    assert speed.step_s("detect") == 2.0
    assert speed.images_per_s == 6 / 16

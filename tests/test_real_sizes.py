"""SAM ViT-B at 1024 pixels: a photograph through `precompute`, in the memory of a small machine.

A Ray worker takes it; weights are random. Eight photographs by two workers, ViT-L and H, and the time of each:
`just bench real_sizes`. The paper's networks at their sizes are in test_cached_online.py.
"""

from pathlib import Path

import numpy as np
import pytest
from weakmcn.shards.reader import Reader

from . import paper, segmenters
from .tiny import write_data

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

PHOTOS = 1
WORKER_GIB, ALL_GIB = 3.0, 4.0


def test_sam_vit_b_segments_a_photograph_within_the_memory_of_a_small_machine(tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=PHOTOS, val=0, size=paper.photo_size)
    config = segmenters.segmenter("b", tmp_path / "weights", images_per_shard=PHOTOS)
    with segmenters.watched() as memory:
        store = segmenters.run(config, tmp_path, ["detect", "sam", "masks"], split="train", workers=1)
    assert memory.largest < WORKER_GIB
    assert memory.together < ALL_GIB

    assert len(store.keys) == PHOTOS
    columns = Reader(store, ["sam.embedding", "masks.bits", "masks.iou"]).gather(store.keys)
    assert {name: values.shape for name, values in columns.items()} == {
        "sam.embedding": (PHOTOS, 256, 26, 26),
        "masks.bits": (PHOTOS, 17, 416, 52),
        "masks.iou": (PHOTOS, 17),
    }
    maps = columns["sam.embedding"].astype(np.float32)
    assert maps.std(axis=(2, 3)).mean() > 0.1 * maps.std()  # says something else elsewhere
    areas = np.unpackbits(columns["masks.bits"], axis=-1).mean(axis=(2, 3))  # [PHOTOS, K]
    assert 0.05 < areas.min() < areas.max() < 0.95
    assert (areas.std(axis=1) > 0).all()  # each box has its own mask

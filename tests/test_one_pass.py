"""SAM looks at a photograph once where stages `sam` and `masks` are both due, and the store is the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from weakmcn.pipeline.config import PipelineConfig, preset
from weakmcn.pipeline.encoders.sam import SamModel
from weakmcn.pipeline.precompute import Report, precompute
from weakmcn.pipeline.stages import shares_pass, stage_named
from weakmcn.shards import faults
from weakmcn.shards.store import Store

from .tiny import IMAGES, digests, write_data, write_weights

BATCHES = 5
"""Encoder batches of the ten photographs: two in each full shard of four, one in the last of two."""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Keys of the photographs of every batch that SAM's image encoder is given."""
    seen: list[list[str]] = []
    embed = SamModel.embed

    def counted(self, photos):
        seen.append([photo.key for photo in photos])
        return embed(self, photos)

    monkeypatch.setattr(SamModel, "embed", counted)
    return seen


@pytest.fixture
def config(tmp_path: Path) -> Iterator[PipelineConfig]:
    write_data(tmp_path / "data")
    yield write_weights(tmp_path / "weights")
    faults.arm("")


def run(config: PipelineConfig, root: Path, store: str, *stages: str, **options) -> Report:
    return precompute(
        config,
        store=root / store,
        data=root / "data",
        dataset="refcoco",
        splits=["train", "val"],
        stages=stages or None,
        executor="local",
        console=Console(quiet=True),
        **options,
    )


def test_one_pass_makes_the_bytes_that_two_make(config: PipelineConfig, tmp_path: Path, looks: list[list[str]]) -> None:
    together = run(config, tmp_path, "together")
    assert len(looks) == BATCHES
    assert together.exit_code == 0
    assert together.images == dict.fromkeys(("detect", "dino", "sam", "masks"), IMAGES)

    apart = [run(config, tmp_path, "apart", *stages) for stages in (("detect", "dino"), ("sam",), ("masks",))]
    assert len(looks) == 3 * BATCHES
    assert together.bytes == sum(report.bytes for report in apart)
    assert digests(tmp_path / "together") == digests(tmp_path / "apart")


def test_only_what_is_due_in_both_is_made_in_one_pass(
    config: PipelineConfig, tmp_path: Path, looks: list[list[str]]
) -> None:
    run(config, tmp_path, "store")
    whole = digests(tmp_path / "store")
    families = {family.stage: family.folder for family in Store.open(tmp_path / "store").families.values()}
    for stage, shard in (("sam", 0), ("masks", 0), ("masks", 1)):
        (families[stage] / f"{shard:06d}.json").unlink()
    looks.clear()
    report = run(config, tmp_path, "store")
    assert report.images == {"detect": 0, "dino": 0, "sam": 4, "masks": 8}
    assert len(looks) == 2 + 2
    assert digests(tmp_path / "store") == whole


def test_a_pass_that_fails_is_made_again_for_each_stage_on_its_own(
    config: PipelineConfig, tmp_path: Path, looks: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tmp_path / "expected"
    run(config, tmp_path, expected.name)
    looks.clear()
    draw, failures = SamModel.masks, [True]

    def fails_once(self, *prompt):
        if failures:
            failures.pop()
            raise RuntimeError("the decoder failed")
        return draw(self, *prompt)

    monkeypatch.setattr(SamModel, "masks", fails_once)
    report = run(config, tmp_path, "store")
    assert report.exit_code == 0
    assert report.images["masks"] == IMAGES
    assert len(looks) == 1 + 2 + 3 + 2  # failed; sam of shard 0; both of shards 1 and 2; masks of shard 0
    assert digests(tmp_path / "store") == digests(expected)


def test_a_photograph_that_the_detector_left_out_is_left_out_of_the_masks_alone(
    config: PipelineConfig, tmp_path: Path
) -> None:
    faults.arm(f"raise@encode:{6:012d}")
    run(config, tmp_path, "store", "detect", skip_bad=True)
    faults.arm("")
    report = run(config, tmp_path, "store", "detect", "sam", "masks", skip_bad=True)
    store = Store.open(tmp_path / "store")
    assert report.images == {"detect": 0, "sam": IMAGES, "masks": IMAGES - 1}
    assert {stage: list(store.skipped(stage)) for stage in ("sam", "masks")} == {"sam": [], "masks": [f"{6:012d}"]}


def test_masks_that_start_from_the_stored_embedding_have_a_pass_of_their_own() -> None:
    masks = stage_named("masks")
    assert shares_pass(masks, preset("sam-b"))
    assert not shares_pass(masks, preset("refcoco"))
    assert not shares_pass(stage_named("clip"), preset("sam-b"))

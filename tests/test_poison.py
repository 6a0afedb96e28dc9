"""An image that makes workers crash, hang or raise is named and left out, or fails its shard; all others are made."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from weakmcn.pipeline.config import PipelineConfig
from weakmcn.pipeline.precompute import Report, precompute
from weakmcn.shards import faults
from weakmcn.shards.repair import repair
from weakmcn.shards.store import Store

from .tiny import IMAGES, digests, write_data, write_weights


@pytest.fixture(autouse=True)
def harmless_afterwards() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    return write_weights(tmp_path / "weights")


def run(config: PipelineConfig, data: Path, store: Path, *stages: str, executor: str = "local", **options) -> Report:
    return precompute(
        config,
        store=store,
        data=data,
        dataset="refcoco",
        splits=["train", "val"],
        stages=stages,
        executor=executor,
        console=Console(quiet=True),
        **options,
    )


def key(number: int) -> str:
    return f"{number:012d}"


def test_an_image_that_always_raises_is_left_out_of_the_stage_and_of_those_that_read_it(
    config: PipelineConfig, data: Path, tmp_path: Path
) -> None:
    faults.arm(f"raise@encode:{key(6)}")
    report = run(config, data, tmp_path / "store", "detect", "sam", "masks", skip_bad=True)
    assert report.exit_code == 3
    assert not report.failures
    assert report.left_out.keys() == {key(6)}
    assert "WEAKMCN_FAULT asked for raise@encode" in report.left_out[key(6)]

    store = Store.open(tmp_path / "store")
    assert all(list(store.skipped(stage)) == [key(6)] for stage in ("detect", "sam", "masks"))
    assert store.skipped("masks")[key(6)].startswith("detect skipped it: ")
    assert store.verify() == []

    faults.arm("")
    again = run(config, data, tmp_path / "store", "detect", "sam", "masks", skip_bad=True)
    assert again.exit_code == 3, "what is left out is told by every later run"
    assert again.plan.is_done

    assert len(repair(tmp_path / "store", skipped=True).damages) == 3
    assert run(config, data, tmp_path / "store", "detect", "sam", "masks").exit_code == 0
    run(config, data, tmp_path / "undisturbed", "detect", "sam", "masks")
    assert digests(tmp_path / "store") == digests(tmp_path / "undisturbed")


def test_it_fails_its_shard_alone_where_nothing_may_be_left_out(
    config: PipelineConfig, data: Path, tmp_path: Path
) -> None:
    faults.arm(f"raise@encode:{key(6)}")
    report = run(config, data, tmp_path / "store", "dino")
    assert report.exit_code == 1
    (failure,) = report.failures
    assert failure.shard == 1
    assert failure.reason.startswith(f"image {key(6)}: ")
    assert failure.reason.endswith("mend it, or leave such images out with --skip-bad")

    faults.arm("")
    run(config, data, tmp_path / "store", "dino")
    run(config, data, tmp_path / "undisturbed", "dino")
    assert digests(tmp_path / "store") == digests(tmp_path / "undisturbed")


def test_a_shard_of_nothing_but_an_image_at_fault_is_left_empty(config: PipelineConfig, tmp_path: Path) -> None:
    faults.arm(f"raise@encode:{key(9)}")
    report = run(config, write_data(tmp_path / "nine", images=9), tmp_path / "store", "dino", skip_bad=True)
    assert report.left_out.keys() == {key(9)}
    store = Store.open(tmp_path / "store")
    assert store.verify() == []
    assert not store.families["dino"].survey.shards[2].images


def test_a_machine_that_fails_everywhere_leaves_nothing_out(config: PipelineConfig, data: Path, tmp_path: Path) -> None:
    faults.arm("raise@encode")
    report = run(config, data, tmp_path / "store", "dino", skip_bad=True)
    assert report.exit_code == 1
    assert {failure.shard for failure in report.failures} == {0, 1, 2}
    assert not report.left_out


@pytest.mark.ray
def test_workers_that_crash_and_workers_that_hang_end_in_bounded_time_and_cost_one_image_each(
    config: PipelineConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(faults.VARIABLE, f"segv@encode:{key(2)},hang@image:{key(7)}")
    report = run(config, data, tmp_path / "store", "detect", executor="ray", skip_bad=True, stall_s=8)
    monkeypatch.delenv(faults.VARIABLE)
    assert not report.failures
    assert report.exit_code == 3
    assert report.left_out.keys() == {key(2), key(7)}
    assert "its worker died" in report.left_out[key(2)]
    assert "its worker took no step for 8 s" in report.left_out[key(7)]

    store = Store.open(tmp_path / "store")
    assert store.verify() == []
    assert sum(len(shard.images) for shard in store.families["detect"].survey.shards.values()) == IMAGES - 2
    assert not list((tmp_path / "store").rglob(".tmp-*"))

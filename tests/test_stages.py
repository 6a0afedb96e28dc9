"""What a column's bytes depend on: its fingerprint changes with that, and with nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from weakmcn.pipeline.config import PipelineConfig, preset
from weakmcn.pipeline.estimate import bytes_an_image, in_bytes, in_words, seconds_an_image
from weakmcn.pipeline.remembered import config_of, configured
from weakmcn.pipeline.stages import (
    anchored,
    chosen_stages,
    differences,
    recipes,
    recorded,
    stage_named,
    with_inputs,
)
from weakmcn.shards.errors import CheckpointError, ConfigError

from .tiny import other_weights, write_weights

SHIPPED = chosen_stages(["all"])
"""All stages whose networks come with the program."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PipelineConfig:
    return write_weights(tmp_path_factory.mktemp("weights"))


def fingerprints(config: PipelineConfig) -> dict[str, str]:
    return {name: recipe.fingerprint for name, recipe in recipes(config, SHIPPED).items()}


def changed_by(config: PipelineConfig, other: PipelineConfig) -> set[str]:
    before, after = fingerprints(config), fingerprints(other)
    return {name for name in before if before[name] != after[name]}


def with_section(config: PipelineConfig, stage: str, **values: object) -> PipelineConfig:
    return replace(config, **{stage: replace(getattr(config, stage), **values)})


def test_every_stage_stands_below_all_that_it_needs() -> None:
    seen: set[str] = set()
    for stage in SHIPPED:
        assert seen.issuperset(stage.needs)
        assert {column.partition(".")[0] for column in stage.reads} <= set(stage.needs)
        seen.add(stage.name)


@pytest.mark.parametrize(
    ("section", "values", "stale"),
    [
        ("detect", {"keep": 2}, {"detect", "masks", "clip"}),
        ("detect", {"batch": 4}, {"detect", "masks", "clip"}),
        ("dino", {"input_px": 128}, {"dino"}),
        ("sam", {"boxes_chunk": 2}, {"sam", "masks", "clip"}),
        ("clip", {"softness_px": 1.0}, {"clip"}),
    ],
)
def test_a_setting_makes_its_stage_and_what_depends_on_it_stale(
    config: PipelineConfig, section: str, values: dict[str, object], stale: set[str]
) -> None:
    assert changed_by(config, with_section(config, section, **values)) == stale


def test_other_weights_make_their_stage_and_what_depends_on_it_stale(config: PipelineConfig, tmp_path: Path) -> None:
    assert changed_by(config, other_weights(config, "sam", tmp_path)) == {"sam", "masks", "clip"}
    assert changed_by(config, other_weights(config, "dino", tmp_path)) == {"dino"}


def test_the_codec_counts_where_large_maps_are_kept(config: PipelineConfig) -> None:
    hashed = {name: recipe.hashed for name, recipe in recipes(replace(config, codec="u8"), SHIPPED).items()}
    assert {name for name in hashed if hashed[name].get("codec") == "u8"} == {"detect", "dino", "sam", "clip"}


def test_neither_place_nor_name_nor_shard_size_counts(config: PipelineConfig, tmp_path: Path) -> None:
    moved = config
    for stage in ("detect", "dino", "sam", "clip"):
        copy = shutil.copy(getattr(config, stage).checkpoint, tmp_path / f"renamed-{stage}.safetensors")
        moved = with_section(moved, stage, checkpoint=str(copy))
    assert changed_by(config, replace(moved, name="another", images_per_shard=7)) == set()


def test_a_worker_in_another_folder_finds_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_section(preset("pocket"), "sam", checkpoint="weights/sam.pth")
    assert anchored(config).sam.checkpoint == str(tmp_path / "weights" / "sam.pth")
    assert anchored(config).dino.checkpoint == "pocket:dino"


def test_missing_weights_are_named_before_anything_runs(config: PipelineConfig) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such checkpoint"):
        recipes(with_section(config, "sam", checkpoint="nowhere.pth"), SHIPPED)


def test_weights_of_stages_that_are_not_asked_for_may_be_missing(config: PipelineConfig) -> None:
    without = with_section(config, "sam", checkpoint="nowhere.pth")
    assert set(recipes(without, [stage_named("dino")])) == {"dino"}


def test_a_difference_is_told_in_words(config: PipelineConfig, tmp_path: Path) -> None:
    before = recipes(config, SHIPPED)
    after = recipes(with_section(other_weights(config, "sam", tmp_path), "sam", batch=8), SHIPPED)
    checkpoint, batch = differences(before["sam"].hashed, after["sam"].hashed)
    assert checkpoint.startswith("checkpoint differs (")
    assert batch == "batch 3 -> 8"
    assert "its input sam changed" in differences(before["masks"].hashed, after["masks"].hashed)
    assert differences(before["dino"].hashed, after["dino"].hashed) == []


def test_the_default_stages_are_all_but_clip_unless_the_store_has_it() -> None:
    assert [stage.name for stage in chosen_stages(None)] == ["detect", "dino", "sam", "masks"]
    assert chosen_stages(None, present=["clip"]) == SHIPPED == chosen_stages(["all"])
    assert [stage.name for stage in chosen_stages(["masks", "sam"])] == ["sam", "masks"]
    assert [stage.name for stage in with_inputs([stage_named("masks")])] == ["detect", "sam", "masks"]
    with pytest.raises(
        ConfigError,
        match=r"'mask' is not known \(did you mean 'masks'\?\); choose one of detect, dino, sam, masks, clip",
    ):
        chosen_stages(["mask"])


def stage_jsons(config: PipelineConfig, stages: tuple = SHIPPED) -> dict[str, dict]:
    return {
        name: {"hashed": recipe.hashed, "recorded": recorded(recipe, config, "cpu")}
        for name, recipe in recipes(config, stages).items()
    }


def test_a_store_remembers_the_settings_that_made_it(config: PipelineConfig, tmp_path: Path) -> None:
    made = replace(other_weights(config, "sam", tmp_path), codec="u8")
    assert config_of(stage_jsons(made)) == made
    assert config_of({}) is None


def test_what_is_asked_for_goes_before_what_the_store_remembers(config: PipelineConfig) -> None:
    families = stage_jsons(replace(config, codec="u8"))
    assert configured(families).codec == "u8"
    assert configured(families, codec="bf16").codec == "bf16"
    assert configured(families, checkpoints={"masks": "other.pth"}).sam.checkpoint == "other.pth"
    assert configured(families, preset="pocket") == preset("pocket") == configured({})
    with pytest.raises(ConfigError, match="stage 'mask' is not known"):
        configured(families, checkpoints={"mask": "other.pth"})


def test_the_published_sizes_are_estimated_to_the_percent() -> None:
    config = preset("refcoco")
    maps = sum(bytes_an_image(stage_named(name), config) for name in ("detect", "dino", "sam"))
    assert maps == pytest.approx(1_903_616 * 2, rel=0.01)
    for codec, share in (("bf16", 1.0), ("u8", 0.516), ("f32", 2.0)):
        other = replace(config, codec=codec)
        bytes_then = sum(bytes_an_image(stage_named(name), other) for name in ("detect", "dino", "sam"))
        assert bytes_then / maps == pytest.approx(share, rel=0.01)


def test_the_published_networks_are_estimated_within_a_factor_of_two() -> None:
    config = preset("refcoco")
    measured_s = {"detect": 1.454, "dino": 1.730}  # one core, half of what two threads took
    for name, seconds in measured_s.items():
        assert 0.5 < seconds_an_image(stage_named(name), config, gpu=False) / seconds < 2


def test_figures_are_told_in_round_units() -> None:
    assert [in_words(seconds) for seconds in (0.2, 59, 200, 3600, 25_500)] == [
        "1 s",
        "59 s",
        "3 min 20 s",
        "1 h",
        "7 h 5 min",
    ]
    assert [in_bytes(count) for count in (12, 812_000, 3_807_232, 64.7e9, 2e12)] == [
        "12 B",
        "812 kB",
        "3.8 MB",
        "64.7 GB",
        "2.0 TB",
    ]

"""`weakmcn presets`: every value there is, and where it comes from."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from weakmcn.cli.presets import ABOUT, checkpoints_of, values_of
from weakmcn.model import config as model_config
from weakmcn.pipeline import config as pipeline_config
from weakmcn.shards.errors import ConfigError

NAMES = list(dict.fromkeys([*model_config.PRESETS, *pipeline_config.PRESETS]))


def leaves(settings: Any, head: str = "") -> dict[str, Any]:
    """Every value of a settings dataclass by dotted name; a section of the networks is named by its own."""
    found = {}
    for name, value in asdict(settings).items():
        if isinstance(value, dict) and "checkpoint" in value:
            found |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            found[head + name] = value
    values = {name: value for name, value in found.items() if name.rpartition(".")[2] not in ("checkpoint", "name")}
    return {name: value for name, value in values.items() if not name.startswith("extra.")}  # no preset has one


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_preset_is_shown_with_its_value_and_a_source(name: str) -> None:
    wanted = leaves(pipeline_config.preset(name))
    wanted.pop("detect.statistics_file")
    if name in model_config.PRESETS:
        wanted |= leaves(model_config.preset(name), "model.") | leaves(model_config.train_preset(name), "train.")
    shown = values_of(name)
    assert {each.setting: each.value for each in shown} == wanted
    assert len(shown) == len(wanted)
    assert all(each.source for each in shown)


def test_what_is_ours_is_told_as_ours() -> None:
    assert {each.source for each in values_of("pocket")} == {"ours: the pocket world"}
    sources = {each.setting: each.source for each in values_of("sam-l")}
    assert sources["sam.embed_dim"] == "network: Segment Anything ViT-L"
    assert sources["dino.input_px"] == "code"
    assert sources["sam.batch"] == "ours"
    assert sources["clip.input_px"].startswith("ours")


def test_the_list_names_every_preset_in_80_columns(run) -> None:
    ended = run("presets")
    assert ended.status == 0
    assert set(ABOUT) == set(NAMES)
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 80
    for name in NAMES:
        (row,) = [line for line in lines if line.split()[:1] == [name]]
        assert ("paper" in row) == ABOUT[name].startswith("the paper")


def test_one_is_shown_with_sources_and_weights(run) -> None:
    ended = run("presets", "refcoco+")
    assert ended.status == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    rows = {line.split()[0]: line.split() for line in ended.out.splitlines() if line.strip()}
    assert rows["train.min_lr"][1:3] == ["4e-05", "MIN_LR"]
    assert rows["model.warm_epochs"][1:3] == ["8", "WARM_EPOCH"]
    assert all(file in ended.out for file in checkpoints_of("refcoco+").values())


def test_json_is_json_and_nothing_else(run) -> None:
    facts = json.loads(run("presets", "refcoco", "--json").out)
    assert facts["settings"]["train.batch"]["value"] == 40
    assert facts["settings"]["train.batch"]["source"].startswith("BATCH_SIZE")
    assert list(json.loads(run("presets", "--json").out)) == NAMES


def test_a_name_that_does_not_exist_is_answered_with_the_nearest(run) -> None:
    ended = run("presets", "refcco")
    assert (ended.status, ended.out) == (2, "")
    assert "did you mean 'refcoco'?" in ended.err


def test_presets_name_the_papers_networks_and_their_replacements() -> None:
    paper = {"refcoco", "refcoco+", "refcocog"}
    assert set(pipeline_config.PRESETS) == paper | {f"{name}-small" for name in paper} | {
        "pocket",
        "sam-b",
        "sam-l",
        "sam-h",
        "dinov3",
    }
    assert {pipeline_config.PRESETS[name].sam.embed_dim for name in paper} == {192}
    assert all(pipeline_config.PRESETS[f"{name}-small"].sam.embed_dim == 384 for name in paper)
    assert pipeline_config.preset("sam-h").sam.mask_inputs == ("detect.boxes",)
    assert pipeline_config.preset("dinov3").dino.input_px == pipeline_config.preset("dinov3").side_px
    with pytest.raises(ConfigError, match="did you mean 'refcoco-small'"):
        pipeline_config.preset("refcoco_small")
    with pytest.raises(ConfigError, match="choose one of meta, size"):
        replace(pipeline_config.preset("refcoco").dino, position_resampling="bilinear")
    with pytest.raises(ConfigError, match="choose one of sam, efficient_sam"):
        replace(pipeline_config.preset("refcoco").sam, family="sam2")

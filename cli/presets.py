"""`weakmcn presets`: the named settings there are, and where each of their values comes from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import completion
from .options import AsJson

if TYPE_CHECKING:
    from ..model.config import ModelConfig, TrainConfig
    from ..pipeline.config import PipelineConfig

ABOUT = {
    **{name: f"the paper's, {name}_tuning.yaml" for name in ("refcoco", "refcoco+", "refcocog")},
    **{f"{name}-small": f"the paper's, {name}_tuning_v2.yaml" for name in ("refcoco", "refcoco+", "refcocog")},
    "pocket": "ours, for the world that ships with the package",
    **{f"sam-{size}": "ours: refcoco with Segment Anything in EfficientSAM's place" for size in "blh"},
    "dinov3": "ours: refcoco with DINOv3 in DINOv2's place",
}
"""Preset -> where it is from."""
USUAL = "refcoco"
"""The preset that the others are held against."""
NAMES = ("name", "checkpoint", "statistics_file", "extra")
"""Fields that are names of files and no values, and the settings of the user's own encoder, which no preset has."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One setting of a preset."""

    setting: str
    """As `--set` has it, or a field of the frozen networks' settings."""
    value: Any
    source: str


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Show every value of this one, with its source.",
            autocompletion=completion.frozen_presets,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the presets; or show every setting of one, with where its value comes from.

    \b
    Needs    nothing
    Writes   nothing
    Example  weakmcn presets
             weakmcn presets refcoco+

    A preset names the frozen networks (precompute --preset) and, but for a few, sizes and recipe of training (train
    --preset). Settings that begin with model. or train. can be changed with train --set NAME=VALUE.
    """
    from ..model import config as model_config
    from ..pipeline import config as pipeline_config

    if name is None:
        names = [*model_config.PRESETS, *(each for each in pipeline_config.PRESETS if each not in model_config.PRESETS)]
        if as_json:
            typer.echo(json.dumps({each: _facts(each) for each in names}, indent=2))
        else:
            _show_all(names)
        return
    pipeline_config.preset(name)  # raises for a name that does not exist, with the nearest
    if as_json:
        typer.echo(json.dumps(_facts(name), indent=2))
    else:
        _show_one(name)


def values_of(name: str) -> list[Value]:
    """Every setting of a preset: of the network, of its training, of the frozen networks."""
    from .sources import source_of

    usual = dict(_settings(USUAL))
    return [
        Value(setting=key, value=value, source=source_of(key, name, is_own=value != usual[key]))
        for key, value in _settings(name)
    ]


def checkpoints_of(name: str) -> dict[str, str]:
    """Stage -> the file of weights that a preset asks for."""
    from ..pipeline.config import preset

    config = preset(name)
    return {section: getattr(config, section).checkpoint for section in ("detect", "dino", "sam", "clip")}


def _settings(name: str) -> Iterator[tuple[str, Any]]:
    model, train, networks = _parts(name)
    for head, settings in (("model.", model), ("train.", train), ("", networks)):
        yield from _flat(head, settings) if settings is not None else ()


def _parts(name: str) -> "tuple[ModelConfig | None, TrainConfig | None, PipelineConfig]":
    """Network and training, where the preset has them, and the frozen networks."""
    from ..model.config import PRESETS, preset, train_preset
    from ..pipeline.config import preset as networks

    trained = name in PRESETS
    return (preset(name) if trained else None, train_preset(name) if trained else None, networks(name))


def _flat(head: str, settings: Any) -> Iterator[tuple[str, Any]]:
    """Fields with their section's name before them; sections after the fields that are none."""
    sections = []
    for each in fields(settings):
        value = getattr(settings, each.name)
        if each.name in NAMES:
            continue
        if hasattr(value, "checkpoint"):
            sections.append((f"{each.name}.", value))
        else:
            yield head + each.name, value
    for section, value in sections:
        yield from _flat(section, value)


def _facts(name: str) -> dict[str, Any]:
    values = {each.setting: {"value": each.value, "source": each.source} for each in values_of(name)}
    return {"about": ABOUT[name], "checkpoints": checkpoints_of(name), "settings": values}


def _show_all(names: list[str]) -> None:
    from ..pipeline.plain_table import plain_console, plain_table

    table = plain_table(gap=1)
    for head in ("preset", "SAM", "DINO"):
        table.add_column(head, no_wrap=True)
    for head in ("px", "batch", "epochs", "lr", "R"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for name in names:
        model, train, networks = _parts(name)
        trained = (
            (f"{train.batch}", f"{train.epochs}", f"{train.lr:g}", f"{model.wres_dim}")
            if train and model
            else ("",) * 4
        )
        table.add_row(
            name,
            _sam(name),
            _dino(networks.dino.model),
            f"{networks.side_px}",
            *trained,
            "paper" if ABOUT[name].startswith("the paper") else "ours",
        )
    console = plain_console()
    console.print(table)
    console.print(
        "\nR: width of the mask head. A row without batch names frozen networks alone: precompute --preset, and "
        "train --preset with one of the others.\nAll values of one, with their sources: weakmcn presets refcoco"
    )


def _sam(name: str) -> str:
    """Which Segment Anything a preset has, in a word."""
    if name == "pocket":
        return "pocket"
    if name.startswith("sam-"):
        return f"ViT-{name[-1].upper()}"
    return "Efficient-S" if name.endswith("-small") else "Efficient-Ti"


def _dino(model: str) -> str:
    return {"vit_base_patch14_dinov2": "v2 B/14", "vit_base_patch16_dinov3": "v3 B/16"}.get(model, "pocket")


def _show_one(name: str) -> None:
    from ..pipeline.plain_table import plain_console, plain_table
    from .settings import written

    table = plain_table()
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=23)
    table.add_column("from", overflow="fold")
    head = ""
    values = values_of(name)
    for each in values:
        section = each.setting.partition(".")[0] if "." in each.setting else "store"
        if section != head and head:
            table.add_section()
        head = section
        table.add_row(each.setting, written(each.value) or "-", each.source)
    console = plain_console(markup=False)
    console.print(f"{name}: {ABOUT[name]}\n")
    console.print(table)
    if any(each.source.partition(" ")[0].replace("_", "").isupper() for each in values):
        console.print("\nCapitals: a key of the released configuration file.")
    console.print("\nWeights, see weakmcn doctor:")
    for stage, file in checkpoints_of(name).items():
        console.print(f"  {stage:7}{file}")

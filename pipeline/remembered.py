"""The settings of a precompute: what is asked for, and for the rest what the store was made with."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from ..shards.errors import ConfigError
from .config import PRESETS, ExtraConfig, PipelineConfig, Statistics, with_statistics
from .config import preset as preset_named
from .stages import SECTIONS, STAGES, Stage, stage_named


def config_of(families: Mapping[str, Mapping[str, Any]]) -> PipelineConfig | None:
    """The configuration that made a store's current families, from their stage.json; None for a store without any.

    families: stage -> stage.json. A stage that the store does not hold keeps the settings of the preset it was begun
    with; so does one whose parameters an older version of the program wrote in another form.
    """
    for stage in STAGES:
        if stage.name in families:
            begun = families[stage.name]["recorded"]
            break
    else:
        return None
    if begun.get("preset") not in PRESETS:
        raise ConfigError(f"the store was made with preset {begun.get('preset')!r}, unknown here; name one: --preset.")
    try:
        values: dict[str, Any] = {"images_per_shard": begun["images_per_shard"]}
        for stage in STAGES:
            if stage.name in families and stage.name == stage.section:
                values |= _section_values(stage, families[stage.name])
    except (KeyError, TypeError, AttributeError) as fault:
        raise ConfigError(f"a stage.json of the store does not record {fault}; name a preset: --preset.") from fault
    return replace(PRESETS[begun["preset"]], **values)


def _statistics_of(stage_json: Mapping[str, Any]) -> dict[str, Any]:
    """DetectConfig's two fields about statistics, from the stage.json of a detect stage; {} where they are frozen."""
    hashed = stage_json["hashed"].get("parameters", {}).get("statistics")
    if hashed is None:
        return {}
    named = {key: value for key, value in hashed.items() if key != "code"}
    return {"statistics": Statistics(**named), "statistics_file": stage_json["recorded"]["statistics_file"]}


def _section_values(stage: Stage, stage_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of PipelineConfig that a stage.json tells of."""
    hashed, section = stage_json["hashed"], SECTIONS[stage.section]
    parameters = dict(hashed["parameters"])
    side_px = parameters.pop("side_px")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    settings |= {"batch": hashed["batch"], "checkpoint": stage_json["recorded"]["checkpoint"] if stage.shipped else ""}
    settings |= _statistics_of(stage_json)
    known = {field.name: field for field in fields(section)}
    required = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    if not required <= settings.keys() <= known.keys():
        return {}
    codec = {"codec": hashed["codec"]} if "codec" in hashed else {}
    return {"side_px": side_px, stage.section: section(**settings), **codec}


def configured(
    families: Mapping[str, Mapping[str, Any]],
    *,
    preset: str | None = None,
    codec: str | None = None,
    checkpoints: Mapping[str, str] | None = None,
    store: Path | None = None,
) -> PipelineConfig:
    """The settings of a precompute: those asked for; where nothing is asked, those the store was made with.

    families: stage -> stage.json of the store's current families, empty for a new store. A preset that is named starts
    afresh from that preset, but for the detector's statistics, which are no preset's; without one, a new store takes
    `pocket`. store: where the store is that these statistics lie in. ConfigError for an unknown preset, codec or stage.
    """
    config = preset_named(preset) if preset else config_of(families) or PRESETS["pocket"]
    kept = _statistics_of(families["detect"]) if "detect" in families else {}
    if kept:
        file = str((store or Path()) / kept["statistics_file"])
        config = with_statistics(config, kept["statistics"], file)
    if codec is not None:
        config = replace(config, codec=codec)
    for name, checkpoint in (checkpoints or {}).items():
        section = stage_named(name).section
        settings = getattr(config, section)
        changed = replace(settings, checkpoint=checkpoint) if section != "extra" else _read_extra(checkpoint, settings)
        config = replace(config, **{section: changed})
    return config


def _read_extra(file: str, settings: ExtraConfig) -> ExtraConfig:
    from .encoders.extra import extra_config  # runs the file

    return extra_config(file, settings)

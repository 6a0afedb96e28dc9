"""The stages of the offline half, and what each one's bytes depend on.

A newcomer learns the pipeline from `STAGES`: what runs, on what, in which order. A stage's fingerprint hashes
everything that decides its bytes and nothing else (no path, time, host or number of devices); what is only worth
knowing (versions, device, where the weights came from) is recorded beside it.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..shards.columns import FAMILIES, Field
from ..shards.errors import ConfigError
from ..shards.fingerprint import file_sha256, fingerprint, short
from .config import PRESETS, SHIPPED, ClipConfig, DetectConfig, DinoConfig, PipelineConfig, SamConfig
from .images import Photo


class Encoder(Protocol):
    """A frozen network with a fixed batch; see `encoders`."""

    batch: int

    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]: ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One frozen network's pass over the photographs; its output is one column family."""

    name: str
    encoder: str
    """Where its encoder is: "module:Class" below `encoders`, imported only by the process that runs it."""
    section: str
    """The part of PipelineConfig that holds its parameters, checkpoint and batch."""
    needs: tuple[str, ...] = ()
    """Stages whose fingerprints enter this one's."""
    reads: tuple[str, ...] = ()
    """Columns of the same image that the encoder is handed."""
    code: int = 1
    """Version of the computation: raised when the same settings come to give other values."""
    default: bool = True
    """Whether it runs without being asked for."""

    @property
    def fields(self) -> tuple[Field, ...]:
        return FAMILIES[self.name]


STAGES = (
    Stage(name="detect", encoder="yolov3:DetectEncoder", section="detect"),  # three maps, candidate cells and boxes
    Stage(name="dino", encoder="dino:DinoEncoder", section="dino"),  # patch tokens
    Stage(name="sam", encoder="sam:SamEncoder", section="sam"),  # image embedding
    Stage(  # one mask a candidate box
        name="masks",
        encoder="sam:MaskEncoder",
        section="sam",
        needs=("detect", "sam"),
        reads=("detect.boxes",),
    ),
    Stage(  # patch tokens, one embedding a candidate
        name="clip",
        encoder="clip:ClipEncoder",
        section="clip",
        needs=("detect", "masks"),
        reads=("detect.boxes", "masks.bits"),
        default=False,
    ),
)

_SECTIONS = {"detect": DetectConfig, "dino": DinoConfig, "sam": SamConfig, "clip": ClipConfig}
_LIBRARIES = ("weakmcn", "torch", "timm", "segment-anything", "numpy")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one stage is made from, under one configuration."""

    stage: Stage
    hashed: dict[str, Any]
    """Everything the fingerprint hashes, in clear."""
    checkpoint: str
    """Where the weights are: a shipped name, or an absolute path. Recorded, not hashed."""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.hashed)

    @property
    def family(self) -> str:
        """Name of the column family's folder."""
        return f"{self.stage.name}-{short(self.fingerprint)}"

    @property
    def batch(self) -> int:
        return self.hashed["batch"]


def stage_named(name: str) -> Stage:
    """The stage called `name`; ConfigError lists those there are."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ConfigError(f"stage {name!r} is not known; choose from {', '.join(stage.name for stage in STAGES)}, or all.")


def chosen_stages(names: Sequence[str] | None, present: Iterable[str] = ()) -> tuple[Stage, ...]:
    """The stages asked for, in table order; for None the default ones and those already `present`, for "all" all."""
    if names is None:
        kept = set(present)
        return tuple(stage for stage in STAGES if stage.default or stage.name in kept)
    if "all" in names:
        return STAGES
    asked = {stage_named(name).name for name in names}
    if not asked:
        raise ConfigError("no stage is named; leave --stages out to run the default ones.")
    return tuple(stage for stage in STAGES if stage.name in asked)


def columns_read(stage: Stage, config: PipelineConfig) -> tuple[str, ...]:
    """Columns that `stage` is handed under `config`: SAM's decoder may take the stored embedding, or encode again."""
    return config.sam.mask_inputs if stage.name == "masks" else stage.reads


def with_inputs(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """`stages` and all that they depend on, in table order."""
    names: set[str] = set()
    waiting = list(stages)
    while waiting:
        stage = waiting.pop()
        names.add(stage.name)
        waiting += [stage_named(need) for need in stage.needs]
    return tuple(stage for stage in STAGES if stage.name in names)


def recipes(config: PipelineConfig, stages: Iterable[Stage]) -> dict[str, Recipe]:
    """The recipe of each of `stages` and of what they depend on. CheckpointError where weights are missing."""
    from .encoders.weights import resolve

    digests: dict[str, str] = {}
    made: dict[str, Recipe] = {}
    for stage in with_inputs(stages):
        checkpoint = getattr(config, stage.section).checkpoint
        if checkpoint not in digests:
            digests[checkpoint] = file_sha256(resolve(checkpoint))
        inputs = {need: made[need].fingerprint for need in stage.needs}
        made[stage.name] = Recipe(
            stage=stage, hashed=_hashed(stage, config, digests[checkpoint], inputs), checkpoint=_located(checkpoint)
        )
    return made


def _hashed(stage: Stage, config: PipelineConfig, checkpoint_sha256: str, inputs: dict[str, str]) -> dict[str, Any]:
    parameters = asdict(getattr(config, stage.section))
    del parameters["checkpoint"]
    batch = parameters.pop("batch")
    parameters["side_px"] = config.side_px
    if stage.name == "masks":
        parameters["keep"] = config.detect.keep
    hashed = {
        "stage": stage.name,
        "code": stage.code,
        "fields": {field.name: field.dtype for field in stage.fields},
        "parameters": _plain(parameters),
        "checkpoint_sha256": checkpoint_sha256,
        "batch": batch,
        "inputs": inputs,
    }
    if any(field.coded for field in stage.fields):
        hashed["codec"] = config.codec
    return hashed


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back, so that what is hashed now equals what was read from a file."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _located(checkpoint: str) -> str:
    return checkpoint if checkpoint.startswith(SHIPPED) else str(Path(checkpoint).expanduser().resolve())


def anchored(config: PipelineConfig) -> PipelineConfig:
    """The same settings with every checkpoint named so that it is found from any folder."""
    sections = {name: getattr(config, name) for name in _SECTIONS}
    found = {name: replace(section, checkpoint=_located(section.checkpoint)) for name, section in sections.items()}
    return replace(config, **found)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed from one `hashed` to another, in words: ["checkpoint differs (9c1b0a7e -> 3f2a51c0)", ...]."""
    found = []
    if old.get("checkpoint_sha256") != new["checkpoint_sha256"]:
        found.append(
            f"checkpoint differs ({short(str(old.get('checkpoint_sha256')))} -> {short(new['checkpoint_sha256'])})"
        )
    before, after = old.get("inputs", {}), new["inputs"]
    found += [f"its input {name} changed" for name in sorted(after) if before.get(name) != after[name]]
    for name in ("codec", "batch", "code"):
        if old.get(name) != new.get(name):
            found.append(f"{name} {old.get(name)} -> {new.get(name)}")
    before, after = old.get("parameters", {}), new["parameters"]
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            found.append(f"{name} {before.get(name)} -> {after.get(name)}")
    if old.get("fields") != new["fields"]:
        found.append("its fields changed")
    return found


def load_encoder(stage: Stage, config: PipelineConfig, device: str) -> Encoder:
    """The stage's frozen network with its weights, on `device`."""
    module, _, name = stage.encoder.partition(":")
    return getattr(importlib.import_module(f".encoders.{module}", __package__), name)(config, device)


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the columns."""
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "unknown"
    return found


def recorded(recipe: Recipe, config: PipelineConfig, device: str) -> dict[str, Any]:
    """What stage.json keeps beside `hashed`."""
    return {
        "preset": config.name,
        "images_per_shard": config.images_per_shard,
        "checkpoint": recipe.checkpoint,
        "device": device,
        "versions": versions(),
    }


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
    if begun["preset"] not in PRESETS:
        raise ConfigError(f"the store was made with preset {begun['preset']!r}, unknown here; name one: --preset.")
    values: dict[str, Any] = {"images_per_shard": begun["images_per_shard"]}
    for stage in STAGES:
        if stage.name in families and stage.name == stage.section:
            values |= _section_values(stage, families[stage.name])
    return replace(PRESETS[begun["preset"]], **values)


def _section_values(stage: Stage, stage_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of PipelineConfig that a stage.json tells of."""
    hashed, section = stage_json["hashed"], _SECTIONS[stage.section]
    parameters = dict(hashed["parameters"])
    side_px = parameters.pop("side_px")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    settings |= {"batch": hashed["batch"], "checkpoint": stage_json["recorded"]["checkpoint"]}
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
) -> PipelineConfig:
    """The settings of a precompute: those asked for; where nothing is asked, those the store was made with.

    families: stage -> stage.json of the store's current families, empty for a new store. A preset that is named starts
    afresh from that preset; without one, a new store takes `pocket`. ConfigError for an unknown preset, codec or stage.
    """
    from .config import preset as preset_named

    config = preset_named(preset) if preset else config_of(families) or PRESETS["pocket"]
    if codec is not None:
        config = replace(config, codec=codec)
    for name, checkpoint in (checkpoints or {}).items():
        section = stage_named(name).section
        config = replace(config, **{section: replace(getattr(config, section), checkpoint=checkpoint)})
    return config

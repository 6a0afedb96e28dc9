"""The stages of the offline half, and what each one's bytes depend on.

A newcomer learns the pipeline from `STAGES`: what runs, on what, in which order. A stage's fingerprint hashes
everything that decides its bytes and nothing else (no path, time, host or number of devices); what is only worth
knowing (versions, device, where the weights came from) is recorded beside it.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..shards.choices import not_known
from ..shards.columns import FAMILIES, Field
from ..shards.errors import CheckpointError, ConfigError
from ..shards.fingerprint import file_sha256, fingerprint, short
from .config import (
    SHIPPED,
    ClipConfig,
    DetectConfig,
    DinoConfig,
    ExtraConfig,
    PipelineConfig,
    SamConfig,
    with_statistics,
)
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
    shipped: bool = True
    """Whether its code comes with the program."""
    shares: str = ""
    """A stage whose pass over the photographs does for this one too, unless this one reads what that one stored."""
    shared_encoder: str = ""
    """Where the encoder is that gives the fields of both."""

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
        shares="sam",
        shared_encoder="sam:SamAndMaskEncoder",
    ),
    Stage(  # patch tokens, one embedding a candidate
        name="clip",
        encoder="clip:ClipEncoder",
        section="clip",
        needs=("detect", "masks"),
        reads=("detect.boxes", "masks.bits"),
        default=False,
    ),
    Stage(name="extra", encoder="extra:ExtraEncoder", section="extra", default=False, shipped=False),  # yours
)

STATISTICS_CODE = 1
"""Version of the re-estimation of the detector's statistics (encoders/reestimate.py), as `Stage.code`."""
STATISTICS_FOLDER = "weights"
"""Folder of a store that holds them."""

SECTIONS = {"detect": DetectConfig, "dino": DinoConfig, "sam": SamConfig, "clip": ClipConfig, "extra": ExtraConfig}
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
    raise not_known(f"stage {name!r}", name, [*(stage.name for stage in STAGES), "all"])


def chosen_stages(names: Sequence[str] | None, present: Iterable[str] = ()) -> tuple[Stage, ...]:
    """The stages asked for, in table order; for None the default ones and those already `present`.

    For "all" those `present` and all whose code comes with the program.
    """
    kept = set(present)
    if names is None:
        return tuple(stage for stage in STAGES if stage.default or stage.name in kept)
    if "all" in names:
        return tuple(stage for stage in STAGES if stage.shipped or stage.name in kept)
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


def checkpoint_digests(config: PipelineConfig, stages: Iterable[Stage]) -> dict[str, str]:
    """Checkpoint name -> SHA-256 of its file, for `stages` and what they depend on.

    CheckpointError naming all weights that are missing.
    """
    from .encoders.weights import resolve_all

    checkpoints = {stage.name: getattr(config, stage.section).checkpoint for stage in with_inputs(stages)}
    if unnamed := [name for name, checkpoint in checkpoints.items() if not checkpoint]:
        raise CheckpointError(
            f"stage {unnamed[0]} is made by a Python file, which is run only where it is named: "
            f"--checkpoint {unnamed[0]}=FILE.py"
        )
    files = resolve_all(checkpoints.values())
    return {checkpoint: file_sha256(file) for checkpoint, file in files.items()}


def recipes(
    config: PipelineConfig, stages: Iterable[Stage], digests: Mapping[str, str] | None = None
) -> dict[str, Recipe]:
    """The recipe of each of `stages` and of what they depend on. Without `digests`, see `checkpoint_digests`."""
    wanted = with_inputs(stages)
    digests = checkpoint_digests(config, wanted) if digests is None else digests
    made: dict[str, Recipe] = {}
    for stage in wanted:
        checkpoint = getattr(config, stage.section).checkpoint
        inputs = {need: made[need].fingerprint for need in stage.needs}
        made[stage.name] = Recipe(
            stage=stage, hashed=_hashed(stage, config, digests[checkpoint], inputs), checkpoint=_located(checkpoint)
        )
    return made


def parameters(stage: Stage, config: PipelineConfig) -> dict[str, Any]:
    """What the stage's fingerprint hashes of its settings: all of its section but weights and batch, and the canvas."""
    values = asdict(getattr(config, stage.section))
    del values["checkpoint"], values["batch"]
    values["side_px"] = config.side_px
    if stage.section == "detect":
        del values["statistics_file"]
        if values["statistics"] is None:  # as in stores made before there was a choice
            del values["statistics"]
        else:
            values["statistics"]["code"] = STATISTICS_CODE
    if stage.name == "masks":
        values["keep"] = config.detect.keep
    return _plain(values)


def _hashed(stage: Stage, config: PipelineConfig, checkpoint_sha256: str, inputs: dict[str, str]) -> dict[str, Any]:
    hashed = {
        "stage": stage.name,
        "code": stage.code,
        "fields": {field.name: field.dtype for field in stage.fields},
        "parameters": parameters(stage, config),
        "checkpoint_sha256": checkpoint_sha256,
        "batch": getattr(config, stage.section).batch,
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
    return (
        checkpoint if checkpoint.startswith(SHIPPED) or not checkpoint else str(Path(checkpoint).expanduser().resolve())
    )


def anchored(config: PipelineConfig) -> PipelineConfig:
    """The same settings with every checkpoint named so that it is found from any folder."""
    sections = {name: getattr(config, name) for name in SECTIONS}
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
            shown = statistics_in_words if name == "statistics" else str
            found.append(f"{name} {shown(before.get(name))} -> {shown(after.get(name))}")
    if old.get("fields") != new["fields"]:
        found.append("its fields changed")
    return found


def statistics_in_words(statistics: Mapping[str, Any] | None) -> str:
    """`hashed["parameters"]["statistics"]` of a detect stage for people; None: those of the checkpoint."""
    if statistics is None:
        return "of the checkpoint"
    return (
        f"of {statistics['images']:,} training photographs of {statistics['dataset']} "
        f"({short(statistics['images_sha256'])})"
    )


def require_fit(stages: Iterable[Stage], config: PipelineConfig) -> None:
    """CheckpointError unless the weights of all `stages` can be read and are those of their networks, key by key.

    One network after the other, its weights compared and let go: what cannot run is found before hours of what can.
    """
    import torch

    config = with_statistics(config, None)  # made on the way
    for section in dict.fromkeys(stage.section for stage in stages):
        stage = next(stage for stage in STAGES if stage.section == section)
        with torch.device("meta"):
            load_encoder(stage, config, "meta")


def shares_pass(stage: Stage, config: PipelineConfig) -> bool:
    """Whether one pass over the photographs can make the stage and the one it shares with."""
    return bool(stage.shares) and not any(
        column.partition(".")[0] == stage.shares for column in columns_read(stage, config)
    )


def load_encoder(stage: Stage, config: PipelineConfig, device: str, *, shared: bool = False) -> Encoder:
    """The stage's frozen network with its weights, on `device`; shared: that of this stage and the one it shares."""
    return encoder_class(stage, shared=shared)(config, device)


def encoder_class(stage: Stage, *, shared: bool = False) -> Callable[[PipelineConfig, str], Encoder]:
    """What makes the network out of its settings and a device; the libraries it needs are imported."""
    module, _, name = (stage.shared_encoder if shared else stage.encoder).partition(":")
    return getattr(importlib.import_module(f".encoders.{module}", __package__), name)


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
    beside = {
        "preset": config.name,
        "images_per_shard": config.images_per_shard,
        "checkpoint": recipe.checkpoint,
        "device": device,
        "versions": versions(),
    }
    if "statistics" in recipe.hashed["parameters"]:  # below the store, which may be moved
        beside["statistics_file"] = f"{STATISTICS_FOLDER}/{Path(config.detect.statistics_file).name}"
    return beside

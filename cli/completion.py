"""Values that the shell offers behind an option. Nothing is refused by them: each command says what it takes."""

from collections.abc import Iterable
from dataclasses import fields

SHIPPED = ("weakmcn", "refclip", "apl", "tris-c", "tris-c2", "sag-c")
"""The methods of the program, here as words, since the module that has them takes seconds to load."""


def splits(incomplete: str) -> list[str]:
    """One split, or the last of several with commas."""
    from ..pipeline.datasets import DATASETS

    return _last_of(incomplete, dict.fromkeys(split for spec in DATASETS.values() for split in spec.splits))


def datasets(incomplete: str) -> list[str]:
    from ..pipeline.datasets import ALIASES, DATASETS

    return _last_of(incomplete, [*DATASETS, *ALIASES])


def presets(incomplete: str) -> list[str]:
    """Of training."""
    from ..model.config import PRESETS

    return _last_of(incomplete, PRESETS)


def frozen_presets(incomplete: str) -> list[str]:
    """Of the frozen networks."""
    from ..pipeline.config import PRESETS

    return _last_of(incomplete, PRESETS)


def stages(incomplete: str) -> list[str]:
    from ..pipeline.stages import STAGES

    return _last_of(incomplete, [*(stage.name for stage in STAGES), "all"])


def codecs(incomplete: str) -> list[str]:
    from ..shards.codec import CODECS

    return _last_of(incomplete, CODECS)


def methods(incomplete: str) -> list[str]:
    return _last_of(incomplete, SHIPPED)


def settings(incomplete: str) -> list[str]:
    """Names that `--set` takes; those that only one method has are left out."""
    return _last_of(incomplete, ["help", *(f"{name}=" for name in setting_names())])


def setting_names() -> list[str]:
    """model.side_px and so on, without those that only one method has."""
    from ..model.config import ModelConfig, TrainConfig

    sections = {"model": ModelConfig, "train": TrainConfig}
    return [f"{section}.{field.name}" for section, kind in sections.items() for field in fields(kind)]


def _last_of(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in before.split(",")]

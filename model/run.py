"""The run folder: all that is needed to evaluate a trained network or to go on training it.

run.json         method, configuration, data set, store (as given and absolute), weakmcn version
vocabulary.json  the rows of the word table
columns.json     stage -> stage.json of the columns it is trained on, fingerprints included
checkpoints/     two; see checkpoint.py
metrics.jsonl    losses by step; the same bytes however often the run was interrupted
timing.jsonl     what depends on the clock
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..shards.errors import CheckpointError, ConfigError, InputError, StoreError
from ..shards.store import Store
from . import checkpoint
from .config import ModelConfig, TrainConfig
from .methods import Method, method_of
from .vocabulary import Vocabulary

FORMAT = 1
NOT_COMPARED = ("store", "store_absolute", "version")
"""What may differ when a run is continued: it does not change the result."""

C = TypeVar("C")


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    path: Path
    facts: Mapping[str, Any]
    """Content of run.json."""

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """The run in `path`; InputError if there is none, or one that this version cannot read."""
        path = Path(path)
        try:
            facts = json.loads((path / "run.json").read_text("utf-8"))
        except FileNotFoundError as fault:
            raise InputError(
                f"{path}: no run here (it has no run.json); make one with `weakmcn train --out {path}`."
            ) from fault
        except (OSError, ValueError) as fault:
            raise InputError(f"{path / 'run.json'}: cannot be read ({fault}).") from fault
        if facts.get("format") != FORMAT:
            raise InputError(f"{path}: a run in format {facts.get('format')}, this version reads {FORMAT}.")
        return cls(path, facts)

    @property
    def method(self) -> Method:
        return method_of(self.facts["method"])

    @property
    def dataset(self) -> str:
        return self.facts["dataset"]

    @property
    def model(self) -> ModelConfig:
        return _config(ModelConfig, self.facts["model"])

    @property
    def train(self) -> TrainConfig:
        return _config(TrainConfig, self.facts["train"])

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.path / "vocabulary.json")

    @property
    def columns(self) -> dict[str, dict]:
        """Stage -> stage.json of the family the run is trained on."""
        return json.loads((self.path / "columns.json").read_text("utf-8"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def store(self) -> Path:
        """Where the store is: the path as it was given, else the absolute one of that time."""
        given = Path(self.facts["store"])
        return given if given.exists() else Path(self.facts["store_absolute"])

    @property
    def finished(self) -> bool:
        """Whether its last epoch is done."""
        newest, _ = checkpoint.newest(self.checkpoints)
        return newest is not None and newest.position.epoch >= self.train.epochs

    def network(self, *, ema: bool = True, device: torch.device | str = "cpu") -> nn.Module:
        """The network of the newest sound checkpoint, in eval mode; its moving average unless `ema` is False.

        CheckpointError if no checkpoint was written yet, or none is sound.
        """
        newest, _ = checkpoint.newest(self.checkpoints)
        if newest is None:
            raise CheckpointError(f"{self.path}: no checkpoint was written yet; run its `weakmcn train` command again.")
        net = self.method.build(self.model, len(self.vocabulary), None)
        checkpoint.load_weights(net, newest, ema=ema)
        return net.to(device).eval()

    def check_same(self, wanted: Mapping[str, Any]) -> None:
        """ConfigError naming the first setting in which `wanted`, made as run.json is, differs from this run's.

        StoreError if it is only the references or their captions that differ.
        """
        has, asked = _flat(self.facts), _flat(wanted)
        differing = [name for name in sorted(has.keys() | asked.keys()) if has.get(name) != asked.get(name)]
        for name in differing:
            if name not in (*NOT_COMPARED, "samples"):
                raise ConfigError(
                    f"{self.path} was made with {name}={has.get(name)!r}, this command says {asked.get(name)!r}; "
                    "say the same, or choose a new --out."
                )
        if "samples" in differing:
            raise StoreError(
                f"{self.path}: trained on other references or words of {self.dataset}; choose a new --out."
            )

    def check_columns(self, store: Store) -> None:
        """StoreError unless the store's columns are those that the run is trained on."""
        for stage, made_from in self.columns.items():
            family = store.families.get(stage)
            if family is None or family.fingerprint != made_from["fingerprint"]:
                has = f"the store has {family.name}" if family else "the store has none"
                raise StoreError(
                    f"{self.path}: trained on {stage}-{made_from['fingerprint'][:8]}, {has} ({store.path}); "
                    "pass the store it was trained on (--shards) or train again in a new folder."
                )


def device_of(name: str) -> torch.device:
    """The torch device of that name; "auto" is the GPU where there is one. ConfigError if it cannot be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as fault:
        raise ConfigError(f"device={name!r} cannot be used here ({str(fault).splitlines()[0]}); try cpu.") from fault


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined by dots; tuples as lists."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _config(kind: type[C], values: Mapping[str, Any]) -> C:
    """A frozen settings dataclass from JSON; ConfigError for a setting that this version does not have."""
    known = {field.name for field in fields_of(kind)}  # pyright: ignore[reportArgumentType]
    if surplus := sorted(values.keys() - known):
        raise ConfigError(f"run.json: setting {surplus[0]} is not known to this version of weakmcn.")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

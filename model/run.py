"""The run folder: all that is needed to evaluate a trained network or to go on training it.

run.json         method, configuration, data set, store (as given and absolute), weakmcn version
vocabulary.json  the rows of the word table
columns.json     stage -> stage.json of the columns it is trained on, fingerprints included
checkpoints/     two; see checkpoint.py
metrics.jsonl    losses by step; the same bytes however often the run was interrupted
timing.jsonl     what depends on the clock
eval-*.json      figures of what was measured, sentence by sentence; see results.py
tensorboard/     the losses again, where they were asked for
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..shards.errors import CheckpointError, ConfigError, InputError, StoreError
from ..shards.family import called
from ..shards.layout import STORE_FILE
from ..shards.records import read_json
from ..shards.store import Store
from . import checkpoint
from .config import ModelConfig, TrainConfig
from .methods import Method, method_of
from .origin import Origin
from .vocabulary import Vocabulary

FORMAT = 1
NOT_COMPARED = ("store", "store_absolute", "version", "words.file", "first_stage.run", "code.file")
"""What may differ when a run is continued: it does not change the result."""
DATA = "samples."
"""How the names of the data's digests begin."""

C = TypeVar("C")


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    path: Path
    facts: Mapping[str, Any]
    """Content of run.json."""

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """The run in `path`; InputError if there is none, or one that this version cannot read.

        Settings and columns are looked at too; vocabulary and checkpoints where they are needed.
        """
        path = Path(path)
        try:
            facts = read_json(path / "run.json")
        except (FileNotFoundError, NotADirectoryError) as fault:
            near = sorted({file.parent for folder in (path, path.parent) for file in folder.glob("*/run.json")})[:3]
            near = [path.parent] if (path.parent / "run.json").is_file() else near
            mend = f"is it {' or '.join(map(str, near))}?" if near else "weakmcn train makes one."
            raise InputError(f"{path}: no run here (it has no run.json); {mend}") from fault
        except (OSError, ValueError) as fault:
            raise InputError(f"{path / 'run.json'}: damaged ({fault}); restore it or train again.") from fault
        if isinstance(facts, dict) and facts.get("format") != FORMAT:
            raise InputError(
                f"{path}: a run in format {facts.get('format')!r}, this version reads {FORMAT}; update weakmcn."
            )
        run = cls(path, facts)
        run._check()
        return run

    def _check(self) -> None:
        """InputError where run.json or columns.json is not what `train` or `convert` writes."""
        file = self.path / "run.json"
        try:
            names = (self.facts["dataset"], *([] if self.converted else [self.facts["store"], self.facts["split"]]))
            if not all(isinstance(name, str) for name in names):
                raise ValueError("its data set or store is no text")
            _ = self.method, self.model, self.train
            file = self.path / "columns.json"
            if not all(isinstance(made_from["fingerprint"], str) for made_from in self.columns.values()):
                raise ValueError("a fingerprint is no text")
        except ConfigError as fault:
            raise InputError(f"{file}: {fault}") from fault
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            detail = f"no {fault}" if isinstance(fault, KeyError) else fault
            raise InputError(f"{file}: damaged ({detail}); restore it or train again.") from fault

    @property
    def method(self) -> Method:
        return method_of(self.facts["method"], (self.facts.get("code") or {}).get("file"))

    @property
    def notes(self) -> list[str]:
        """What a reader of the run's figures must know of the run itself."""
        return [*self._other_code(), *self._shuffled(), *self._not_learned()]

    def _other_code(self) -> list[str]:
        now, then = self.method.code, self.facts.get("code")
        if now is None or then is None or now.sha256 == then["sha256"]:
            return []
        return [
            f"{now.file} is not as it was when the run was trained; its answers are those of the file as it is now."
        ]

    def _shuffled(self) -> list[str]:
        control = "it is a control: it was trained on expressions of other images (--shuffle-captions)."
        return [control] if self.facts.get("shuffle_captions") else []

    def _not_learned(self) -> list[str]:
        """What the newest checkpoint has not learned yet, or never does."""
        position = None if self.converted else checkpoint.newest_position(self.checkpoints)
        if position is None:
            return []
        told, epochs, begins = [], self.train.epochs, self.model.warm_epochs
        if position.epoch < epochs:
            told.append(f"its training is not finished: {position.epoch} of {epochs} epochs, {position.step:,} steps.")
        if self.masks_mean_nothing_at(position):
            told.append(f"its mask head has learned nothing, its masks mean nothing: it begins after {begins} epochs.")
        return told

    def masks_mean_nothing_at(self, position: checkpoint.Position) -> bool:
        """Whether the mask head has not begun to learn there."""
        waits = self.converted is None and self.method.mask_head_waits(self.model)
        return waits and (position.epoch, position.batch) <= (self.model.warm_epochs, 0)

    @property
    def dataset(self) -> str:
        return self.facts["dataset"]

    @property
    def called(self) -> str:
        """The data set as it is called beside figures."""
        return called(self.dataset, self.columns.values())

    @property
    def model(self) -> ModelConfig:
        return _config(self.method.settings, self.facts["model"])

    @property
    def train(self) -> TrainConfig:
        return _config(TrainConfig, self.facts["train"])

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.path / "vocabulary.json")

    @property
    def columns(self) -> dict[str, dict]:
        """Stage -> stage.json of the family the run is trained on."""
        return read_json(self.path / "columns.json")

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
    def converted(self) -> Origin | None:
        """Where a run that was not trained here comes from; None for one that was."""
        origin = self.facts.get("converted")
        return Origin(**origin) if origin else None

    @property
    def store(self) -> Path:
        """Where the store is: the path as it was given, else the absolute one of that time.

        InputError for a converted run, which has none.
        """
        if self.converted is not None:
            raise InputError(
                f"{self.path}: converted from {self.converted.checkpoint}, so it has no store of its own; name one: "
                "--shards STORE"
            )
        given = Path(self.facts["store"])
        return given if given.exists() else Path(self.facts["store_absolute"])

    def open_store(self, elsewhere: Path | None = None) -> Store:
        """Its store, or the one in `elsewhere`; StoreError if there is none."""
        if elsewhere is None and not (self.store / STORE_FILE).is_file():
            raise StoreError(
                f"{self.store}: the store that {self.path} was trained on is not here any more; say where it is now: "
                "--shards STORE"
            )
        return Store.open(elsewhere or self.store)

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
        net = self.method.build(self.model, self.vocabulary, None)
        checkpoint.load_weights(net, newest, ema=ema)
        return placed(net, device).eval()

    def require_trained(self) -> None:
        """ConfigError for a converted run: it has no optimiser and no place in an order of training to go on from."""
        if self.converted is not None:
            raise ConfigError(
                f"{self.path}: converted from {self.converted.checkpoint}, not trained here, so it cannot be trained "
                "on; choose a new --out."
            )

    def check_same(self, wanted: Mapping[str, Any]) -> None:
        """ConfigError naming the first setting in which `wanted`, made as run.json is, differs from this run's.

        StoreError if only the data differ, naming what of them: references, captions, vocabulary, photographs.
        """
        # A setting that this run is older than has the value it has by itself.
        full = {**self.facts, "model": asdict(self.model), "train": asdict(self.train)}
        has, asked = _flat(full), _flat(wanted)
        differing = [name for name in sorted(has.keys() | asked.keys()) if has.get(name) != asked.get(name)]
        for name in differing:
            if name not in NOT_COMPARED and not name.startswith(DATA):
                raise ConfigError(
                    f"{self.path} was made with {name}={has.get(name)!r}, this command says {asked.get(name)!r}; "
                    "say the same, or choose a new --out."
                )
        data = [name.removeprefix(DATA) for name in differing if name.startswith(DATA)]
        if data:
            raise StoreError(
                f"{self.path}: the {' and '.join(data)} of {self.dataset} {self.facts['split']} are not those it was "
                f"trained on; restore them, or choose a new --out."
            )

    def check_columns(self, store: Store) -> None:
        """StoreError unless the store's columns are those that the run is trained on, or was converted for."""
        if (origin := self.converted) is not None:
            made_from = {stage: family.stage_json["hashed"] for stage, family in store.families.items()}
            if fault := origin.fault_of(made_from, store.path, self.path, self.dataset):
                raise StoreError(f"{self.path}: {fault}")
            return
        for stage, made_from in self.columns.items():
            family = store.families.get(stage)
            if family is None or family.fingerprint != made_from["fingerprint"]:
                if stage in store.unusable:
                    store.require([stage], [])
                has = f"the store has {family.name}" if family else "the store has none"
                raise StoreError(
                    f"{self.path}: trained on {stage}-{made_from['fingerprint'][:8]}, {has} ({store.path}); "
                    "pass the store it was trained on (--shards) or train again in a new folder."
                )


def placed(net: nn.Module, device: torch.device | str) -> nn.Module:
    """The network on a device, the kernels of its convolutions laid out channels last, which they compute faster in."""
    return net.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def device_of(name: str) -> torch.device:
    """The torch device of that name; "auto" is the GPU where there is one. ConfigError if it cannot be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as fault:
        is_unknown = "device type at start" in str(fault)
        why = "there is none of this name" if is_unknown else str(fault).splitlines()[0]
        others = "cpu, cuda, cuda:1 or auto" if is_unknown else "cpu or auto"
        raise ConfigError(f"device={name!r} cannot be used here ({why}); try {others}.") from fault


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
    """A frozen settings dataclass from JSON; ConfigError for a setting that is unknown here, or of another type."""
    usual = kind()
    known = {field.name for field in fields_of(kind)}  # pyright: ignore[reportArgumentType]
    if surplus := sorted(values.keys() - known):
        raise ConfigError(f"setting {surplus[0]} is not known to this version of weakmcn; update weakmcn.")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in settings.items():
        if not _is_like(value, getattr(usual, name)):
            raise ConfigError(f"setting {name} is {value!r:.40}, not as {getattr(usual, name)!r:.40}; restore it.")
    return kind(**settings)


def _is_like(value: object, usual: object) -> bool:
    """Whether `value` has the type of `usual`; a whole number will do for a float, any text for an item of ()."""
    if isinstance(value, tuple) and isinstance(usual, tuple):
        return all(_is_like(item, usual[0] if usual else "") for item in value)
    return type(value) is type(usual) or (type(value) is int and type(usual) is float)

"""What is looked at before a run begins, and before anything is written."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..shards.atomic import TEMPORARY
from ..shards.errors import ConfigError, InputError
from ..shards.lock import LOCK
from ..shards.store import Store
from . import checkpoint
from .config import PRESETS, ModelConfig, TrainConfig, preset
from .methods import Method
from .run import Run
from .vocabulary import Vocabulary
from .words import WordTable, check_same_words, read_words

BEGUN = ("columns.json", "vocabulary.json", LOCK)
"""What a run that was killed before its run.json was written may have left."""


def check_folder(out: Path) -> None:
    """InputError for a file, and for a folder that holds something else than a run or one that was converted."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out names a folder.")
    if out.is_dir() and not (out / "run.json").exists():
        strange = [name for name in sorted(os.listdir(out)) if name not in BEGUN and not name.startswith(TEMPORARY)]
        if strange:
            more = f" and {len(strange) - 1:,} more" if len(strange) > 1 else ""
            raise InputError(f"{out}: is not empty (it has {strange[0]}{more}) and no run; choose a new --out.")
    if (out / "run.json").exists():
        Run.open(out).require_trained()


def check_canvas(store: Store, side_px: int, dataset: str) -> None:
    """ConfigError, naming a preset that fits, if the store's canvas is not the network's."""
    if side_px == store.side:
        return
    fitting = [name for name in PRESETS if preset(name).side_px == store.side]
    named = dataset.partition("-")[0]
    mend = (
        f"use --preset {named if named in fitting else fitting[0]}" if fitting else f"--set model.side_px={store.side}"
    )
    raise ConfigError(
        f"{store.path}: its canvas has {store.side} pixels, this configuration's has {side_px} (model.side_px); {mend}."
    )


def word_vectors(
    out: Path, path: Path | None, vocabulary: Vocabulary, dim: int
) -> tuple[WordTable | None, Mapping[str, Any] | None]:
    """The vectors to begin with, and what run.json says of them.

    out: the run folder, which may hold a run. path: of the vectors' file. Both answers are None where there are no
    vectors; the first is also None where the run's checkpoints have them. ConfigError as `read_words` and
    `check_same_words` raise it.
    """
    recorded, table = None, None
    if (out / "run.json").exists():
        run = Run.open(out)
        recorded = run.facts.get("words")
        check_same_words(out, recorded, path)
        if any(run.checkpoints.glob(checkpoint.RECORDS)):
            return None, recorded
    if path is not None:
        table = read_words(path, vocabulary, dim)
    return table, table.facts if table else None


def first_stage_of(out: Path, named: Path | None) -> tuple[Run | None, Mapping[str, Any]]:
    """The run that a method of two stages goes on from, and what the run in `out`, if there is one, remembers of it.

    The first is None where none is named and none needed any more: the run in `out` has a checkpoint.
    """
    remembered: Mapping[str, Any] = {}
    if (out / "run.json").exists():
        remembered = Run.open(out).facts.get("first_stage") or {}
    begun = any((out / "checkpoints").glob(checkpoint.RECORDS))
    if named is None and remembered and not begun:
        named = Path(remembered["run"])
    return None if named is None else Run.open(named), remembered


def odd_settings(method: Method, model: ModelConfig, recipe: TrainConfig, *, has_words: bool) -> list[str]:
    """What the settings do that their owner may not want, a line each."""
    notes = []
    if method.mask_head_waits(model) and recipe.epochs <= model.warm_epochs:
        notes.append(
            f"The mask head never trains: it begins after {model.warm_epochs} epochs, this run has {recipe.epochs}. "
            f"Train longer, or: --set model.warm_epochs={recipe.epochs // 2}"
        )
    if not has_words and not model.train_words:
        notes.append(
            "Word vectors are random and do not learn. Name some: --words FILE, or --set model.train_words=true"
        )
    return notes


def next_step(run: Path) -> str:
    """What to do with a run that is done."""
    return f"Measure it: weakmcn eval --run {shlex.quote(str(run))} --split val"

"""`--detector-bn`: where the detector's BatchNorm statistics come from, settled before anything is computed.

    frozen       the checkpoint's own, as the paper describes it
    reestimate   taken from the training photographs of the data set that is named with it (encoders/reestimate.py)

Without the option a store keeps what it has: the statistics of one data set serve all of a store, whatever data sets
and photographs are added to it later.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shards.choices import not_known
from ..shards.errors import ConfigError, InputError
from ..shards.layout import references_path
from .config import PipelineConfig, Statistics, with_statistics
from .datasets import find_dataset
from .stages import Stage
from .statistics import TRAINING, list_sha256, made_from, statistics_path, training_images

CHOICES = ("frozen", "reestimate")


def check_choice(
    choice: str | None,
    store: Path,
    current: Statistics | None,
    dataset: str,
    splits: Sequence[str],
    stages: Sequence[Stage],
) -> None:
    """InputError where what is asked for cannot be had, before anything is indexed.

    current: what the store has. Another data set's is not replaced: a second command with the same options would undo
    the work of the first.
    """
    if choice is None:
        return
    if choice not in CHOICES:
        raise not_known(f"--detector-bn {choice!r}", choice, CHOICES)
    if "detect" not in [stage.name for stage in stages]:
        raise ConfigError("--detector-bn is about the stage detect; name it among --stages too.")
    if choice == "frozen":
        return
    name = find_dataset(dataset).name
    if current is not None and current.dataset != name:
        raise InputError(
            f"{store}: its detector has the statistics of {current.dataset}'s training photographs, --detector-bn "
            f"reestimate asks for {name}'s; leave --detector-bn out to keep them, or use another --store."
        )
    if TRAINING not in splits:
        _require_training(store, name)


def settled(
    config: PipelineConfig,
    choice: str | None,
    index_folder: Path,
    dataset: str,
    store: Path,
    digests: Mapping[str, str],
) -> PipelineConfig:
    """`config` with the statistics that were chosen, now that the photographs are indexed, and the file they are in.

    digests: of the checkpoints, see `stages.checkpoint_digests`.
    """
    statistics = config.detect.statistics if choice is None else None
    if choice == "reestimate":
        statistics = _of_training(index_folder, find_dataset(dataset).name)
    config = with_statistics(config, statistics)
    if statistics is None or config.detect.checkpoint not in digests:
        return config
    source = made_from(config, digests[config.detect.checkpoint])
    return with_statistics(config, statistics, str(statistics_path(store, source)))


def _require_training(store: Path, dataset: str) -> None:
    """ConfigError unless a store has all training photographs of a data set already."""
    known, total = 0, 0
    if references_path(store, dataset).exists():
        wanted, found = training_images(store, dataset)
        known, total = len(found), len(wanted)
    if not total or known < total:
        which = f"{total - known:,} of {total:,} training photographs" if total else "the training photographs"
        raise ConfigError(
            f"{store}: {which} of {dataset} are not in it, and --detector-bn reestimate looks at all of them; add "
            f"{TRAINING} to --split."
        )


def _of_training(index_folder: Path, dataset: str) -> Statistics:
    """The list of a data set's training photographs as they are indexed; skipped ones are not on it."""
    _, found = training_images(index_folder, dataset)
    if not found:
        raise ConfigError(f"{dataset} has no training photograph to take the detector's statistics from.")
    return Statistics(dataset=dataset, images=len(found), images_sha256=list_sha256(found))

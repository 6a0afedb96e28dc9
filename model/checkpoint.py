"""Checkpoints: one safetensors file and its JSON record, each whole or absent, two kept.

    checkpoints/00001060.safetensors   flat tensors by name; its metadata repeat the facts below
    checkpoints/00001060.json          format, sha256, bytes, facts: where in the run it was taken

The number is that of finished steps. The record is written last: weights without a record do not exist. Nothing in
either file depends on the clock, so a resumed run writes the same bytes as an undisturbed one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..shards.atomic import write_bytes, write_json
from ..shards.errors import CheckpointError
from ..shards.fingerprint import canonical_json
from ..shards.records import read_json

FORMAT = 1
RECORDS, WEIGHTS = "[0-9]*.json", "[0-9]*.safetensors"
"""Patterns; temporaries of the one publisher begin with a dot."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands: everything about its data and its log that is needed to go on."""

    epoch: int
    """Epoch of the next step, from 0."""
    batch: int
    """Index in that epoch of the next batch; 0 right after an epoch."""
    step: int
    """Steps finished."""
    metrics_bytes: int
    """Length of metrics.jsonl."""
    window_steps: int
    """Steps that the loss sums hold and metrics.jsonl does not yet."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read from one pair of files."""

    path: Path
    tensors: dict[str, Tensor]
    position: Position


def save(folder: Path, tensors: Mapping[str, Tensor], position: Position) -> Path:
    """Write one checkpoint and remove what it makes needless; returns the path of the weights.

    Kept beside it: the newest earlier one taken at the end of an epoch, or, in the first epoch, the one before it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{position.step:08d}.safetensors"
    facts = asdict(position)
    data = save_tensors(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"facts": canonical_json(facts)},
    )
    write_bytes(weights, data)
    digest = hashlib.sha256(data).hexdigest()
    write_json(weights.with_suffix(".json"), {"format": FORMAT, "sha256": digest, "bytes": len(data), "facts": facts})
    prune(folder, position)
    return weights


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest sound checkpoint, or None if there never was one; and what is wrong with any that is newer.

    CheckpointError if there are some and none is sound.
    """
    faults: list[str] = []
    for record in reversed(_records(folder)):
        try:
            return read(record.with_suffix(".safetensors")), faults
        except CheckpointError as fault:
            faults.append(str(fault))
    if faults:
        raise CheckpointError(f"{faults[0]} No older one is left in {folder}; remove the run and train again.")
    return None, []


def newest_position(folder: Path) -> Position | None:
    """Where the newest record stands, its weights unread; None if no record can be read."""
    for record in reversed(_records(folder)):
        try:
            return Position(**read_json(record)["facts"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def read(weights: Path) -> Checkpoint:
    """Read one checkpoint; CheckpointError unless its bytes are those that were written."""
    try:
        record = read_json(weights.with_suffix(".json"))
        raw = weights.read_bytes()
        if record["format"] != FORMAT:
            raise CheckpointError(f"{weights}: written in format {record['format']}, this version reads {FORMAT}.")
        if hashlib.sha256(raw).hexdigest() != record["sha256"]:
            raise CheckpointError(f"{weights}: damaged, its sha256 is not the one in its record.")
        position = Position(**record["facts"])
        with safetensors.safe_open(weights, framework="pt") as opened:
            if (opened.metadata() or {}).get("facts") != canonical_json(asdict(position)):
                raise CheckpointError(f"{weights}: its record belongs to other weights.")
        return Checkpoint(weights, load_tensors(raw), position)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as fault:
        raise CheckpointError(f"{weights}: damaged or incomplete ({type(fault).__name__}: {fault}).") from fault


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_weights(net: nn.Module, saved: Checkpoint, *, ema: bool) -> None:
    """Put the saved weights into `net`, with the moving average in place of what it follows if `ema`.

    CheckpointError naming a weight that is missing, surplus or of another shape.
    """
    weights = under("net/", saved.tensors) | (under("ema/", saved.tensors) if ema else {})
    try:
        net.load_state_dict(weights)
    except RuntimeError as fault:
        detail = " ".join(str(fault).split())[:150]
        raise CheckpointError(
            f"{saved.path}: not the weights of this network ({detail}); restore the files of its run."
        ) from fault


def prune(folder: Path, latest: Position) -> None:
    """Remove all but two. What is later than the latest, a resume passed over; weights alone, a kill left behind."""
    earlier = [record for record in _records(folder) if int(record.stem) < latest.step]
    ends = [record for record in earlier if _is_epoch_end(record)]
    kept = ends[-1:] or (earlier[-1:] if latest.batch else [])
    names = {f"{latest.step:08d}", *(record.stem for record in kept)}
    for pattern in (RECORDS, WEIGHTS):  # records first: weights without a record do not exist
        for path in sorted(folder.glob(pattern)):
            if path.stem not in names:
                path.unlink()


def _records(folder: Path) -> list[Path]:
    return sorted(folder.glob(RECORDS))


def _is_epoch_end(record: Path) -> bool:
    try:
        return read_json(record)["facts"]["batch"] == 0
    except (ValueError, KeyError, TypeError):
        return False

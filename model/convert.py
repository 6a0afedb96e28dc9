"""Official checkpoints of WeakMCN, RefCLIP and APL -> run folders that `eval` and `predict` use.

Which system a state dict is of, and which preset fits it, is told from its keys and shapes. The rows of its word table
are numbered by the sentences of the annotations that it was trained with, in the order of that file: nothing in the
checkpoint says so, only the number of rows can be compared.

What becomes of every key is kept in a ledger: mapped to a weight of ours (exactly), frozen (an encoder's, whose outputs
are columns of the store here), or dead (it never got a gradient).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from ..shards.atomic import write_json
from ..shards.errors import CheckpointError, ConfigError
from ..shards.lock import only_writer
from . import checkpoint
from .config import PRESETS, ModelConfig, TrainConfig
from .methods import recipe
from .official import FROZEN, FROZEN_PREFIXES, fates, network_from_official
from .official_keys import DEAD
from .origin import Origin
from .parameters import STATISTICS, block_of, shared_beginning
from .run import FORMAT, Run
from .vocabulary import Vocabulary

MAPPED = "mapped"
DETECTOR = "visual_encoder."
"""Prefix of the detector's keys in a checkpoint of any of the systems."""

_WORDS = "lang_encoder.embedding.weight"
_FUSION = {"wrec_dim": "multi_scale_manner.top_proj.conv.weight"}
_WIDTHS = {"weakmcn": _FUSION | {"wres_dim": "fusion_manner.0.v_proj.0.weight"}, "refclip": _FUSION, "apl": _FUSION}
"""Setting -> the key whose first axis is its value."""
_SAM = "efficientsam.image_encoder.patch_embed.proj.weight"
_SMALL = {192: False, 384: True}
"""Width of the EfficientSAM inside a WeakMCN checkpoint -> whether it is of a `-small` preset."""
_FIXED = ("positional_encoding_gaussian_matrix",)
"""Ends of further keys that are no parameters: EfficientSAM's random frequencies."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of one key of an official state dict."""

    key: str
    fate: str
    """mapped, frozen or dead."""
    becomes: str
    """The name of our weight; the encoder it belongs to; "" for a dead one."""
    parameters: int
    """Numbers in it; 0 for statistics, which are none."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The keys of one module that share a fate."""

    official: str
    """What their names begin with."""
    fate: str
    becomes: str
    """Our module; the encoder; ""."""
    entries: list[Entry]

    @property
    def tensors(self) -> int:
        return len(self.entries)

    @property
    def parameters(self) -> int:
        return sum(entry.parameters for entry in self.entries)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """An official checkpoint as one of our runs, not written yet."""

    method: str
    preset: str
    dataset: str
    model: ModelConfig
    train: TrainConfig
    vocabulary: Vocabulary
    net: nn.Module
    ledger: list[Entry]


def convert(
    state: Mapping[str, Tensor], method: str, preset: str, dataset: str, sentences: Iterable[str]
) -> Conversion:
    """The network of a state dict (without "module." in front) under a preset; no weight changes a bit.

    sentences: of all splits, in the order of the annotation file that the checkpoint was trained with. CheckpointError
    naming the keys that are unknown, missing or of another shape, or both numbers where the word table has not as many
    rows as the sentences have words.
    """
    model, train = recipe(method, preset)
    told = fates(state, model, method)
    vocabulary = Vocabulary.build(sentences)
    rows = state[_WORDS].shape[0] if state[_WORDS].ndim else 0
    if rows != len(vocabulary):
        raise CheckpointError(
            f"its word table has {rows:,} rows, the annotations give {len(vocabulary):,}; pass the very file it was "
            "trained with: --annotations FILE"
        )
    return Conversion(
        method=method,
        preset=preset,
        dataset=dataset,
        model=model,
        train=train,
        vocabulary=vocabulary,
        net=network_from_official(method, state, model, vocabulary).eval(),
        ledger=[_entry(key, fate, state[key]) for key, fate in told.items()],
    )


def fitting_preset(state: Mapping[str, Tensor], method: str, dataset: str) -> str:
    """The preset of a data set that has the sizes of a state dict; ConfigError naming the option where none or two do.

    Told by the widths of the fusion and of the mask head and, where the checkpoint holds it, by the size of its
    EfficientSAM. `pocket` is tried too.
    """
    name = dataset.partition("-")[0]
    widths = {field: state[key].shape[0] for field, key in _WIDTHS[method].items() if key in state and state[key].ndim}
    small = _SMALL.get(state[_SAM].shape[0]) if _SAM in state and state[_SAM].ndim else None
    candidates = [each for each in (name, f"{name}-small", "pocket") if each in PRESETS]
    fitting = [
        each
        for each in candidates
        if all(getattr(recipe(method, each)[0], field) == width for field, width in widths.items())
        and small in (None, each.endswith("-small"))
    ]
    if method != "weakmcn" and fitting:  # the presets of a data set differ in WeakMCN's sizes only
        return fitting[0]
    if len(fitting) == 1:
        return fitting[0]
    told = " and ".join(f"{field} {width}" for field, width in widths.items()) or "no widths that can be read"
    known = f"{' and '.join(fitting)} have both" if fitting else f"no preset of {name} has them"
    raise ConfigError(f"the checkpoint has {told}: {known}; name the one it was trained with: --preset {PRESETS[0]}")


def grouped(ledger: Iterable[Entry]) -> list[Group]:
    """The ledger by module: those mapped, then the encoders, then the dead blocks; each in the checkpoint's order."""
    members: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in ledger:
        module = entry.key.partition(".")[0]
        if entry.fate == DEAD:
            module = block_of(entry.key)
        members.setdefault((entry.fate, module, entry.becomes if entry.fate == FROZEN else ""), []).append(entry)
    order = (MAPPED, FROZEN, DEAD)
    return [
        Group(
            official=module,
            fate=fate,
            becomes=encoder or shared_beginning([entry.becomes for entry in entries]),
            entries=entries,
        )
        for (fate, module, encoder), entries in sorted(members.items(), key=lambda item: order.index(item[0][0]))
    ]


def write_run(out: Path, made: Conversion, origin: Origin) -> Run:
    """Write a conversion as a run folder; run.json comes last, so that a run cut short is none."""
    facts = {
        "format": FORMAT,
        "version": version("weakmcn"),
        "method": made.method,
        "model": asdict(made.model),
        "train": asdict(made.train),
        "dataset": made.dataset,
        "split": "train",
        "store": None,
        "store_absolute": None,
        "samples": None,
        "converted": asdict(origin),
    }
    position = checkpoint.Position(epoch=made.train.epochs, batch=0, step=0, metrics_bytes=0, window_steps=0)
    with only_writer(out, "weakmcn convert"):
        made.vocabulary.save(out / "vocabulary.json")
        checkpoint.save(
            out / "checkpoints", {f"net/{name}": value for name, value in made.net.state_dict().items()}, position
        )
        write_json(out / "columns.json", {})
        write_json(out / "run.json", facts)
    return Run.open(out)


def _entry(key: str, fate: str, value: Tensor) -> Entry:
    parameters = 0 if key.endswith(STATISTICS + _FIXED) else value.numel()
    if fate == DEAD:
        return Entry(key=key, fate=DEAD, becomes="", parameters=parameters)
    if fate == FROZEN:
        encoder = next(name for prefix, name in FROZEN_PREFIXES.items() if key.startswith(prefix))
        return Entry(key=key, fate=FROZEN, becomes=encoder, parameters=parameters)
    return Entry(key=key, fate=MAPPED, becomes=fate, parameters=parameters)

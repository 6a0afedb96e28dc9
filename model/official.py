"""The authors' checkpoints: which of their keys is which weight here, for WeakMCN, RefCLIP and APL.

A released state dict holds, besides what learns, frozen encoders (recognised by their prefixes; their outputs are
columns of the store here) and weights that never got a gradient (listed in official_keys.py, left out here). Every
other key is mapped to one weight of the same shape, so the way there and back changes no bit.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..shards.errors import CheckpointError
from .apl import APL
from .config import ModelConfig
from .methods import method_of
from .official_keys import DEAD, TABLES
from .refclip import RefCLIP
from .vocabulary import Vocabulary
from .weakmcn import WeakMCN

FROZEN_PREFIXES = {"visual_encoder.": "YOLOv3", "efficientsam.": "EfficientSAM", "dino_model.": "DINOv2"}
"""Encoders inside a released checkpoint, which carries detector statistics of its own (quirk 1)."""

FROZEN = "frozen"

SYSTEMS = tuple(TABLES)
"""Methods that have official checkpoints."""

_TITLES = {"weakmcn": "WeakMCN", "refclip": "RefCLIP", "apl": "APL"}
_MARKS = {"apl": "tag_encoder.", "weakmcn": "seg_head.", "refclip": "multi_scale_manner."}
"""System -> prefix of keys that those before it here do not have."""
_WORDS = "lang_encoder.embedding.weight"


def system_of(keys: Iterable[str]) -> str:
    """Which system's state dict has these keys; CheckpointError if it is none's, saying what is not there."""
    names = [key.removeprefix("module.") for key in keys]
    if {"state_dict", "epoch"} <= set(names):
        raise CheckpointError("This is a whole checkpoint, not a state dict: pass what is under its 'state_dict'.")
    wanted = ("lang_encoder.", *dict.fromkeys(_MARKS.values()))
    there = {prefix for prefix in wanted if any(name.startswith(prefix) for name in names)}
    if {"lang_encoder.", "multi_scale_manner."} <= there:
        return next(system for system, mark in _MARKS.items() if mark in there)
    lacking = [f"{prefix}*" for prefix in ("lang_encoder.", "multi_scale_manner.") if prefix not in there]
    raise CheckpointError(
        f"These weights are of none of {', '.join(_TITLES.values())}: no key {' or '.join(lacking)} among their "
        f"{len(names)} ({_few(names, 3) or 'none'})."
    )


def official_table(config: ModelConfig, method: str = "weakmcn") -> dict[str, str]:
    """Every official key outside the frozen encoders: the name of our weight, or `DEAD`."""
    return TABLES[method](config)


def fates(keys: Iterable[str], config: ModelConfig, method: str = "weakmcn") -> dict[str, str]:
    """What becomes of each key of an official state dict: the name of our weight, `FROZEN` or `DEAD`.

    A leading "module." (of a run on several GPUs) is allowed and ignored. Raises `CheckpointError` naming the keys that
    are unknown, or needed and not there; dead ones may be absent.
    """
    table = official_table(config, method)
    found: dict[str, str] = {}
    unknown: list[str] = []
    seen: set[str] = set()
    for key in keys:
        name = key.removeprefix("module.")
        fate = FROZEN if name.startswith(tuple(FROZEN_PREFIXES)) else table.get(name)
        if fate is None or name in seen:
            unknown.append(key)
        else:
            found[key] = fate
        seen.add(name)
    missing = [name for name, fate in table.items() if fate != DEAD and name not in seen]
    if unknown or missing:
        hint = "Is the preset the one it was trained with?"
        if {"state_dict", "epoch"} <= set(unknown):
            hint = "This is a whole checkpoint: pass what is under its 'state_dict'."
        faults = [
            f"{len(names)} {what} ({_few(names)})" for what, names in (("unknown", unknown), ("missing", missing))
        ]
        raise CheckpointError(
            f"These weights are not an official {_TITLES[method]} state dict of this configuration: keys "
            f"{' and '.join(fault for fault in faults if not fault.startswith('0 '))}. {hint}"
        )
    return found


def _few(names: list[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def from_official(state_dict: Mapping[str, Tensor], config: ModelConfig) -> WeakMCN:
    """The network with the weights of an official WeakMCN state dict; strict.

    The size of the vocabulary is the number of rows of the word table; its rows are in the authors' order. Keys of the
    frozen encoders and dead weights are known and ignored (`fates` lists them). Raises `CheckpointError` naming every
    key that is unknown, missing, no tensor, or of another shape.
    """
    sources = _sources(state_dict, config, "weakmcn")
    net = WeakMCN(config, vocabulary_size=_word_rows(state_dict, sources))
    _fill(net, state_dict, sources)
    return net


def network_from_official(
    method: str, state_dict: Mapping[str, Tensor], config: ModelConfig, vocabulary: Vocabulary
) -> nn.Module:
    """The network of a method with the weights of its official state dict; strict as `from_official`.

    vocabulary: the rows of the word table, in the authors' order; CheckpointError if there are more or fewer.
    """
    sources = _sources(state_dict, config, method)
    rows = _word_rows(state_dict, sources)
    if rows != len(vocabulary):
        raise CheckpointError(
            f"The word table of these weights has {rows:,} rows, the vocabulary {len(vocabulary):,}: it was trained "
            "with other annotations; pass the file that it was trained with."
        )
    net = method_of(method).build(config, vocabulary, None)
    _fill(net, state_dict, sources)
    return net


def to_official(net: nn.Module) -> dict[str, Tensor]:
    """The weights of a WeakMCN, RefCLIP or APL under the official names, as copies on their device.

    Dead weights and the frozen encoders are not produced: these networks have neither. To load the result into the
    authors' code, fill those from anywhere, the dead ones with any numbers.
    """
    assert isinstance(net, WeakMCN | RefCLIP | APL)
    system = {WeakMCN: "weakmcn", RefCLIP: "refclip", APL: "apl"}[type(net)]
    ours = net.state_dict()
    with torch.no_grad():
        table = official_table(net.config, system)
        return {key: ours[name].clone() for key, name in table.items() if name != DEAD}


def _sources(state_dict: Mapping[str, Tensor], config: ModelConfig, method: str) -> dict[str, str]:
    """Our weights, each with the key it comes from."""
    sources = {ours: key for key, ours in fates(state_dict, config, method).items() if ours not in (FROZEN, DEAD)}
    odd = [key for key in sources.values() if not isinstance(state_dict[key], Tensor)]
    if odd:
        raise CheckpointError(f"The official state dict holds something other than a tensor under {_few(odd)}.")
    return sources


def _word_rows(state_dict: Mapping[str, Tensor], sources: Mapping[str, str]) -> int:
    words = state_dict[sources["text.words.weight"]]
    if words.ndim != 2:
        raise CheckpointError(f"{_WORDS} has shape {list(words.shape)}, a table of word vectors has two axes.")
    return words.shape[0]


def _fill(net: nn.Module, state_dict: Mapping[str, Tensor], sources: Mapping[str, str]) -> None:
    ours = net.state_dict()
    wrong = [
        f"{sources[name]} is {list(state_dict[sources[name]].shape)} where {list(value.shape)} is wanted"
        for name, value in ours.items()
        if state_dict[sources[name]].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} weights have another shape than this configuration: {_few(wrong)}. "
            "Is the preset the one they were trained with?"
        )
    net.load_state_dict({name: state_dict[sources[name]] for name in ours})

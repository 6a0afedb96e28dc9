"""The authors' checkpoints: which of their keys is which weight here.

A released WeakMCN state dict holds, besides what learns, three frozen encoders (recognised by their prefixes; their
outputs are columns of the store here) and weights that never got a gradient (listed below, left out here). Every other
key is mapped to one weight of the same shape, so the way there and back changes no bit.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..shards.errors import CheckpointError
from .config import ModelConfig
from .weakmcn import WeakMCN

FROZEN_PREFIXES = {"visual_encoder.": "YOLOv3", "efficientsam.": "EfficientSAM", "dino_model.": "DINOv2"}
"""Encoders inside a released checkpoint; a WeakMCN checkpoint carries detector statistics of its own (quirk 1)."""

FROZEN = "frozen"
DEAD = "dead"

_WORDS = "lang_encoder.embedding.weight"
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_AFFINE = ("weight", "bias")


def _rows(official: str, ours: str, leaves: Iterable[str]) -> dict[str, str]:
    return {f"{official}.{leaf}": f"{ours}.{leaf}" for leaf in leaves}


def _conv_block(official: str, ours: str) -> dict[str, str]:
    return {f"{official}.conv.weight": f"{ours}.conv.weight"} | _rows(f"{official}.batch_norm", f"{ours}.norm", _NORM)


def _fusion_pair(official: str, ours: str) -> dict[str, str]:
    """Two conv blocks; number 0 of the authors' sequence is a resampling without weights."""
    return _conv_block(f"{official}.1", f"{ours}.0") | _conv_block(f"{official}.2", f"{ours}.1")


def text_keys(official: str, ours: str, layers: int) -> dict[str, str]:
    """Keys of a text encoder under the prefix `official`, to those of a `TextEncoder` under `ours`."""
    table = {f"{official}.embedding.weight": f"{ours}.words.weight"}
    table |= _rows(f"{official}.lstm", f"{ours}.gru", ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"))
    linears = {
        "mhatt.linear_v": "attention.value",
        "mhatt.linear_k": "attention.key",
        "mhatt.linear_q": "attention.query",
        "mhatt.linear_merge": "attention.merge",
        "ffn.mlp.fc.linear": "expand",
        "ffn.mlp.linear": "contract",
        "norm1": "norm_attention",
        "norm2": "norm_ff",
    }
    for layer in range(layers):
        for theirs, name in linears.items():
            table |= _rows(f"{official}.sa_list.{layer}.{theirs}", f"{ours}.blocks.{layer}.{name}", _AFFINE)
    for theirs, name in {"mlp.fc.linear": "hidden", "mlp.linear": "score", "linear_merge": "merge"}.items():
        table |= _rows(f"{official}.att_flat.{theirs}", f"{ours}.pool.{name}", _AFFINE)
    return table


def fusion_keys(official: str, ours: str, outputs: Iterable[str]) -> dict[str, str]:
    """Keys of a fusion under `official`: those a `MultiScaleFusion` of these outputs has, the others as dead."""
    outputs = set(outputs)
    table = _fusion_pair(f"{official}.up_modules.1", f"{ours}.down_to_s16")
    table |= _fusion_pair(f"{official}.up_modules.0", f"{ours}.down_to_s8")
    up_to_s16 = _fusion_pair(f"{official}.down_modules.0", f"{ours}.up_to_s16")
    table |= up_to_s16 if outputs & {"s16", "s32"} else dict.fromkeys(up_to_s16, DEAD)
    up_to_s32 = _fusion_pair(f"{official}.down_modules.1", f"{ours}.up_to_s32")
    table |= up_to_s32 if "s32" in outputs else dict.fromkeys(up_to_s32, DEAD)
    for scale, theirs in {"s8": "bot_proj", "s16": "mid_proj", "s32": "top_proj"}.items():
        block = _conv_block(f"{official}.{theirs}", f"{ours}.project.{scale}")
        table |= block if scale in outputs else dict.fromkeys(block, DEAD)
    return table


def modulation_keys(official: str, ours: str) -> dict[str, str]:
    """Keys of the three scales' modulations; number 0 is stride 8, 1 is 16, 2 is 32."""
    table: dict[str, str] = {}
    for scale in range(3):
        theirs, name = f"{official}.{scale}", f"{ours}.{scale}"
        for side, word in {"v_proj": "visual", "q_proj": "textual"}.items():
            table |= _rows(f"{theirs}.{side}.0", f"{name}.{word}", _AFFINE)
            table |= _rows(f"{theirs}.{side}.1", f"{name}.{word}_norm", _NORM)
        table |= _rows(f"{theirs}.norm.0", f"{name}.norm", _NORM)
    return table


def attention_keys(official: str, ours: str) -> dict[str, str]:
    """Keys of the attention block; the authors' `w_m` is never used."""
    names = {"w_qs": "query", "w_kc": "collect_key", "w_kd": "diffuse_key", "w_vs": "value", "w_o": "merge"}
    table = {f"{official}.w_m.{leaf}": DEAD for leaf in _AFFINE}
    for theirs, name in names.items():
        table |= _rows(f"{official}.{theirs}", f"{ours}.{name}", _AFFINE)
    return table | _rows(f"{official}.layer_norm", f"{ours}.norm", _NORM)


def _pyramid_keys(official: str, ours: str) -> dict[str, str]:
    blocks = ("point", "dilated.0", "dilated.1", "dilated.2", "overall")
    table = _rows(f"{official}.out_proj", f"{ours}.project", _AFFINE)
    for number, block in enumerate(blocks):
        table |= _conv_block(f"{official}.conv{number}", f"{ours}.{block}")
    return table


def official_table(config: ModelConfig) -> dict[str, str]:
    """Every official key outside the frozen encoders: the name of our weight, or `DEAD`.

    Banks that the release does not have (clip) are named as it would name them.
    """
    table = text_keys("lang_encoder", "text", config.text_layers)
    table |= fusion_keys("multi_scale_manner", "fusion", ("s8", "s16", "s32"))
    table |= _rows("linear_vs", "matcher.visual", _AFFINE) | _rows("linear_ts", "matcher.textual", _AFFINE)
    for task in ("rec", "res"):
        for bank in config.banks:
            table |= _rows(f"linear_{bank}_{task}", f"{task}_banks.project.{bank}", _AFFINE)
        if config.banks and config.dynamic:
            table |= _rows(f"linear_router_{task}", f"{task}_banks.router", _AFFINE)
    table |= modulation_keys("fusion_manner", "mask_head.modulate")
    table |= fusion_keys("multi_scale_manner_sup", "mask_head.fusion", ("s8",))
    table |= attention_keys("attention_manner", "mask_head.attention")
    return table | _pyramid_keys("seg_head.sconv.0", "mask_head.pyramid")


def fates(keys: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """What becomes of each key of an official state dict: the name of our weight, `FROZEN` or `DEAD`.

    A leading "module." (of a run on several GPUs) is allowed and ignored. Raises `CheckpointError` naming the keys that
    are unknown, or needed and not there; dead ones may be absent.
    """
    table = official_table(config)
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
            "These weights are not an official WeakMCN state dict of this configuration: keys "
            f"{' and '.join(fault for fault in faults if not fault.startswith('0 '))}. {hint}"
        )
    return found


def _few(names: list[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def from_official(state_dict: Mapping[str, Tensor], config: ModelConfig) -> WeakMCN:
    """The network with the weights of an official state dict; strict.

    The size of the vocabulary is the number of rows of the word table; its rows are in the authors' order. Keys of the
    frozen encoders and dead weights are known and ignored (`fates` lists them). Raises `CheckpointError` naming every
    key that is unknown, missing, no tensor, or of another shape.
    """
    sources = {ours: key for key, ours in fates(state_dict, config).items() if ours not in (FROZEN, DEAD)}
    odd = [key for key in sources.values() if not isinstance(state_dict[key], Tensor)]
    if odd:
        raise CheckpointError(f"The official state dict holds something other than a tensor under {_few(odd)}.")
    words = state_dict[sources["text.words.weight"]]
    if words.ndim != 2:
        raise CheckpointError(f"{_WORDS} has shape {list(words.shape)}, a table of word vectors has two axes.")
    net = WeakMCN(config, vocabulary_size=words.shape[0])
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
    return net


def to_official(net: WeakMCN) -> dict[str, Tensor]:
    """The weights under the official names, as copies on their device.

    Dead weights and the frozen encoders are not produced: this network has neither. To load the result into the
    authors' code, fill those from anywhere, the dead ones with any numbers.
    """
    ours = net.state_dict()
    with torch.no_grad():
        return {key: ours[name].clone() for key, name in official_table(net.config).items() if name != DEAD}

"""The names the authors' checkpoints give to weights, for each of their systems.

A table has every official key outside the frozen encoders: the name of our weight, or `DEAD` for one that never got a
gradient. Such weights are left out of our networks:

    weakmcn   both down-modules, mid_proj and top_proj of the second fusion; w_m of the attention block
    refclip   bot_proj and mid_proj of the fusion
    apl       bot_proj and mid_proj of the second fusion; w_m of the attention block

Sources: method page of WeakMCN, section 17, and of RefCLIP and APL.
"""

from collections.abc import Callable, Iterable

from .config import ModelConfig

DEAD = "dead"

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


def weakmcn_keys(config: ModelConfig) -> dict[str, str]:
    """Keys of WeakMCN. Banks that the release does not have (clip) are named as it would name them."""
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


def refclip_keys(config: ModelConfig) -> dict[str, str]:
    """Keys of RefCLIP."""
    table = text_keys("lang_encoder", "text", config.text_layers)
    table |= fusion_keys("multi_scale_manner", "fusion", ("s32",))
    return table | _rows("linear_vs", "matcher.visual", _AFFINE) | _rows("linear_ts", "matcher.textual", _AFFINE)


def apl_keys(config: ModelConfig) -> dict[str, str]:
    """Keys of APL."""
    table = text_keys("lang_encoder", "text", config.text_layers)
    table |= text_keys("tag_encoder", "prompts.text", config.text_layers)
    table |= fusion_keys("multi_scale_manner", "fusion", ("s8", "s16", "s32"))
    linears = {
        "linear_vs": "matcher.visual",
        "linear_ts": "matcher.textual",
        "linear_vs_pos": "prompts.seen",
        "linear_tag": "prompts.spoken",
        "soft_weights": "prompts.weigh",
        "linear_vs_proj": "box_head.write",
        **{f"linear_decoder.{2 * number}": f"decoder.{2 * number}" for number in range(3)},
    }
    for theirs, ours in linears.items():
        table |= _rows(theirs, ours, _AFFINE)
    table |= modulation_keys("fusion_manner", "box_head.modulate")
    table |= fusion_keys("multi_scale_manner_sup", "box_head.fusion", ("s32",))
    table |= attention_keys("attention_manner", "box_head.attention")
    blocks = {"stems.0": "stem", "reg_convs.0.0": "convs.0", "reg_convs.0.1": "convs.1"}
    for theirs, ours in blocks.items():
        table[f"sup_head.{theirs}.conv.weight"] = f"box_head.{ours}.conv.weight"
        table |= _rows(f"sup_head.{theirs}.bn", f"box_head.{ours}.norm", _NORM)
    table |= _rows("sup_head.reg_preds.0", "box_head.regress", _AFFINE)
    return table | _rows("sup_head.obj_preds.0", "box_head.objectness", _AFFINE)


TABLES: dict[str, Callable[[ModelConfig], dict[str, str]]] = {
    "weakmcn": weakmcn_keys,
    "refclip": refclip_keys,
    "apl": apl_keys,
}
"""Method -> its table."""

"""Official checkpoints: every key is accounted for, the way there and back is exact, and what does not fit is named.

`data/official_keys.json` holds the keys and shapes of the released networks outside their frozen encoders (-1 stands
for the size of the vocabulary): WeakMCN's `tiny` in full and of `small` what differs, `refclip` in full and of `apl`
what is more.
"""

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from weakmcn.model.config import PRESETS, ModelConfig, TrainConfig, preset, train_preset
from weakmcn.model.methods import method_of, recipe
from weakmcn.model.official import (
    DEAD,
    FROZEN,
    fates,
    from_official,
    network_from_official,
    official_table,
    system_of,
    to_official,
)
from weakmcn.model.refclip import RefCLIP
from weakmcn.model.vocabulary import RESERVED, Vocabulary
from weakmcn.model.weakmcn import WeakMCN
from weakmcn.shards.errors import CheckpointError, ConfigError

from .section17 import APL_LINEARS, APL_LINEARS_MILLIONS, APL_MILLIONS, NEVER_LEARN, TABLE, TOTAL

FACTS = json.loads((Path(__file__).parent / "data" / "official_keys.json").read_text())
ROWS = 9
VOCABULARY = Vocabulary((*RESERVED, "red", "gray", "person", "traffic", "light", "dog"))
REFCLIP = recipe("refclip", "refcoco")[0]
CONFIGS = {
    "refcoco": ("weakmcn", preset("refcoco")),
    "refcoco-small": ("weakmcn", preset("refcoco-small")),
    "refclip": ("refclip", REFCLIP),
    "refclip on referit": ("refclip", dataclasses.replace(REFCLIP, text_layers=1, candidates=34, max_tokens=20)),
    "apl": ("apl", recipe("apl", "refcoco")[0]),
}
"""Released network -> method, configuration."""
SHAPES = {
    "refcoco": FACTS["tiny"],
    "refcoco-small": FACTS["tiny"] | FACTS["small"],
    "refclip": FACTS["refclip"],
    "refclip on referit": {
        k: v for k, v in FACTS["refclip"].items() if ".sa_list.1" not in k and ".sa_list.2" not in k
    },
    "apl": FACTS["refclip"] | FACTS["apl"],
}

SMALL = ModelConfig(
    side_px=64,
    candidates=2,
    dark_channels=(2, 3, 4),
    dino_channels=3,
    sam_channels=2,
    word_dim=4,
    text_dim=4,
    wrec_dim=4,
    wres_dim=4,
    text_heads=1,
    text_layers=1,
    text_ff_dim=4,
    text_flat_dim=2,
)


def random_state(name: str = "refcoco") -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(5)
    state = {
        key: torch.tensor(7) if not shape else torch.rand([ROWS if size == -1 else size for size in shape], generator=g)
        for key, shape in SHAPES[name].items()
    }
    return state | {key: torch.zeros(3) for key in FACTS["frozen"]}


def small_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return to_official(WeakMCN(SMALL, ROWS))


DEAD_BLOCKS = {
    "weakmcn": {
        "attention_manner": ("w_m",),
        "multi_scale_manner_sup": (*(f"down_modules.{i}.{j}" for i in (0, 1) for j in (1, 2)), "mid_proj", "top_proj"),
    },
    "refclip": {"multi_scale_manner": ("bot_proj", "mid_proj")},
    "apl": {"attention_manner": ("w_m",), "multi_scale_manner_sup": ("bot_proj", "mid_proj")},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_official_key_is_mapped_to_one_weight_or_listed_as_dead(name: str) -> None:
    method, config = CONFIGS[name]
    table = official_table(config, method)
    assert set(table) == set(SHAPES[name])
    with torch.device("meta"):
        weights = method_of(method).build(config, VOCABULARY, None).state_dict()
    mapped = [ours for ours in table.values() if ours != DEAD]
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == set(weights)
    dead = tuple(f"{module}.{block}." for module, blocks in DEAD_BLOCKS[method].items() for block in blocks)
    assert {key for key, ours in table.items() if ours == DEAD} == {key for key in table if key.startswith(dead)}


def counted(name: str) -> tuple[Counter[str], Counter[str]]:
    """Parameters by module of the authors', in our network and among the dead."""
    method, config = CONFIGS[name]
    with torch.device("meta"):
        net = method_of(method).build(config, VOCABULARY, None)
    theirs = {ours: key for key, ours in official_table(config, method).items()}
    ours, dead = Counter[str](), Counter[str]()
    for key, value in net.named_parameters():
        if value.requires_grad:
            ours[theirs[key].split(".")[0]] += value.numel()
    for key, fate in official_table(config, method).items():
        if fate == DEAD and not key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            dead[key.split(".")[0]] += math.prod(SHAPES[name][key])
    return ours, dead


@pytest.mark.parametrize(("column", "name"), [(0, "refcoco"), (1, "refcoco-small")])
def test_parameters_equal_the_published_ones_less_the_dead(column: int, name: str) -> None:
    ours, dead = counted(name)
    for modules, published in TABLE.items():
        assert sum(ours[module] + dead[module] for module in modules.split()) == published[column], modules
    assert sum(dead.values()) == NEVER_LEARN[column]
    assert sum(ours.values()) == TOTAL[column] - NEVER_LEARN[column]


def test_refclip_has_the_published_parameters_less_the_dead() -> None:
    ours, dead = counted("refclip")
    assert {module: ours[module] + dead[module] for module in ours} == {
        "lang_encoder": 11_101_697,
        "multi_scale_manner": 15_611_904,
        "linear_vs": 787_456 - 262_656,
        "linear_ts": 262_656,
    }
    assert (sum(ours.values()), sum(dead.values())) == (27_501_057 - 2_363_392, 2_363_392)
    ours, dead = counted("refclip on referit")
    assert sum(ours.values()) + sum(dead.values()) == 21_196_289


def test_apl_has_the_published_parameters_less_the_dead() -> None:
    ours, dead = counted("apl")
    assert sum(ours[name] for name in APL_LINEARS) / 1e6 == pytest.approx(APL_LINEARS_MILLIONS, abs=0.005)
    assert set(ours) == {*APL_LINEARS, *APL_MILLIONS}
    for module, millions in APL_MILLIONS.items():
        assert (ours[module] + dead[module]) / 1e6 == pytest.approx(millions, abs=0.005), module
    assert (sum(ours.values()), sum(dead.values())) == (49_910_539 - 924_161, 924_161)


def test_a_fusion_of_refclip_width_gives_the_count_nearest_to_the_papers() -> None:
    with torch.device("meta"):
        net = WeakMCN(ModelConfig(wrec_dim=1024), ROWS)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 34_211_591 - NEVER_LEARN[0]


def test_the_round_trip_is_exact_for_every_mapped_key() -> None:
    state = random_state()
    net = from_official(state, preset("refcoco"))
    back = to_official(net)
    assert set(back) == {key for key, fate in fates(state, net.config).items() if fate not in (FROZEN, DEAD)}
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    assert net.text.words.weight.shape == (ROWS, 300)
    assert not net.text.words.weight.requires_grad


@pytest.mark.parametrize("name", ["refclip", "apl"])
def test_the_round_trip_of_the_other_systems_is_exact_too(name: str) -> None:
    method, config = CONFIGS[name]
    state = random_state(name)
    assert system_of(state) == method
    net = network_from_official(method, state, config, VOCABULARY)
    back = to_official(net)
    told = fates(state, config, method)
    assert set(back) == {key for key, fate in told.items() if fate not in (FROZEN, DEAD)}
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    assert {told[key] for key in FACTS["frozen"] if key.startswith("visual_encoder")} == {FROZEN}


def test_each_system_is_known_by_its_keys() -> None:
    for name, (method, _) in CONFIGS.items():
        assert system_of(SHAPES[name]) == system_of(f"module.{key}" for key in SHAPES[name]) == method


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["module_list.0.conv.weight"], r"none of WeakMCN, RefCLIP, APL: no key lang_encoder.*module_list.0.conv"),
        (["lang_encoder.embedding.weight"], r"no key multi_scale_manner\.\* among their 1"),
        (["epoch", "state_dict", "optimizer"], r"pass what is under its 'state_dict'"),
        ([], r"among their 0 \(none\)"),
    ],
    ids=["detector", "text encoder", "container", "empty"],
)
def test_weights_of_no_system_are_told_what_they_lack(keys: list[str], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        system_of(keys)


@pytest.mark.parametrize(("method", "theirs"), [("refclip", "apl"), ("apl", "refclip"), ("weakmcn", "apl")])
def test_weights_of_another_system_are_refused_by_name(method: str, theirs: str) -> None:
    config = next(config for name, config in CONFIGS.values() if name == method)
    title = {"refclip": "RefCLIP", "apl": "APL", "weakmcn": "WeakMCN"}[method]
    with pytest.raises(CheckpointError, match=f"not an official {title} state dict .*(unknown|missing)"):
        fates(SHAPES[theirs], config, method)


def test_a_vocabulary_of_other_annotations_is_refused() -> None:
    method, config = "refclip", dataclasses.replace(SMALL, banks=())
    state = to_official(RefCLIP(config, ROWS + 1))
    with pytest.raises(CheckpointError, match=r"word table of these weights has 10 rows, the vocabulary 9: .*file"):
        network_from_official(method, state, config, VOCABULARY)


def test_what_is_exported_is_a_copy() -> None:
    net = WeakMCN(SMALL, ROWS)
    for value in to_official(net).values():
        value.zero_()
    assert net.matcher.visual.weight.abs().sum() > 0


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, banks=("dino", "clip"), clip_channels=3),
        dataclasses.replace(SMALL, banks=()),
        dataclasses.replace(SMALL, dynamic=False),
    ],
    ids=["both", "dino and clip", "none", "no router"],
)
def test_networks_of_other_banks_make_the_trip_too(config: ModelConfig) -> None:
    net = WeakMCN(config, ROWS)
    again = from_official(to_official(net), config)
    ours, theirs = net.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_prefix_of_a_run_on_several_gpus_is_ignored() -> None:
    state = {f"module.{key}": value for key, value in small_state().items()}
    net = from_official(state, SMALL)
    assert torch.equal(net.matcher.visual.weight, state["module.linear_vs.weight"])


def test_each_key_is_told_what_becomes_of_it() -> None:
    state = random_state()
    told = fates(state, preset("refcoco"))
    assert told.keys() == state.keys()
    assert {told[key] for key in FACTS["frozen"]} == {FROZEN}
    assert told["attention_manner.w_m.weight"] == DEAD
    assert told["fusion_manner.0.v_proj.0.weight"] == "mask_head.modulate.0.visual.weight"


def damaged(**change: Tensor | None) -> dict[str, Tensor]:
    state = small_state()
    for key, value in change.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (damaged(**{"linear_vs.bias": None}), r"1 missing \(linear_vs.bias\)"),
        (damaged(**{"linear_vs.gain": torch.ones(1)}), r"1 unknown \(linear_vs.gain\)"),
        (damaged(**{"module.linear_vs.bias": torch.ones(4)}), r"1 unknown \(module.linear_vs.bias\)"),
        (damaged(**{"linear_vs.bias": torch.ones(5)}), r"linear_vs.bias is \[5\] where \[4\] is wanted"),
        (damaged(**{"lang_encoder.embedding.weight": torch.ones(4)}), r"embedding.weight has shape \[4\]"),
        (damaged(**{"lang_encoder.embedding.weight": torch.ones(9, 3)}), r"is \[9, 3\] where \[9, 4\] is wanted"),
        (damaged(**{"linear_vs.bias": [1.0]}), r"other than a tensor under linear_vs.bias"),  # pyright: ignore[reportArgumentType]
        ({"epoch": torch.ones(1), "state_dict": torch.ones(1)}, r"pass what is under its 'state_dict'"),
        ({}, r"missing \(lang_encoder.embedding.weight, .*\.\.\."),
    ],
    ids=["missing", "unknown", "twice", "shape", "no table", "word width", "no tensor", "container", "empty"],
)
def test_what_does_not_fit_is_named(state: dict[str, Tensor], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        from_official(state, SMALL)


def test_weights_of_the_small_network_are_not_taken_for_the_tiny_one() -> None:
    state = {key: value.expand(1, *value.shape)[0] for key, value in random_state("refcoco-small").items()}
    with pytest.raises(CheckpointError, match="another shape"):
        from_official(state, preset("refcoco"))


# Section 14 of the method page: batch, lr, min_lr, warm-up epochs without masks, width R.
RECIPES = {
    "refcoco": (40, 1e-4, 3e-5, 10, 256),
    "refcoco+": (40, 1e-4, 4e-5, 8, 256),
    "refcocog": (40, 1.2e-4, 7e-5, 7, 256),
    "refcoco-small": (56, 1e-4, 4e-5, 10, 512),
    "refcoco+-small": (56, 1e-4, 6e-5, 9, 512),
    "refcocog-small": (64, 1.2e-4, 7e-5, 8, 256),
}


@pytest.mark.parametrize("name", RECIPES)
def test_presets_carry_the_released_values(name: str) -> None:
    model, train = preset(name), train_preset(name)
    assert (train.batch, train.lr, train.min_lr, model.warm_epochs, model.wres_dim) == RECIPES[name]
    assert (train.epochs, train.warmup_epochs, train.warmup_lr, train.clip_norm) == (25, 4, 1e-7, 0.15)
    assert (train.betas, train.eps, train.ema_decay, train.seed) == ((0.9, 0.98), 1e-9, 0.9997, 123456)
    assert (model.side_px, model.candidates, model.max_tokens, model.wrec_dim) == (416, 17, 15, 512)
    assert (model.isl_start_epoch, model.isl_threshold, model.dropout, model.text_layers) == (15, 0.4, 0.1, 3)
    assert (model.banks, model.clip_boxes_in_eval, model.train_words) == (("dino", "sam"), False, False)


def test_the_presets_are_those_and_the_pocket_one() -> None:
    assert {*RECIPES, "pocket"} == set(PRESETS)
    assert preset("pocket").side_px == 192


@pytest.mark.parametrize(("typed", "meant"), [("refcco", "refcoco"), ("RefCOCO+", "refcoco+"), ("poket", "pocket")])
def test_a_mistyped_preset_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    for find in (preset, train_preset):
        with pytest.raises(ConfigError, match=f"did you mean '{meant.replace('+', '[+]')}'"):
            find(typed)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"side_px": 400}, "try 384"),
        ({"candidates": 170}, "169 cells"),
        ({"candidates": 1}, "at least 2"),
        ({"banks": ("sam", "dino")}, "in this order"),
        ({"banks": ("dino", "resnet")}, "dino, sam, clip"),
        ({"text_dim": 510}, "text_dim=510"),
        ({"wres_dim": 255}, "wres_dim=255"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dark_channels": (1, 2)}, "dark_channels"),
        ({"aspp_dilations": (6, 0, 18)}, r"aspp_dilations\[1\]=0"),
        ({"isl_threshold": math.nan}, "isl_threshold=nan"),
    ],
    ids=str,
)
def test_a_network_that_cannot_be_built_is_refused_with_its_settings(wrong: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 1}, {"epochs": 0}, {"min_lr": 1.0}, {"warmup_epochs": 26}, {"clip_norm": 0.0}, {"ema_decay": 1.0}],
    ids=str,
)
def test_a_recipe_that_cannot_be_run_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_settings_survive_json() -> None:
    for name in PRESETS:
        assert ModelConfig(**json.loads(json.dumps(dataclasses.asdict(preset(name))))) == preset(name)
        assert TrainConfig(**json.loads(json.dumps(dataclasses.asdict(train_preset(name))))) == train_preset(name)

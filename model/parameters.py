"""How many parameters learn, module by module, beside the authors' count of the same network.

The authors' networks hold weights that never get a gradient (official_keys.py lists them); ours leave them out. So for
every module of theirs: what learns here, what is left out, and the sum, which is their count (method page of WeakMCN,
section 17). The word table is in no count: it is frozen, and as long as the vocabulary. Networks are built on torch's
meta device, where weights have shapes and no memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from .config import ModelConfig
from .fusion import MultiScaleFusion
from .methods import method_of
from .official_keys import DEAD, TABLES, fusion_keys
from .vocabulary import RESERVED, Vocabulary
from .wres import CollectDiffuse

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of keys that belong to a BatchNorm and are no parameters."""
PAPER_MILLIONS = 34.31
"""WeakMCN's parameters in the paper (Table 5). No released configuration has that many."""
NEAREST_WREC_DIM = 1024
"""The width (RefCLIP's) that brings the released refcoco_tuning configuration nearest to the paper's count."""


@dataclass(frozen=True, kw_only=True)
class ModuleCount:
    """One module of the authors' network."""

    official: str
    """First part of its keys."""
    ours: str
    """What the names of our weights of it begin with."""
    learns: int
    """Parameters that learn here."""
    left_out: int
    """Parameters of the authors' that never get a gradient and do not exist here."""

    @property
    def total(self) -> int:
        """Parameters of the authors' module."""
        return self.learns + self.left_out


@dataclass(frozen=True, kw_only=True)
class ParameterTable:
    """The trainable parameters of one network."""

    rows: list[ModuleCount]
    left_out: dict[str, int]
    """Block of the authors', by the beginning of its keys -> parameters that never get a gradient."""

    @property
    def learns(self) -> int:
        return sum(row.learns for row in self.rows)

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)


def parameter_table(config: ModelConfig, method: str = "weakmcn") -> ParameterTable:
    """Counts of the network that `config` describes; ConfigError for a method that does not exist.

    A method without official checkpoints is counted by its own modules.
    """
    system = method_of(method)
    vocabulary = Vocabulary((*RESERVED, *system.words(config)))
    with torch.device("meta"):
        net = system.build(config, vocabulary, None)
    learning = {name: value for name, value in net.named_parameters() if value.requires_grad}
    own = {name: value.numel() for name, value in learning.items() if not name.endswith("words.weight")}
    keys = TABLES[method](config) if method in TABLES else {name: name for name in own}
    left_out = {key: prod(shape) for key, shape in dead_shapes(net, keys) if not key.endswith(STATISTICS)}
    rows = []
    for module in dict.fromkeys(key.partition(".")[0] for key in keys):
        inside = [key for key in keys if key.partition(".")[0] == module]
        names = [keys[key] for key in inside if keys[key] in own]
        rows.append(
            ModuleCount(
                official=module,
                ours=shared_beginning(names),
                learns=sum(own[name] for name in names),
                left_out=sum(left_out.get(key, 0) for key in inside),
            )
        )
    blocks: dict[str, int] = {}
    for key, size in left_out.items():
        blocks[block_of(key)] = blocks.get(block_of(key), 0) + size
    return ParameterTable(rows=rows, left_out=blocks)


def nearest_to_the_paper() -> ParameterTable:
    """The configuration in the code's own sizes whose count comes nearest to the paper's."""
    return parameter_table(ModelConfig(wrec_dim=NEAREST_WREC_DIM))


def dead_shapes(net: nn.Module, keys: dict[str, str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every dead key of `keys` with the shape of its weight, told from the living part of its block.

    net: ours. keys: official key -> the name of our weight, or DEAD.
    """
    official = {ours: key for key, ours in keys.items() if ours != DEAD}
    for name, block in net.named_modules():
        if isinstance(block, MultiScaleFusion):
            prefix = official[f"{name}.down_to_s16.0.conv.weight"].removesuffix(".up_modules.1.1.conv.weight")
            whole = _whole(block).state_dict()
            for key, ours in fusion_keys(prefix, "", ("s8", "s16", "s32")).items():
                if keys[key] == DEAD:
                    yield key, tuple(whole[ours.removeprefix(".")].shape)
        elif isinstance(block, CollectDiffuse):  # w_m: a 3 x 3 convolution to one channel
            prefix = official[f"{name}.merge.weight"].removesuffix(".w_o.weight")
            yield f"{prefix}.w_m.weight", (1, block.merge.in_channels, 3, 3)
            yield f"{prefix}.w_m.bias", (1,)


def _whole(block: MultiScaleFusion) -> MultiScaleFusion:
    """The fusion of the same widths with all three outputs, as the authors build it."""
    sizes = {name: value.shape for name, value in block.named_parameters() if name.endswith("conv.weight")}
    half, s32 = sizes["down_to_s16.0.conv.weight"][:2]
    s16 = sizes["down_to_s8.0.conv.weight"][1] - half
    fine = sizes.get("up_to_s16.0.conv.weight") or sizes["project.s8.conv.weight"]
    width = next(size[0] for name, size in sizes.items() if name.startswith("project."))
    with torch.device("meta"):
        return MultiScaleFusion((fine[1] - half, s16, s32), width, ("s8", "s16", "s32"))


def shared_beginning(names: Sequence[str]) -> str:
    """What dotted names have in common, in whole parts, the last of each left aside: rec_banks.router."""
    common: list[str] = []
    for column in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)


def block_of(key: str) -> str:
    """The layer or pair of layers that a key belongs to, by the beginning of its name."""
    parts = key.split(".")
    return ".".join(parts[:3] if parts[1].endswith("modules") else parts[:2])

"""What the tests of the frozen networks share: keys and shapes of the released ones, photographs, files of weights.

Weights are random: what is proved is structure and arithmetic. `data/official_encoders.json` holds the keys and shapes
of the released networks; `*` stands for every block or layer.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import nn
from weakmcn.pipeline.config import preset
from weakmcn.pipeline.images import Photo
from weakmcn.shards.geometry import Letterbox

FACTS = json.loads((Path(__file__).parent / "data" / "official_encoders.json").read_text())
POCKET = preset("pocket")
PAPER = preset("refcoco")


def shapes(net: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in net.state_dict().items()}


def photo(height: int, width: int, side: int, seed: int = 0) -> Photo:
    rgb = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    return Photo(key=f"{seed:012}", rgb=rgb, letterbox=Letterbox.fit(height, width, side), sha256=f"{seed:064x}")


def saved(net: nn.Module, path: Path) -> str:
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return str(path)

"""What `train` is told: one run, what it is trained on, and where it is kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..shards.choices import require_one_of
from ..shards.errors import ConfigError
from .compiling import COMPILERS, Compiler
from .config import ModelConfig, TrainConfig
from .methods import method_of
from .precision import PRECISIONS, Precision
from .references import FIRST_SPLIT
from .residence import PLACES, Asked

Negatives = Literal["gathered", "local"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run: what is trained, on what, and where it is kept."""

    store: Path
    dataset: str
    out: Path
    """The run folder; made if absent, continued if it holds this run."""
    model: ModelConfig
    train: TrainConfig
    method: str = "weakmcn"
    words: Path | None = None
    """A file of word vectors, see words.py; None draws them at random. A run that goes on has them already."""
    first_stage: Path | None = None
    """The run that a method of two stages goes on from."""
    split: str = FIRST_SPLIT
    shuffle_captions: bool = False
    """Control experiment: every reference gets the captions of another image's, so that they say nothing about it."""
    features: Asked = "auto"
    """Where a step's columns come from: the store's files, memory or the GPU, filled once; see residence.py."""
    device: str = "auto"
    """A torch device; "auto" is the GPU where there is one."""
    precision: Precision = "auto"
    """Of a step's products, see precision.py; "auto" is bfloat16 on a GPU that has it."""
    compile: Compiler = "off"
    """Whether the modules that compute maps are compiled, see compiling.py."""
    negatives: Negatives = "gathered"
    """On several ranks, whether a text is contrasted with the images of the whole batch or of its rank alone."""
    checkpoint_minutes: float = 10
    """Between two checkpoints inside an epoch; every epoch ends with one anyway."""
    log_steps: int = 20
    """Steps averaged in one line of metrics.jsonl."""
    tensorboard: bool = False
    """Whether the same is written for TensorBoard, below the run folder."""

    def __post_init__(self) -> None:
        for name in ("store", "out", "words", "first_stage"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        require_one_of("precision", self.precision, PRECISIONS)
        require_one_of("compile", self.compile, COMPILERS)
        require_one_of("features", self.features, PLACES)
        require_one_of("negatives", self.negatives, get_args(Negatives))
        if self.precision == "bfloat16" and not method_of(self.method).bfloat16:
            raise ConfigError(f"precision={self.precision!r}: {self.method} is trained in float32 alone; leave it out.")
        if self.compile != "off" and not method_of(self.method).compiled:
            raise ConfigError(f"compile={self.compile!r}: {self.method} is not compiled; leave it out.")
        if self.train.sampling == "images" and not method_of(self.method).shares_images:
            raise ConfigError(
                f"sampling='images': {self.method} sees an image once in a batch; leave train.sampling out."
            )
        if self.log_steps < 1:
            raise ConfigError(f"log_steps={self.log_steps} must be at least 1.")

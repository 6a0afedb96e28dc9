"""What APL says of each candidate: its colour and its category, spoken, and its position, added.

The prompt of a candidate is a short expression, "red traffic light": the reference colour nearest to the mean colour of
its box, then the name of its most probable class. A second text encoder turns it into a vector.

The release pastes one data set's vocabulary into its sources and speaks by fixed row numbers; here the words are looked
up in the run's own vocabulary, to which a new run appends those that no expression holds (faults 2 and 3 of the method
page: wrong prompts on every other data set; categories of two words, maroon and turquoise unknown). Colours are means
of true pixels, made with the detector's columns (fault 4: means over normalised pixels of the wrong axis, NaN for empty
boxes); so no number of the release's prompts can be met again, and none is attempted.

Axes: B batch, K candidates, L words of the longest prompt, D width of the sentence vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..shards.errors import ConfigError
from .config import ModelConfig
from .text import text_encoder
from .vocabulary import Vocabulary, words_of

COLOURS = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
    "red": (1.0, 0.0, 0.0),
    "orange": (1.0, 0.5, 0.0),
    "yellow": (1.0, 1.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "turquoise": (0.0, 1.0, 1.0),
    "blue": (0.0, 0.0, 1.0),
    "purple": (0.5, 0.0, 0.5),
    "pink": (1.0, 0.75, 0.8),
    "brown": (0.6, 0.4, 0.2),
    "maroon": (0.5, 0.0, 0.0),
}
"""The 13 reference colours of the release, RGB in 0..1; on ties the first."""


def prompt_words(config: ModelConfig) -> tuple[str, ...]:
    """Every word that a prompt may hold, each once: the colours, then the words of the class names."""
    return tuple(dict.fromkeys([*COLOURS, *(word for name in config.class_names for word in words_of(name))]))


def require_names(class_names: Sequence[str]) -> None:
    """ConfigError if there is no name, or one without words."""
    if not class_names or not all(words_of(name) for name in class_names):
        raise ConfigError(
            f"class_names={list(class_names)}: APL says the detector's classes by name, so every one needs a name, in "
            "the detector's order (--set model.class_names=person,bicycle,...)."
        )


def prompt_table(class_names: Sequence[str], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Rows of the words: colours int64 [13, 1], names int64 [classes, L - 1] with pads on the right."""
    longest = max(len(words_of(name)) for name in class_names)
    names = [torch.from_numpy(vocabulary.ids(name, longest)) for name in class_names]
    return torch.from_numpy(vocabulary.ids(" ".join(COLOURS), len(COLOURS)))[:, None], torch.stack(names)


def nearest_colours(colours: Tensor) -> Tensor:
    """Which of `COLOURS` each is nearest to. colours: float32 [..., 3], 0..255; returns int64 [...]."""
    references = colours.new_tensor(list(COLOURS.values()))  # [13, 3]
    return (colours[..., None, :] / 255 - references).square().sum(dim=-1).argmin(dim=-1)


class Prompts(nn.Module):
    """The prompts' vectors, and how a candidate is made of what is seen, spoken and known of its position.

    words: float [rows of the vocabulary, word_dim] or None for random vectors.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, words: Tensor | None = None) -> None:
        super().__init__()
        self.text = text_encoder(config, len(vocabulary), words)
        self.seen = nn.Linear(config.text_dim, config.text_dim)
        self.spoken = nn.Linear(config.text_dim, config.text_dim)
        self.weigh = nn.Linear(config.text_dim, 3)
        colours, names = prompt_table(config.class_names, vocabulary)
        self.colour_rows: Tensor
        self.name_rows: Tensor
        self.register_buffer("colour_rows", colours, persistent=False)
        self.register_buffer("name_rows", names, persistent=False)

    def tokens(self, classes: Tensor, colours: Tensor) -> Tensor:
        """The prompts: int64 [B, K, L]. classes: float [B, K, classes]; colours: float32 [B, K, 3], 0..255."""
        colour = self.colour_rows[nearest_colours(colours)]  # [B, K, 1]
        return torch.cat([colour, self.name_rows[classes.argmax(dim=-1)]], dim=-1)

    def forward(self, classes: Tensor, colours: Tensor) -> Tensor:
        """The prompts' vectors: [B, K, D]."""
        tokens = self.tokens(classes, colours)
        return self.text(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])

    def fuse(self, seen: Tensor, spoken: Tensor, position: Tensor) -> Tensor:
        """Candidates [B, K, D] out of what is seen, spoken and where it is, [B, K, D] each.

        w = softmax(L_w(v + tag + pos)); u = L_seen(w_0 v) + L_spoken(w_2 tag) + w_1 pos.
        """
        weights = self.weigh(seen + spoken + position).softmax(dim=-1)  # [B, K, 3]
        of_seen, of_position, of_spoken = (weight[..., None] for weight in weights.unbind(dim=-1))
        return self.seen(of_seen * seen) + self.spoken(of_spoken * spoken) + of_position * position

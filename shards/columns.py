"""What each column of the store holds for one image: the contract between the frozen encoders and the trainer.

Sizes: S is the canvas side in pixels, K the number of candidates, C a width that the encoder's configuration sets. The
paper has S = 416, K = 17 and C = 256, 512, 1024 (detector), 768 (DINO), 256 (SAM). Nothing here depends on them.

A column is named `stage.field` ("detect.s8"); all fields of one stage form a family and live in the same tars. A
*coded* field is a large map [C, H, W]: a family's codec decides how it is stored (see codec.py).
"""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["f16", "f32", "i32", "u8"]

NUMPY_DTYPES: dict[str, str] = {"f16": "float16", "f32": "float32", "i32": "int32", "u8": "uint8"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a family."""

    name: str
    dtype: Dtype
    """Of the stored array, where the field is not coded."""
    axes: str
    """The shape in the words of the module's docstring."""
    meaning: str
    coded: bool = False
    """Whether the family's codec decides how it is stored."""

    @property
    def numpy_dtype(self) -> str:
        return NUMPY_DTYPES[self.dtype]


def _map(name: str, axes: str, meaning: str) -> Field:
    return Field(name=name, dtype="f16", axes=axes, meaning=meaning, coded=True)


FAMILIES: dict[str, tuple[Field, ...]] = {
    "detect": (
        _map("s8", "C S/8 S/8", "finest detector map"),
        _map("s16", "C S/16 S/16", "middle detector map"),
        _map("s32", "C S/32 S/32", "coarsest detector map, matched against the text"),
        Field(name="cells", dtype="i32", axes="K", meaning="candidate cells of the S/32 grid, raster order"),
        Field(
            name="boxes",
            dtype="f32",
            axes="K 4 5",
            meaning="cx cy w h objectness of a cell's four boxes, canvas pixels, unclipped",
        ),
        Field(name="classes", dtype="f16", axes="K classes", meaning="class probabilities, mean of the four boxes"),
        Field(name="colours", dtype="f32", axes="K 3", meaning="mean RGB in the mean box"),
    ),
    "dino": (_map("tokens", "C S/16 S/16", "patch tokens on their grid, class token left out"),),
    "sam": (_map("embedding", "C S/16 S/16", "image embedding on the canvas grid"),),
    "masks": (
        Field(name="bits", dtype="u8", axes="n", meaning="one zstd frame of the packed bits [K, S, S/8]"),
        Field(name="iou", dtype="f16", axes="K", meaning="SAM's own prediction of its masks' IoU"),
    ),
    "clip": (
        _map("tokens", "C S/16 S/16", "patch tokens on their grid"),
        Field(name="candidates", dtype="f16", axes="K D", meaning="image embedding of the photo under each soft mask"),
    ),
    "extra": (_map("tokens", "C S/16 S/16", "map of an encoder of the user's own"),),
}
"""The fields of every stage's family, in their documented order."""


def column(stage: str, field: str) -> str:
    """The name of a column: "detect", "s8" -> "detect.s8"."""
    return f"{stage}.{field}"


def field_of(name: str) -> Field:
    """The field of a column's name; KeyError for a name that no family has."""
    stage, _, field_name = name.partition(".")
    for field in FAMILIES[stage]:
        if field.name == field_name:
            return field
    raise KeyError(name)

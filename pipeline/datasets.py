"""The data sets that are known by name, and what is published of their sizes.

The published counts of photographs, references and sentences are compared with what is found; a difference is told, by
name, and stops nothing: a partition may have been cleaned, or two partitions mixed up. None: no published number.
Sources: the papers' and mirrors' tables; `refcocog` in papers means the umd or the google partition, so here each has
its own name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..shards.choices import not_known
from .references import Reference


@dataclass(frozen=True)
class Counts:
    """Sizes of one split."""

    images: int | None = None
    references: int | None = None
    sentences: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One data set in one partition."""

    name: str
    folder: str
    """Folder of instances.json and the refs below ROOT."""
    partition: str
    """Who split it: the word in refs(...).p."""
    simrec: tuple[str, ...]
    """Names its SimREC JSON may have, without .json."""
    source: str
    """Where its photographs come from: `coco`, whose numbers are keys of the store, or another collection."""
    photo_name: str
    """File name of a photograph, made from its number."""
    counts: dict[str, Counts] = field(default_factory=dict)
    """Published sizes, in the published order of the splits."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Published splits in their order: training first."""
        return tuple(self.counts)


_COCO = {"source": "coco", "photo_name": "COCO_train2014_{:012d}.jpg"}
_SAIAPR = {"source": "saiapr", "photo_name": "{}.jpg"}

_SPECS = (
    DatasetSpec(
        name="refcoco",
        folder="refcoco",
        partition="unc",
        simrec=("refcoco",),
        **_COCO,
        counts={
            "train": Counts(16_994, 42_404, 120_624),
            "val": Counts(1_500, 3_811, 10_834),
            "testA": Counts(750, 1_975, 5_657),
            "testB": Counts(750, 1_810, 5_095),
        },
    ),
    DatasetSpec(
        name="refcoco+",
        folder="refcoco+",
        partition="unc",
        simrec=("refcoco+",),
        **_COCO,
        counts={
            "train": Counts(16_992, 42_278, 120_191),
            "val": Counts(1_500, 3_805, 10_758),
            "testA": Counts(750, 1_975, 5_726),
            "testB": Counts(750, 1_798, 4_889),
        },
    ),
    DatasetSpec(
        name="refcocog-umd",
        folder="refcocog",
        partition="umd",
        simrec=("refcocog-umd", "refcocog"),
        **_COCO,
        counts={
            "train": Counts(21_899, 42_226, 80_512),
            "val": Counts(1_300, 2_573, 4_896),
            "test": Counts(2_600, 5_023, 9_602),
        },
    ),
    DatasetSpec(
        name="refcocog-google",
        folder="refcocog",
        partition="google",
        simrec=("refcocog-google", "refcocog"),
        **_COCO,
        counts={"train": Counts(24_698, 44_822, 85_474), "val": Counts(4_650, 5_000, 9_536)},
    ),
    DatasetSpec(
        name="refclef-berkeley",
        folder="refclef",
        partition="berkeley",
        simrec=("refclef-berkeley", "refclef"),
        **_SAIAPR,
        counts={
            "train": Counts(sentences=54_127),
            "val": Counts(sentences=5_842),
            "test": Counts(sentences=60_103),
        },
    ),
    DatasetSpec(
        name="refclef-unc",
        folder="refclef",
        partition="unc",
        simrec=("refclef-unc", "refclef"),
        **_SAIAPR,
        counts={
            "train": Counts(images=17_978),
            "val": Counts(),
            "testA": Counts(),
            "testB": Counts(),
            "testC": Counts(),
        },
    ),
)

DATASETS = {spec.name: spec for spec in _SPECS}
ALIASES = {"refcocog": "refcocog-umd", "refclef": "refclef-berkeley", "refcocoplus": "refcoco+"}
"""What papers mean by the short names, and the name of files that may have no plus."""

# COCO numbers its 80 categories from 1 to 90 with gaps; SimREC numbers them 0 to 79.
_COCO_GAPS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_CATEGORIES = tuple(
    zip((number for number in range(1, 91) if number not in _COCO_GAPS), _COCO_NAMES.split(","), strict=True)
)
"""(COCO category id, name) by SimREC's number 0 to 79."""


def find_dataset(name: str) -> DatasetSpec:
    """The data set called `name`; InputError lists those known, and the one that was probably meant."""
    spec = DATASETS.get(ALIASES.get(name, name))
    if spec is not None:
        return spec
    known = [*DATASETS, *ALIASES]
    raise not_known(f"data set {name!r}", name, known)


def count(references: Iterable[Reference]) -> dict[str, Counts]:
    """Sizes of each split that is there."""
    images: dict[str, set[str]] = {}
    numbers: dict[str, tuple[int, int]] = {}
    for reference in references:
        images.setdefault(reference.split, set()).add(reference.key)
        seen, sentences = numbers.get(reference.split, (0, 0))
        numbers[reference.split] = (seen + 1, sentences + len(reference.sentences))
    return {split: Counts(len(images[split]), *numbers[split]) for split in images}


def count_warnings(references: Sequence[Reference], spec: DatasetSpec) -> list[str]:
    """One line for every number that differs from the published one, in the table's order; [] where all agree."""
    here = count(references)
    warnings = []
    for split, published in spec.counts.items():
        found = here.get(split, Counts(0, 0, 0))
        for what in ("images", "references", "sentences"):
            expected, number = getattr(published, what), getattr(found, what)
            if expected is not None and expected != number:
                warnings.append(f"{spec.name} {split}: {number:,} {what} here, {expected:,} published")
    return warnings

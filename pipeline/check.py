"""What a folder holds of the data sets: what is there, what is missing, what would be refused, what is worth knowing.

Everything that `precompute` reads is read, nothing is computed or written. Where precompute stops at a fault, here it
is noted and the rest is looked at too.

    problem  what is needed is missing or broken; precompute would stop
    note     worth knowing, and no reason to stop: counts, photographs seen in training, a detector that knows them
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

from ..shards.errors import AnnotationError, ImageError, InputError
from .annotations import (
    PHOTO_FOLDERS,
    POCKET_FILE,
    Annotations,
    exported_by,
    find_photo,
    is_as_published,
    load_annotations,
)
from .config import PipelineConfig
from .datasets import DATASETS, Counts, DatasetSpec, count, count_warnings, find_dataset
from .layouts import BESIDE, annotation_files, elsewhere, export_notes, find_datasets, names_to_look_for
from .preflight import FoundPhoto, check_boxes, check_masks, check_photos
from .references import Reference
from .simrec import simrec_file
from .statistics import TRAINING
from .unc import refs_file

Told = Callable[[str, int, int], None]
"""What is looked at, how many are done, of how many (0: unknown)."""


@dataclass(frozen=True, kw_only=True)
class DatasetCheck:
    """One data set whose annotations are there."""

    spec: DatasetSpec
    file: str
    """The annotations that are read, relative to ROOT."""
    unread: tuple[str, ...]
    """Further copies of them in other layouts, which are not."""
    fault: str | None = None
    """Why the annotations cannot be used; all that follows is then empty."""
    source: str = ""
    """Whose photographs these are."""
    counts: Mapping[str, Counts] = field(default_factory=dict)
    is_published: bool = True
    """Whether the published counts are its own; not for a pocket world, and not for an export."""
    sentences: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Split -> every expression, the training split first."""
    photos: Mapping[str, Reference] = field(default_factory=dict)
    """Key -> a reference that stands for the photograph."""
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Split -> keys of its photographs."""
    unsized: Annotations | None = None
    """With the references whose photographs' sizes no annotation tells."""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def differing(self) -> int:
        """How many of its counts are not the published ones."""
        return sum(
            getattr(published, what) not in (None, getattr(self.counts.get(split, Counts(0, 0, 0)), what))
            for split, published in self.spec.counts.items()
            for what in ("images", "references", "sentences")
        )


@dataclass(frozen=True, kw_only=True)
class PhotoCheck:
    """The photographs that the data sets speak of."""

    folders: Mapping[str, int]
    """Folder below ROOT -> files in it."""
    total: int
    decoded: bool
    missing: tuple[str, ...]
    """Files that are not there, as they should be called."""
    broken: tuple[str, ...]
    """The fault of each that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class SharedPhotos:
    """Photographs that one data set trains on and another one measures on."""

    train: str
    evaluated: str
    split: str
    images: int


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """All that was found in one folder."""

    root: Path
    is_pocket: bool
    labels_of: str | None
    """The run whose pseudo labels these are."""
    datasets: tuple[DatasetCheck, ...]
    absent: tuple[DatasetSpec, ...]
    """Data sets that are not there, whether asked for or not."""
    photos: PhotoCheck
    shared: tuple[SharedPhotos, ...]
    coco_evaluated: int
    """Photographs of val and test splits that are COCO's."""
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def check_data(
    root: Path, *, datasets: Sequence[str] | None = None, decoded: bool = False, told: Told | None = None
) -> DataCheck:
    """Look at all data sets below `root`, or at those named. decoded: whether photographs are decoded whole.

    InputError where there is no such folder, or a name is not known; everything else is in the answer.
    """
    root, told = Path(root), told or (lambda what, done, total: None)
    if not root.is_dir():
        raise InputError(f"{root}: {'is no folder' if root.exists() else 'no such folder'}; name that of the data.")
    asked = [find_dataset(name) for name in dict.fromkeys(datasets or ())]
    here = [DATASETS[name] for name in find_datasets(root)]
    looked_at = []
    for spec in here:
        if spec in asked or not asked:
            told(f"reading {spec.name}", 0, 0)
            looked_at.append(_look_at(root, spec))
    if not asked:
        looked_at = list(_without_namesakes(looked_at))
    photos, found = _check_photos(root, looked_at, decoded, told)
    looked_at = [_with_boxes_checked(each, found) for each in looked_at]
    problems = [f"{each.name}: {each.fault}" for each in looked_at if each.fault]
    problems += [
        f"{spec.name}: not here; put {names_to_look_for(spec)} below {root} ({BESIDE})"
        for spec in asked
        if spec not in here
    ]
    if not here:
        if near := elsewhere(root):
            problems.append(f"{root}: no data set is here, but in {near}: weakmcn check {near}")
        elif not asked:
            example = names_to_look_for(DATASETS["refcoco"])
            problems.append(f"{root}: no data set is here; look for files like {example} ({BESIDE})")
    problems += _photo_problems(root, photos, wanted=bool(looked_at))
    shared = tuple(_shared(looked_at))
    coco = {key for each in looked_at if each.source == "coco" for key in _evaluated(each)}
    return DataCheck(
        root=root,
        is_pocket=(root / POCKET_FILE).exists(),
        labels_of=exported_by(root),
        datasets=tuple(looked_at),
        absent=tuple(spec for spec in DATASETS.values() if spec not in here),
        photos=photos,
        shared=shared,
        coco_evaluated=len(coco),
        notes=(
            *_count_notes(looked_at),
            *(note for each in looked_at for note in each.notes),
            *export_notes(root),
            *_leak_notes(len(coco)),
        ),
        problems=tuple(problems),
    )


def _look_at(root: Path, spec: DatasetSpec) -> DatasetCheck:
    """Read and check the annotations of a data set that is there; what is kept of them is small."""
    file = refs_file(root / spec.folder, spec) or simrec_file(root, spec)
    assert file is not None
    copies = (path for path in annotation_files(root, spec) if path != file and path.exists())
    others = tuple(path.relative_to(root).as_posix() for path in copies)
    about = {"spec": spec, "file": file.relative_to(root).as_posix(), "unread": others}
    try:
        annotations = load_annotations(root, spec.name)
        _, mask_notes = check_masks(annotations)
    except AnnotationError as error:
        return DatasetCheck(**about, fault=str(error).removesuffix("."))
    keys: dict[str, set[str]] = {}
    sentences: dict[str, list[str]] = {}
    photos: dict[str, Reference] = {}
    for reference in annotations.references:
        keys.setdefault(reference.split, set()).add(reference.key)
        sentences.setdefault(reference.split, []).extend(reference.sentences)
        photos.setdefault(reference.key, replace(reference, segmentation=None))
    unsized = [reference for reference in annotations.references if not reference.height]
    published = is_as_published(root)
    counted = set(count_warnings(annotations.references, spec)) if published else set()  # the table shows them
    notes = [note for note in annotations.warnings if note not in counted]
    return DatasetCheck(
        **about,
        source=annotations.source,
        counts=count(annotations.references),
        is_published=published,
        sentences=sentences,
        photos=photos,
        keys={split: frozenset(found) for split, found in keys.items()},
        unsized=replace(annotations, references=unsized) if unsized else None,
        notes=(*notes, *mask_notes),
    )


def _without_namesakes(checks: Sequence[DatasetCheck]) -> Iterator[DatasetCheck]:
    """Of data sets read from one file, which does not say whose partition it is, the one whose counts it has."""
    for each in checks:
        rivals = [other for other in checks if other.file == each.file]
        nearest = min(rivals, key=lambda rival: rival.differing)
        if len(rivals) == 1:
            yield each
        elif each is nearest:
            exact = "has" if not each.differing else "is nearest to"
            note = f"{each.file} does not say whose partition it is; it {exact} the published counts of {each.name}"
            yield replace(each, notes=(*each.notes, note))


def _check_photos(
    root: Path, checks: Sequence[DatasetCheck], decoded: bool, told: Told
) -> tuple[PhotoCheck, dict[str, dict[str, FoundPhoto]]]:
    """All photographs, each once; and those that are sound, by source and key."""
    wanted: dict[str, dict[str, Reference]] = {}
    for each in checks:
        own = wanted.setdefault(each.source, {})
        for key, reference in each.photos.items():
            if key not in own or not own[key].height:
                own[key] = reference
    total = sum(map(len, wanted.values()))
    missing: list[str] = []
    broken: list[str] = []
    sound: dict[str, dict[str, FoundPhoto]] = {}
    folders = {folder: root / folder for folder in PHOTO_FOLDERS if (root / folder).is_dir()}
    done = 0
    for source, references in wanted.items() if folders else ():
        found, bad = check_photos(
            root,
            references.values(),
            {},
            side=PipelineConfig.side_px,
            decoded=decoded,
            on_progress=lambda count, _, before=done: told("photographs", before + count, total),
        )
        done += len(references)
        sound[source] = found
        for key in sorted(bad):
            path = _expected(root, references[key].file_name)
            if path is not None and not path.exists():
                missing.append(path.relative_to(root).as_posix())
            else:
                broken.append(bad[key])
    files = {folder: sum(1 for entry in path.iterdir() if not entry.is_dir()) for folder, path in folders.items()}
    return PhotoCheck(
        folders={folder: number for folder, number in files.items() if number},
        total=total,
        decoded=decoded,
        missing=tuple(missing),
        broken=tuple(broken),
    ), sound


def _expected(root: Path, file_name: str) -> Path | None:
    try:
        return find_photo(root, file_name)
    except ImageError:
        return None


def _with_boxes_checked(each: DatasetCheck, found: Mapping[str, Mapping[str, FoundPhoto]]) -> DatasetCheck:
    """Boxes of photographs whose size only the photographs tell."""
    if each.unsized is None:
        return each
    try:
        check_boxes(each.unsized, each.unsized.references, found.get(each.source, {}))
    except AnnotationError as error:
        return replace(each, fault=str(error).removesuffix("."))
    return each


def _photo_problems(root: Path, photos: PhotoCheck, *, wanted: bool) -> Iterator[str]:
    if wanted and not photos.folders:
        yield f"{root}: no photographs; put them in {PHOTO_FOLDERS[1]} below it, or link them there"
    if photos.missing:
        yield f"photographs missing: {len(photos.missing):,} of {photos.total:,}, first {photos.missing[0]}"
    if photos.broken:
        yield f"{len(photos.broken):,} of {photos.total:,} photographs cannot be used, first {photos.broken[0]}"


def _evaluated(each: DatasetCheck) -> set[str]:
    """Keys of the photographs that some split but the training split has."""
    return {key for split, keys in each.keys.items() if split != TRAINING for key in keys}


def _shared(checks: Sequence[DatasetCheck]) -> Iterator[SharedPhotos]:
    for trained, other in permutations(checks, 2):
        if trained.source == other.source:
            train = trained.keys.get(TRAINING, frozenset())
            for split, keys in other.keys.items():
                if split != TRAINING and (images := len(train & keys)):
                    yield SharedPhotos(train=trained.name, evaluated=other.name, split=split, images=images)


def _count_notes(checks: Sequence[DatasetCheck]) -> Iterator[str]:
    names = [each.name for each in checks if each.is_published and each.differing and not each.fault]
    if names:
        yield (
            f"counts of {', '.join(names)} differ from the published ones, which stand in brackets: a copy that was "
            "cleaned, or another partition; figures are then not comparable"
        )


def _leak_notes(coco_evaluated: int) -> Iterator[str]:
    if coco_evaluated:
        yield (
            f"{coco_evaluated:,} photographs of val and test splits are from COCO's train2014: a detector trained on "
            "all of it knows them with their boxes. The published yolov3_coco.pth is said to be trained without those "
            "of RefCOCO, RefCOCO+ and RefCOCOg; other COCO checkpoints are not"
        )

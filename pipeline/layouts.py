"""Where the files of data sets lie below a folder, how they are called, and where they lie instead.

The layouts themselves are read by unc.py and simrec.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ..shards.errors import AnnotationError
from .datasets import DATASETS, DatasetSpec
from .simrec import simrec_file
from .unc import refs_file

_DEPTH, _FOLDERS, _ENTRIES = 3, 200, 1000
"""How deep, and in how many folders of how many entries, data sets are looked for that do not lie in ROOT itself."""


def names_to_look_for(spec: DatasetSpec) -> str:
    """The files that bring a data set, in either layout; what lies beside them is in `BESIDE`."""
    return f"{spec.folder}/refs({spec.partition}).p or anns/{spec.simrec[-1]}.json"


BESIDE = "beside refs(...).p lies instances.json, and to anns/NAME.json belong the files of masks/NAME/"


def annotation_files(root: Path, spec: DatasetSpec) -> Iterator[Path]:
    """Every file that could be a data set's annotations, in the order in which they are looked for."""
    yield from (root / spec.folder / f"refs({spec.partition}).{suffix}" for suffix in ("json", "p"))
    for name in spec.simrec:
        yield from (root / "anns" / f"{name}.json", root / "anns" / name / f"{name}.json")


def export_notes(root: Path) -> Iterator[str]:
    """Exports of the Hugging Face hub are no layout that is read; some join two partitions in one split."""
    tables = sorted(path for folder in (root, root / "data") for path in folder.glob("*.parquet"))
    if tables:
        yield (
            f"{tables[0].relative_to(root).as_posix()} looks like an export of the Hugging Face hub ({len(tables)} "
            "such), which is not read: some join the val splits of two partitions (lmms-lab/RefCOCO: 8,811 = 3,811 of "
            "unc + 5,000 of google). Take refs(unc).p"
        )


def find_datasets(root: Path) -> list[str]:
    """Names of the data sets whose annotations lie below `root`, in the table's order; their files are not read."""
    return [spec.name for spec in DATASETS.values() if refs_file(root / spec.folder, spec) or simrec_file(root, spec)]


def annotation_file(root: Path, spec: DatasetSpec) -> tuple[Path, bool]:
    """The file of a data set's references, and whether its layout is UNC's, not SimREC's.

    AnnotationError if neither is there.
    """
    if not root.is_dir():
        raise AnnotationError(f"{root}: there is no such folder; name the one with annotations and photographs.")
    unc = refs_file(root / spec.folder, spec)
    if path := unc or simrec_file(root, spec):
        return path, unc is not None
    if present := ", ".join(find_datasets(root)):
        other = f", or name a data set that is: {present}."
    else:
        near = elsewhere(root, spec.name)
        other = f"; is it {near}?" if near else "."
    raise AnnotationError(
        f"{root}: no {spec.name}; neither {spec.folder}/refs({spec.partition}).p nor anns/{spec.simrec[-1]}.json "
        f"is there; put its annotations there{other}"
    )


def elsewhere(root: Path, name: str | None = None) -> Path | None:
    """The nearest folder that data sets, or the one of that name, lie in instead; None where they are nowhere near."""
    for folder in (root.absolute().parent, *_folders_below(root)):
        found = find_datasets(folder)
        if name in found if name else found:
            return folder
    return None


def _folders_below(root: Path) -> Iterator[Path]:
    """Folders near `root`, nearest first; not those of photographs."""
    level, seen = [root], 0
    for _ in range(_DEPTH):
        inner = []
        for folder in level:
            entries = sorted(folder.iterdir()) if seen < _FOLDERS and os.access(folder, os.R_OK | os.X_OK) else []
            seen += 1
            if len(entries) <= _ENTRIES:
                inner += [path for path in entries if path.is_dir() and not path.name.startswith(".")]
        yield from inner
        level = inner

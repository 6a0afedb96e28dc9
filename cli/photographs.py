"""Where the photographs of a store are: it remembers the folder of its data, which may have moved since."""

from pathlib import Path

from ..shards.errors import InputError
from ..shards.layout import read_store_json
from ..shards.mend import sources_of
from ..shards.store import Store


def data_folder(store: Store, dataset: str, named: Path | None = None) -> Path:
    """The data folder of a data set: the one that was named, else the one that the store was filled from.

    InputError where that is not there.
    """
    known = sources_of(read_store_json(store.path)).get(dataset, {})
    places = [named] if named else [Path(known[name]) for name in ("data", "data_absolute") if name in known]
    for place in places:
        if place.is_dir():
            return place
    told = f"{places[-1]} is not there" if places else f"the store does not remember where the data of {dataset} is"
    raise InputError(f"{store.path}: no photographs, {told}; name the folder: --data DIR")


def photograph_files(store: Store, folder: Path) -> dict[str, Path]:
    """Key -> the file of the photograph."""
    return {key: folder / file for key, file in zip(store.keys, store.images["file"].to_pylist(), strict=True)}

"""The commands that mend a store, whole and ready to paste: where its data is, what it holds, every path quoted.

A store remembers in `store.json` where the data sets were that it was made from (layout.py, `remember_source`). That is
recorded and nothing depends on it: a store without it is mended by the same commands, with words to be filled in.
"""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .records import read_json

SOURCES = "sources"
"""Key of store.json: data set -> where its data is (`data`, `data_absolute`) and the splits that were asked for."""
NEEDS = {"masks": ("detect", "sam"), "clip": ("detect", "masks")}
"""Stage -> stages it is made from, as the stage table of the pipeline has them."""


def refill(
    store: Path,
    *,
    dataset: str | None = None,
    splits: Sequence[str] = (),
    stages: Iterable[str] = (),
    into: Path | None = None,
) -> str:
    """The `weakmcn precompute` command that makes what a store lacks, or another store beside it.

    dataset, splits: what the store must hold then; without them what it was made from, which is enough to renew any of
    its columns. stages: only these; without any those it has, and the default ones. into: a store to be made anew from
    the same data.
    """
    sources = _sources(store)
    known = sources.get(dataset or "", {}) or next(iter(sources.values()), {})
    name = dataset or next(iter(sources), "DATASET")
    wanted = splits or known.get("splits") or ["train"]
    words = ["--data", _folder(known), "--dataset", name, "--split", ",".join(wanted), "--store", str(into or store)]
    if named := list(stages):
        words += ["--stages", ",".join(named)]
    return shlex.join(["weakmcn", "precompute", *words])


def repair(store: Path) -> str:
    """The command that drops what is broken."""
    return shlex.join(["weakmcn", "store", "repair", str(store)])


def with_inputs(stages: Iterable[str]) -> list[str]:
    """`stages` and all that they are made from, inputs first."""
    found: dict[str, None] = {}
    for stage in stages:
        found |= dict.fromkeys([*with_inputs(NEEDS.get(stage, ())), stage])
    return list(found)


def fact(message: str) -> str:
    """What an error says is wrong, without what to do about it: where several are told and mended together."""
    told, sign, _ = message.rpartition("; ")
    return told if sign else message.rstrip(".")


def sources_of(record: Any) -> dict[str, dict[str, Any]]:
    """What a store.json remembers of its data sets, by name; what is not as `remember_source` writes it is left out."""
    found = record.get(SOURCES) if isinstance(record, dict) else None
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in sorted(found) if name.isprintable() and _is_sound(found[name])}


def _is_sound(source: Any) -> bool:
    if not isinstance(source, dict) or not isinstance(source.get("splits"), list):
        return False
    words = [source.get("data"), source.get("data_absolute"), *source["splits"], source.get("labels_of", "")]
    return all(isinstance(word, str) and word.isprintable() for word in words)


def _sources(store: Path) -> dict[str, dict[str, Any]]:
    try:
        return sources_of(read_json(store / "store.json"))
    except (OSError, ValueError):
        return {}


def _folder(source: dict[str, Any]) -> str:
    """Where the data is: as it was given where that is still so, else the absolute path of that time."""
    if not source:
        return "DATA"
    given, absolute = source["data"], source["data_absolute"]
    is_there = Path(given).exists() and str(Path(given).absolute()) == absolute
    return given if is_there else absolute

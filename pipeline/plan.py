"""What a precompute would do: which shards of which stage are there, which are missing or stale, and why.

The plan is a pure look at the disk. Only shards that are whole count: a good sidecar of the wanted fingerprint, a tar
of its size, made from the photographs as they are now.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shards.errors import DamagedShardError, InputError, StoreError
from ..shards.family import Family
from ..shards.layout import STORE_FILE, read_store_json
from ..shards.sidecar import Sidecar, parse_sidecar, shard_name
from .config import PipelineConfig
from .estimate import bytes_by_column, in_bytes, seconds_an_image
from .stages import STAGES, Recipe, Stage, differences, versions, with_inputs
from .statistics import StatisticsPlan
from .tasks import ImageRow

Shards = Mapping[int, tuple[ImageRow, ...]]
"""Shard number -> its photographs, keys ascending; the same for every stage."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: what is there, what is to do."""

    recipe: Recipe
    why: str
    """The state in words: "up to date", "stale: checkpoint differs (...)", "3 of 24 shards missing"."""
    due: tuple[int, ...]
    """Shards to be made."""
    images_total: int
    images_due: int
    bytes: int
    """That the shards to be made will take."""
    seconds: float
    """Roughly, on the workers planned for."""
    in_use: bool
    """Whether the store uses this family already."""
    columns: Mapping[str, int]
    """Column ("detect.s8") -> bytes that it takes of `bytes`."""
    frame: int | None = None
    """Bytes of an image's packed masks, where a probe has measured them."""
    probed: int = 0
    """Photographs that were sent through the network to measure `seconds`; 0: `seconds` are arithmetic."""
    made_with: str = ""
    """The stage whose pass over the photographs makes this one too, so that its time is counted there."""

    @property
    def stage(self) -> Stage:
        return self.recipe.stage


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages asked for, in the order in which they run."""

    store: Path
    config: PipelineConfig
    stages: tuple[StagePlan, ...]
    families: Mapping[str, str]
    """Stage -> folder name of its family, for these stages and all they depend on."""
    statistics: StatisticsPlan | None = None
    """Of the detector, where they are re-estimated and `detect` is asked for."""
    notes: tuple[str, ...]
    """What a user should know beside the table, one line each."""
    free_bytes: int

    @property
    def bytes(self) -> int:
        return sum(stage.bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages) + (self.statistics.seconds if self.statistics else 0)

    @property
    def is_done(self) -> bool:
        return not any(stage.due for stage in self.stages) and (self.statistics is None or self.statistics.is_whole)

    @property
    def networks(self) -> tuple[Stage, ...]:
        """Stages whose frozen network will run."""
        measured = self.statistics is not None and not self.statistics.is_whole
        return tuple(plan.stage for plan in self.stages if plan.due or (measured and plan.stage.name == "detect"))

    def require_space(self) -> None:
        """InputError where the disk cannot hold what is to be written."""
        if self.bytes > self.free_bytes:
            raise InputError(
                f"{self.store}: {in_bytes(self.bytes)} are to be written, {in_bytes(self.free_bytes)} are free; "
                "make room, choose another --store, or take --codec u8, which needs half."
            )


def families_in_use(store: Path) -> dict[str, Family]:
    """Stage -> the family that the store uses; none for a store that is not there yet. Damaged ones are left out."""
    if not (store / STORE_FILE).exists():
        return {}
    found = {}
    for stage, name in read_store_json(store)["current"].items():
        family = _opened(store / name)
        if family is not None:
            found[stage] = family
    return found


def make_plan(
    config: PipelineConfig,
    store: Path,
    shards: Shards,
    stages: Sequence[Stage],
    recipes: Mapping[str, Recipe],
    *,
    workers: int,
    gpu: bool,
    statistics: StatisticsPlan | None = None,
) -> Plan:
    """Plan `stages` (table order) over all photographs of the store.

    recipes: of `stages` and of all they depend on. StoreError where an input that is not asked for is not up to date.
    """
    current = families_in_use(store)
    asked = {stage.name for stage in stages}
    plans = {}
    for stage in with_inputs(stages):
        plans[stage.name] = _stage_plan(
            config, store, shards, recipes[stage.name], current.get(stage.name), workers=workers, gpu=gpu
        )
        if stage.name not in asked:
            _require_input(plans[stage.name], asked)
    return Plan(
        store=store,
        config=config,
        stages=tuple(plans[stage.name] for stage in stages),
        families={name: plan.recipe.family for name, plan in plans.items()},
        statistics=statistics,
        notes=(*_becoming_stale(current, asked, recipes), *_other_versions(store, plans.values())),
        free_bytes=free_bytes(store),
    )


def _stage_plan(
    config: PipelineConfig,
    store: Path,
    shards: Shards,
    recipe: Recipe,
    current: Family | None,
    *,
    workers: int,
    gpu: bool,
) -> StagePlan:
    missing, changed = [], []
    for number, rows in sorted(shards.items()):
        sidecar = _finished(store / recipe.family, number, recipe.fingerprint)
        if sidecar is None:
            missing.append(number)
        elif {row.key: row.sha256 for row in rows if row.key not in sidecar.skipped} != sidecar.images:
            changed.append(number)
    due = tuple(sorted(missing + changed))
    in_use = current is not None and current.fingerprint == recipe.fingerprint
    images_due = sum(len(shards[number]) for number in due)
    columns = bytes_by_column(recipe.stage, config, config.codec)
    return StagePlan(
        recipe=recipe,
        why=_why(recipe, current, total=len(shards), missing=len(missing), changed=len(changed)),
        due=due,
        images_total=sum(map(len, shards.values())),
        images_due=images_due,
        bytes=images_due * sum(columns.values()),
        seconds=images_due * seconds_an_image(recipe.stage, config, gpu=gpu) / max(1, min(workers, len(due))),
        in_use=in_use,
        columns={name: images_due * size for name, size in columns.items()},
    )


def _finished(folder: Path, number: int, fingerprint: str) -> Sidecar | None:
    """The sidecar of a whole shard; None for one that is missing, damaged, or not of this fingerprint."""
    path = folder / f"{shard_name(number)}.json"
    try:
        sidecar = parse_sidecar(path, path.read_bytes(), family_fingerprint=fingerprint)
        return sidecar if path.with_suffix(".tar").stat().st_size == sidecar.bytes else None
    except (FileNotFoundError, NotADirectoryError, DamagedShardError):
        return None


def _why(recipe: Recipe, current: Family | None, *, total: int, missing: int, changed: int) -> str:
    replaced = []
    if current is not None and current.fingerprint != recipe.fingerprint:
        replaced = differences(current.stage_json["hashed"], recipe.hashed)
    if not missing and not changed:
        return f"up to date, made before: {'; '.join(replaced)}" if replaced else "up to date"
    if missing == total:
        return f"stale: {'; '.join(replaced)}" if replaced else "not computed yet"
    parts = [f"stale: {'; '.join(replaced)}"] if replaced else []
    if missing:
        parts.append(f"{missing} of {total} shards missing")
    if changed:
        parts.append(f"{changed} of {total} shards stale: photographs changed")
    return "; ".join(parts)


def _require_input(plan: StagePlan, asked: set[str]) -> None:
    """An input that is not run now must be whole, and the one in use: else what is made from it is stale at birth."""
    if plan.due or not plan.in_use:
        users = [stage.name for stage in STAGES if stage.name in asked and plan.stage.name in stage.needs]
        together = ",".join(stage.name for stage in STAGES if stage.name in {*asked, plan.stage.name})
        state = plan.why if plan.due else "not the one the store uses"
        wanted = f"{users[0]} needs {plan.stage.name}" if users else f"{plan.stage.name} is an input"
        raise StoreError(f"{wanted}, which is {state}; run it too: --stages {together}")


def _becoming_stale(current: Mapping[str, Family], asked: set[str], recipes: Mapping[str, Recipe]) -> list[str]:
    """One line for each stage that is in the store, is not run now, and was made from what is now replaced."""
    renewed: set[str] = {
        name for name in asked if name in current and current[name].fingerprint != recipes[name].fingerprint
    }
    notes = []
    for stage in STAGES:
        if stage.name in current and stage.name not in asked:
            causes = [need for need in stage.needs if need in renewed]
            stale = causes or [need for need in stage.needs if _differs(current, stage.name, need)]
            if stale:
                renewed.add(stage.name)
                verb = "will be" if causes else "is"
                notes.append(
                    f"{stage.name} {verb} stale: made from another {stale[0]}; training refuses it until it is renewed "
                    f"(--stages {stage.name}, or none named)"
                )
    return notes


def _differs(current: Mapping[str, Family], name: str, need: str) -> bool:
    return need in current and current[name].inputs.get(need) != current[need].fingerprint


def _other_versions(store: Path, plans: Iterable[StagePlan]) -> list[str]:
    """One line if kept columns were made with other versions than those installed; no reason to make them again."""
    now = versions()
    changed: dict[str, str] = {}
    stages = []
    for plan in plans:
        made = recorded_of(store, plan.recipe).get("versions", {})
        other = {
            name: f"{name} {made[name]} (now {now[name]})" for name in now if made.get(name, now[name]) != now[name]
        }
        if other:
            stages.append(plan.stage.name)
            changed |= other
    return [f"{', '.join(stages)} made with {', '.join(changed.values())}; kept."] if stages else []


def recorded_of(store: Path, recipe: Recipe) -> dict[str, Any]:
    """What a family's stage.json records beside its hash; {} for one that is not there."""
    family = _opened(store / recipe.family)
    return family.stage_json.get("recorded", {}) if family is not None else {}


def _opened(folder: Path) -> Family | None:
    try:
        return Family.open(folder)
    except StoreError:  # absent or damaged: its shards are made (again)
        return None


def free_bytes(store: Path) -> int:
    """Free bytes of the disk that holds, or will hold, the store."""
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def workers_expected(executor: str, workers: int | None) -> tuple[int, bool]:
    """How many workers a run on this machine would have, and whether they use GPUs; for the estimate only."""
    import torch

    gpus = torch.cuda.device_count()
    if executor == "local":
        return 1, gpus > 0
    return workers or gpus or len(os.sched_getaffinity(0)), gpus > 0

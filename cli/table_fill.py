"""From results to tables: what is planned for the rows, and what was found written into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..model.config import PRESETS
from ..model.methods import method_of
from ..model.parameters import parameter_table
from ..model.references import references_of
from ..model.run import Run
from ..shards.atomic import write_json
from ..shards.errors import InputError, WeakmcnError
from ..shards.records import read_json
from ..shards.store import Store
from .photographs import data_folder, photograph_files
from .speed import BATCH, machine, speeds
from .table_rows import PAPER_DATASETS, PAPER_SPLIT, Row, System, Table
from .table_runs import Planned, Plans, Result, failure_of, result_of
from .table_text import Grid, Value

SAM_MARK, ABSENT_MARK = "†", "‡"
WAYS = {"end_to_end": "from the JPEG", "heads": "heads alone"}
"""What speed.py times; the paper's fps are of the first kind."""
SPEEDS = {"fps": "fps", "p50_ms": "p50, ms", "p95_ms": "p95, ms", "batch_fps": f"fps, batch {BATCH}"}


@dataclass
class Plan:
    """The runs behind some tables, each once."""

    plans: Plans
    seeds: int
    runs: dict[str, Planned] = field(default_factory=dict)
    """By name, all rows of a seed before those of the next."""
    absent: dict[System, str] = field(default_factory=dict)
    """Why a system cannot be trained on its store, with what mends it."""
    _of: dict[tuple[System, int], Planned] = field(default_factory=dict)

    @classmethod
    def of(cls, plans: Plans, tables: Sequence[Table], seeds: int) -> "Plan":
        plan = cls(plans, seeds)
        for seed in range(seeds):
            for row in (row for table in tables for row in table.rows):
                if row.system not in plan.absent:
                    plan._add(row.system, seed, row.label)
        return plan

    def _add(self, system: System, seed: int, label: str) -> None:
        try:
            planned = self.plans.plan(system, seed, label)
        except InputError as fault:
            self.absent[system] = str(fault)
            return
        if system.after:
            self._add(system.after, seed, f"{label}, what it goes on from")
        self._of[system, seed] = self.runs.setdefault(planned.name, planned)

    def of_system(self, system: System) -> list[Planned]:
        """A run a seed; none for a system that is absent."""
        return [] if system in self.absent else [self._of[system, seed] for seed in range(self.seeds)]


def is_the_papers(store: Store, dataset: str, preset: str) -> bool:
    """Whether figures may stand beside the paper's: its photographs, its kind of networks, one of its data sets."""
    return (
        dataset in PAPER_DATASETS
        and preset in PRESETS
        and preset != "pocket"
        and not store.is_pocket
        and set(store.images["source"].to_pylist()) == {"coco"}
    )


@dataclass
class Filler:
    """Fills tables from what was made in a folder."""

    plan: Plan
    out: Path
    splits: Sequence[str]
    data: Path | None
    """Where the photographs are, if somebody said."""
    beside_paper: bool
    device: str

    def grids(self, table: Table) -> list[Grid]:
        """The table; behind it, where speed is told, all that was timed."""
        notes: dict[str, None] = {}
        labels, speed = [], []
        notes |= dict.fromkeys(self._explained(table))
        for row in table.rows:
            faults = self._faults(row.system)
            labels.append(f"{row.label} {ABSENT_MARK}" if faults else row.label)
            notes |= dict.fromkeys(f"{ABSENT_MARK} {row.label}: {fault}" for fault in faults)
            speed.append(self._speed(row, notes) if "speed" in table.costs else None)
        cells = [self._values(table, row, timed) for row, timed in zip(table.rows, speed, strict=True)]
        heads = list(cells[0])
        title = f"Table {table.name}: {table.title}" if table.name.isdecimal() else table.title
        rows = [(label, [values[head] for head in heads]) for label, values in zip(labels, cells, strict=True)]
        grids = [Grid(name=f"table-{table.name}", title=title, heads=heads, rows=rows, notes=list(notes))]
        if any(speed):
            grids.append(self._speed_grid(table, title, speed))
        return grids

    def context(self) -> list[str]:
        """What every table is to be read beside."""
        lines = []
        if not self.beside_paper:
            lines.append(
                "These data are not the paper's (COCO's photographs behind a preset of the paper): its figures are not "
                "shown, for they cannot be compared."
            )
        for split in self.splits:
            every = (result_of(self.out, planned, split) for planned in self.plan.runs.values())
            for result in [result for result in every if result is not None][:1]:
                floor = max(("best_scored", "random", "largest"), key=lambda name: result.baselines[name]["rec_acc50"])
                lines.append(
                    f"{split}: without language REC {_told(result.baselines[floor])} at best ({floor}); with the best "
                    f"candidate there is REC {_told(result.baselines['oracle'])}."
                )
        return lines

    def failed(self) -> list[str]:
        """The runs that could not be made."""
        return [name for name, planned in self.plan.runs.items() if failure_of(self.out, planned)]

    def _faults(self, system: System) -> list[str]:
        """Why figures of a system are missing, if they are."""
        if system in self.plan.absent:
            return [self.plan.absent[system]]
        failures = [failure_of(self.out, planned) for planned in self.plan.of_system(system)]
        return [failure for failure in dict.fromkeys(failures) if failure]

    def _results(self, row: Row, split: str) -> list[Result]:
        found = [result_of(self.out, planned, split) for planned in self.plan.of_system(row.system)]
        return [result for result in found if result is not None]

    def _values(self, table: Table, row: Row, timed: dict[str, Any] | None) -> dict[str, Value]:
        """Head -> figure, the paper's behind ours."""
        ours: dict[str, Value] = {}
        said: dict[str, Value] = {}
        first = self._results(row, self.splits[0])
        if "parameters" in table.costs:
            ours["parameters, M"] = Value(self._parameters(row), 2)
            said["paper: parameters, M"] = _one(row.paper.parameters_m, 2)
        if "training" in table.costs:
            minutes = tuple(result.training_s / 60 for result in first if result.training_s is not None)
            ours["training, min"] = Value(minutes)
            said["paper: training, h"] = _one(row.paper.training_h)
        if "speed" in table.costs:
            ours["fps"] = Value((timed["end_to_end"]["fps"],) if timed else ())
            said["paper: fps"] = _one(row.paper.fps)
        for split in self.splits:
            results = self._results(row, split)
            rec = tuple(result.summary["rec_acc50"] for result in results) if row.rec else ()
            heads = [result.sam_head if row.res == "SAM head" else result.summary for result in results]
            res = tuple(figures["res_miou"] for figures in heads if row.res != "none" and "res_miou" in figures)
            ours |= {f"REC {split}": Value(rec), f"RES {split}": Value(res, mark=_sam_mark(row, res))}
        if PAPER_SPLIT in self.splits:
            dataset = self.plan.plans.dataset
            said["paper: REC"] = _one(row.paper.rec.get(dataset), 2)
            said["paper: RES"] = _one(row.paper.res.get(dataset), 2)
        return ours | (said if self.beside_paper else {})

    def _parameters(self, row: Row) -> tuple[float, ...]:
        planned = self.plan.of_system(row.system)[:1]
        return tuple(parameter_table(each.training.model, each.training.method).total / 1e6 for each in planned)

    def _explained(self, table: Table) -> list[str]:
        """What the heads mean."""
        of = " and ".join(self.splits)
        notes = [f"Percent of all sentences of {of}. REC: box IoU > 0.5. RES: mean IoU of the masks."]
        if self.plan.seeds > 1:
            notes.append(f"Mean ± sample standard deviation over seeds 0 to {self.plan.seeds - 1}.")
        methods = dict.fromkeys(row.system for row in table.rows)
        for planned in [planned for system in methods for planned in self.plan.of_system(system)[:1]]:
            notes += method_of(planned.training.method).remarks(planned.training.model)
        if any(row.res == "SAM head" for row in table.rows):
            notes.append(
                f"{SAM_MARK} the SAM head: SAM's mask of the predicted box; the system itself predicts no mask."
            )
        if "parameters" in table.costs:
            notes.append("Parameters that learn, as the papers count them: without the word table.")
        results = [result for row in table.rows for result in self._results(row, self.splits[0])]
        if "training" in table.costs and results:
            threads = " or ".join(sorted({str(result.threads) for result in results}))
            beside = " or ".join(sorted({str(result.beside) for result in results}))
            notes.append(
                "Training: all epochs of one run, from the columns of the store on. Threads: "
                f"{threads}; other trainings at the same time: {beside}."
            )
        if "speed" in table.costs:
            notes.append(
                "fps: photographs with one expression each, one at a time, from the JPEG to box and mask at its size: "
                f"frozen networks and heads ({machine()})."
            )
        return [*notes, *table.notes, *(table.paper_notes if self.beside_paper else ())]

    def _speed(self, row: Row, notes: dict[str, None]) -> dict[str, Any] | None:
        """What was timed of the first seed's run, now or earlier on this machine; why not goes to the notes."""
        planned = next(iter(self.plan.of_system(row.system)), None)
        if planned is None or result_of(self.out, planned, self.splits[0]) is None:
            return None
        file = self.out / "speed" / f"{planned.name}.json"
        try:
            kept = read_json(file)
            if kept["machine"] == machine():
                return kept
        except (OSError, ValueError, KeyError, TypeError):  # absent, or not ours
            pass
        try:
            store, dataset = self.plan.plans.opened(row.system), planned.training.dataset
            photographs = photograph_files(store, data_folder(store, dataset, self.data))
            references = references_of(store, dataset, self.splits[0])
            timed = speeds(Run.open(planned.training.out), references, photographs, device=self.device)
        except WeakmcnError as fault:
            notes[f"{row.label} was not timed: {fault}"] = None
            return None
        write_json(file, {**timed, "machine": machine()})
        return timed

    def _speed_grid(self, table: Table, title: str, speed: Sequence[dict[str, Any] | None]) -> Grid:
        rows = [
            (f"{row.label}, {told}", [Value((timed[way][name],) if timed else ()) for name in SPEEDS])
            for row, timed in zip(table.rows, speed, strict=True)
            for way, told in WAYS.items()
        ]
        return Grid(
            name=f"table-{table.name}-speed",
            title=f"{title}, speed",
            heads=list(SPEEDS.values()),
            rows=rows,
            notes=[
                f"One expression a photograph ({machine()}). fps, p50 and p95: one at a time. From the JPEG: read, "
                "decoded, frozen networks, heads, box and mask at the photograph's size. Heads alone: from columns "
                "in memory to box and mask on the canvas."
            ],
        )


def _told(figures: Mapping[str, float]) -> str:
    return " and RES ".join(f"{figures[name]:.1f}" for name in ("rec_acc50", "res_miou") if name in figures)


def _one(figure: float | None, digits: int = 1) -> Value:
    return Value() if figure is None else Value((figure,), digits)


def _sam_mark(row: Row, figures: Sequence[float]) -> str:
    return SAM_MARK if row.res == "SAM head" and figures else ""

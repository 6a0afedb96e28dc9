"""What a precompute tells: its plan as a table, what went wrong, how it ended."""

from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.markup import escape

from .estimate import in_bytes, in_words
from .index import IndexReport
from .plain_table import plain_table, with_words
from .plan import Plan, recorded_of
from .statistics import StatisticsPlan
from .tasks import Spent

_SHOWN_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A shard that failed for good."""

    stage: str
    shard: int
    reason: str


@dataclass(kw_only=True)
class Report:
    """What a precompute did."""

    index: IndexReport
    plan: Plan
    dry_run: bool
    images: dict[str, int] = field(default_factory=dict)
    """Stage -> photographs encoded."""
    spent: dict[str, Spent] = field(default_factory=dict)
    """Stage -> where its workers' time went; of two stages made in one pass the first has it."""
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Key -> reason, of photographs that a stage could not encode, in this run or an earlier one."""

    @property
    def skipped(self) -> dict[str, str]:
        """Key -> reason, of all photographs that the store lacks: those that were not indexed, those not encoded."""
        return self.left_out | self.index.skipped

    @property
    def exit_code(self) -> int:
        """0 done, 1 some shards failed, 3 done but photographs were skipped."""
        if self.failures:
            return 1
        return 3 if self.skipped else 0

    def summary(self) -> str:
        """One line that says how it ended."""
        store = self.plan.store
        skipped = f"; {len(self.skipped)} photographs skipped" if self.skipped else ""
        if self.dry_run:
            return f"{store}: planned only, nothing was written{skipped}"
        if self.failures:
            return f"{store}: {len(self.failures)} shards failed, what was finished is kept{skipped}"
        if self.plan.is_done:
            return f"{store}: up to date{skipped}"
        made = ", ".join(f"{stage} {images:,}" for stage, images in self.images.items() if images)
        return f"{store}: images encoded: {made}; {in_bytes(self.bytes)} written{skipped}"


def plan_table(plan: Plan, *, on_ray: bool) -> Group:
    """The plan for people, made for 80 characters; only the state is ever broken over lines."""
    table = plain_table(gap=0)
    for name in ("stage", "column family"):
        table.add_column(name, no_wrap=True)
    table.add_column("state", overflow="fold")
    for name in ("images", "to do", "bytes", "time"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, what: str, why: str, images: int, todo: tuple[str, str, str] | None) -> None:
        colour = "yellow" if todo else "green"
        table.add_row(name, what, f"[{colour}]{escape(why)}[/]", f"{images:,}", *(todo or ("-", "", "")))

    for stage in plan.stages:
        if stage.stage.name == "detect" and plan.statistics is not None:
            add(*_statistics_row(plan.statistics))
        time = f"with {stage.made_with}" if stage.made_with else in_words(stage.seconds)
        todo = (f"{stage.images_due:,}", in_bytes(stage.bytes), time) if stage.due else None
        add(stage.stage.name, stage.recipe.family, stage.why, stage.images_total, todo)
    todo = (
        f"to write {in_bytes(plan.bytes)}, free {in_bytes(plan.free_bytes)}; about {in_words(plan.seconds)}"
        f"{' once Ray has started' if on_ray else ''}, {_how_known(plan)}"
    )
    return with_words(
        table,
        above=f"{plan.store}: {plan.config.side_px} px, codec {plan.config.codec}",
        below="nothing to do" if plan.is_done else todo,
    )


def _how_known(plan: Plan) -> str:
    """How the seconds were found."""
    tried = [stage.probed for stage in plan.stages if stage.due]
    if not tried or not all(tried):
        return "a rough estimate" if not any(tried) else "in part a rough estimate"
    least, most = min(tried), max(tried)
    return f"measured on {least if least == most else f'{least} to {most}'} images"


def _statistics_row(plan: StatisticsPlan) -> tuple[str, str, str, int, tuple[str, str, str] | None]:
    """The pass that comes before the detector: name, whose photographs, state, photographs, what is to do."""
    todo = None if plan.is_whole else (f"{plan.images_due:,}", "", in_words(plan.seconds))
    return "detect-bn", f"of {plan.statistics.dataset}", plan.why, len(plan.images), todo


def tell_plan(console: Console, index: IndexReport, plan: Plan, *, on_ray: bool) -> None:
    for warning in index.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False, soft_wrap=True)
    console.print(plan_table(plan, on_ray=on_ray))
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def tell_device(console: Console, plan: Plan, device: str) -> None:
    """One line if kept shards of a stage that goes on were made on another device; no reason to make them again."""
    for stage in plan.stages:
        made_on = recorded_of(plan.store, stage.recipe).get("device", device)
        if stage.due and stage.images_due < stage.images_total and made_on != device:
            console.print(
                f"note: {stage.stage.name} was begun on {made_on}, goes on on {device}; kept.", highlight=False
            )


def tell_pass(console: Console, stages: str, images: int, seconds: float, spent: Spent) -> None:
    """One line about a pass over the photographs that is over: how long it took, and what its encoders waited for."""
    total = spent.total_s or 1.0
    photos, disk = (f"{100 * idle_s / total:.0f} %" for idle_s in (spent.photos_s, spent.disk_s))
    console.print(
        f"{stages}: {images:,} images in {in_words(seconds)}, encoder idle {100 * spent.idle:.0f} % "
        f"({photos} waiting for photographs, {disk} for the disk)",
        highlight=False,
        soft_wrap=True,
    )


def tell_failures(console: Console, report: Report) -> None:
    for failure in report.failures[:_SHOWN_FAILURES]:
        text = f"{failure.stage}: shard {failure.shard} failed: {failure.reason}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    rest = len(report.failures) - _SHOWN_FAILURES
    if rest > 0:
        console.print(f"and {rest} more shards", highlight=False)
    for key, reason in list(report.left_out.items())[:_SHOWN_FAILURES]:
        console.print(f"left out: {key}, {reason}", markup=False, highlight=False, soft_wrap=True)

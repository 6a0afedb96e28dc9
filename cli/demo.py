"""`weakmcn demo`: the whole system on the pocket world, told in plain words."""

import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .folders import require_own
from .pocket import FlavourName
from .precompute import ExecutorName

if TYPE_CHECKING:
    from rich.console import Console

    from ..model.config import ModelConfig, TrainConfig
    from ..model.evaluate import Evaluation, SentenceRecord
    from ..model.run import Run
    from ..pipeline.pocket.dataset import PocketSummary
    from ..pipeline.pocket.expressions import Flavour
    from ..shards.store import Store
    from .pictures import Answer


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a demo does."""

    images: int
    settings: tuple[str, ...] = ()
    """As `weakmcn train --set`."""


FULL = Size(images=3000)
QUICK = Size(images=900, settings=("train.epochs=7", "model.warm_epochs=2", "model.isl_start_epoch=6"))

SPLITS = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog": ("val", "test"),
}
"""What is measured of each flavour; the picture is of the first."""
DATASET = {"refcoco": "refcoco", "refcoco+": "refcoco+", "refcocog": "refcocog-umd"}
CELLS = 12


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller world and a shorter training.")] = False,
    flavour: Annotated[
        FlavourName,
        typer.Option(help="refcoco: places allowed. refcoco+: appearance only. refcocog: sentences with relations."),
    ] = FlavourName.refcoco_plus,
    images: Annotated[
        int | None,
        typer.Option(help="Photographs of all splits together.", show_default=f"{FULL.images}, --quick {QUICK.images}"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of the training.", show_default="the preset's")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another world and training.")] = 0,
    executor: Annotated[
        ExecutorName, typer.Option(help="Who runs the frozen networks: Ray actors, or this process alone.")
    ] = ExecutorName.ray,
) -> None:
    """See the whole thing work in minutes: no download, no GPU, no data of yours.

    A small world of drawn photographs stands in for RefCOCO. The demo writes it as real files, runs the frozen networks
    over them, trains on the expressions alone, measures, and draws a picture of good and bad answers.

    \b
    Needs    nothing
    Writes   DIR: data, store, run, contact_sheet.png, results.json
    Example  weakmcn demo --quick
             weakmcn demo --out demo-g --flavour refcocog --seed 1

    Interrupted, the same command goes on where it was.
    """
    from ..pipeline.plain_table import plain_console
    from ..pipeline.pocket.dataset import require_pocket

    size = QUICK if quick else FULL
    settings = [*size.settings, f"train.seed={seed}", *([] if epochs is None else [f"train.epochs={epochs}"])]
    data, store_path, run_path = out / "data", out / "store", out / "run"
    require_own(out, {data.name}, "demo")
    model, recipe = _settings(settings)  # raises for one that cannot be
    count = size.images if images is None else images
    _require_same_size(out, quick)
    require_pocket(data, flavour=flavour.value, images=count, seed=seed)
    _require_same_run(run_path, model, recipe)
    console = plain_console()
    story = Story(console)
    dataset, splits = DATASET[flavour.value], SPLITS[flavour.value]

    with story.step(
        "Photographs and expressions",
        "Drawing photographs of shapes, and writing what people might type to name one of them, in the file formats "
        f"of {flavour.value}: JPEGs, COCO annotations, a list of expressions.",
    ):
        summary = _draw(data, flavour.value, count, seed)
    with story.step(
        "What the frozen networks see",
        "Frozen networks look at every photograph once: a detector proposes candidate boxes, DINO and SAM describe the "
        "image, SAM draws a mask for each candidate. None reads an expression. What they see is kept as WebDataset "
        "shards, so training never runs them again.",
    ):
        _precompute(data, dataset, ("train", *splits), store_path, executor.value)
    with story.step(
        "Learning from words alone",
        "A sentence should fit some candidate of its own photograph better than any of another photograph. That "
        "contrast teaches which object is meant; SAM's mask of the chosen candidate teaches the mask head. No "
        "annotated box or mask is read.",
    ):
        run = _train(store_path, dataset, run_path, settings, photographs=summary.splits["train"]["images"])
    with story.step(
        "Measuring",
        f"Only now the annotated boxes and masks are used: every sentence of {', '.join(splits)}, beside answers that "
        "need no language (the floor) and the best choice there is (the ceiling).",
    ):
        store, found = _measure(run, splits)
    with story.step(
        "A picture",
        f"Up to {CELLS} sentences of {splits[0]}, from the best mask to the worst, each of another photograph.",
    ):
        shown = spread(found[0].records, CELLS)
        _draw_sheet(found[0], shown, store, data, out / "contact_sheet.png")
    facts = {"seed": seed, "flavour": flavour.value, "images": summary.images, "quick": quick}
    _write_results(out / "results.json", found, story, facts)
    _tell_end(console, out, found, run, store, data, shown[0] if shown else None)


def _require_same_size(out: Path, quick: bool) -> None:
    """InputError where a finished demo was quick and this one is not, or the other way round."""
    from ..shards.errors import InputError
    from ..shards.records import read_json

    try:
        was_quick = read_json(out / "results.json")["quick"]
    except (OSError, ValueError, KeyError, TypeError):  # not finished
        return
    if was_quick != quick:
        made, say = ("with", "say it again") if was_quick else ("without", "leave it out")
        raise InputError(f"--out {out}: holds a demo that was made {made} --quick; {say}, or choose a new folder.")


def _require_same_run(path: Path, model: "ModelConfig", recipe: "TrainConfig") -> None:
    """ConfigError where an earlier demo trained otherwise; the batch hangs on the data."""
    if (path / "run.json").exists():
        from ..model.run import Run  # brings in torch

        run = Run.open(path)
        asked = replace(recipe, batch=run.train.batch)
        run.check_same({**run.facts, "model": asdict(model), "train": asdict(asked)})


class Story:
    """Tells each step in words, and keeps the seconds it took."""

    def __init__(self, console: "Console") -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextmanager
    def step(self, title: str, what: str) -> Iterator[None]:
        """One step: title and reason before, seconds after."""
        started = time.monotonic()
        self._console.print(f"\n[bold]{len(self.seconds) + 1}  {title}[/]\n{what}")
        yield
        self.seconds[title] = round(time.monotonic() - started, 1)
        self._console.print(f"[dim]{self.seconds[title]:.0f} s[/]")


def spread(records: Sequence["SentenceRecord"], count: int) -> list["SentenceRecord"]:
    """At most `count` records of different photos, evenly spaced over all of them from the best mask to the worst."""
    ordered = sorted(records, key=lambda record: -record.mask_iou)
    taken: dict[str, int] = {}
    for place in range(count):
        wanted = round(place * (len(ordered) - 1) / max(1, count - 1))
        nearest = sorted(range(len(ordered)), key=lambda rank: abs(rank - wanted))
        free = next((rank for rank in nearest if ordered[rank].key not in taken), None)
        if free is not None:
            taken[ordered[free].key] = free
    return [ordered[rank] for rank in sorted(taken.values())]


def _draw(data: Path, flavour: "Flavour", images: int, seed: int) -> "PocketSummary":
    from ..pipeline.plain_table import plain_console
    from ..pipeline.pocket.dataset import write_pocket
    from ..pipeline.progress import Progress

    with Progress(plain_console(stderr=True)) as progress:
        summary = write_pocket(data, flavour=flavour, images=images, seed=seed, progress=progress)
    counts = ", ".join(f"{split} {count['sentences']:,}" for split, count in summary.splits.items())
    told = [f"{images:,} photographs", f"sentences: {counts}", summary.unasked, "was there already" * summary.kept]
    typer.echo(f"{data}: {'; '.join(filter(None, told))}")
    return summary


def _precompute(data: Path, dataset: str, splits: Sequence[str], store: Path, executor: str) -> None:
    from ..pipeline.plain_table import plain_console
    from ..pipeline.precompute import precompute, settings
    from ..shards.errors import StageError

    report = precompute(
        settings(store, preset="pocket"),
        store=store,
        data=data,
        dataset=dataset,
        splits=splits,
        executor=executor,
        console=plain_console(stderr=True),
    )
    if report.failures:
        raise StageError(report.summary())
    typer.echo(report.summary())


def _train(store: Path, dataset: str, run: Path, settings: Sequence[str], *, photographs: int) -> "Run":
    from ..model.train import train
    from ..model.train_settings import TrainSettings

    model, recipe = _settings(settings)
    recipe = replace(recipe, batch=min(recipe.batch, photographs))  # a batch shows no photograph twice
    return train(TrainSettings(store=store, dataset=dataset, out=run, model=model, train=recipe))


def _settings(assignments: Sequence[str]) -> "tuple[ModelConfig, TrainConfig]":
    """The pocket preset with each "section.field=value"; ConfigError as `override` raises it."""
    from ..model.config import preset, train_preset
    from .settings import override

    chosen = override({"model": preset("pocket"), "train": train_preset("pocket")}, assignments)
    return chosen["model"], chosen["train"]


def _measure(run: "Run", splits: Sequence[str]) -> tuple["Store", list["Evaluation"]]:
    from ..model.checkpoint import newest_position
    from ..model.evaluate import evaluate_run
    from ..model.results import keep
    from .evaluate import show

    store = run.open_store()
    position = newest_position(run.checkpoints)
    found = [evaluate_run(run, split, store=store, device="auto") for split in splits]
    if position is not None:
        for each in found:
            keep(run, each, position)
    show(found)
    return store, found


def _draw_sheet(found: "Evaluation", shown: Sequence["SentenceRecord"], store: "Store", data: Path, path: Path) -> None:
    from .pictures import contact_sheet, save_picture

    answers = answers_of(found, shown, store, data)
    subtitle = (
        f"{len(answers)} of {len(found.records):,} sentences, evenly spaced from the best predicted mask to the worst"
    )
    save_picture(contact_sheet(answers, f"weakmcn on {found.called} {found.split}", subtitle), path)
    typer.echo(path)


def answers_of(found: "Evaluation", shown: Sequence["SentenceRecord"], store: "Store", data: Path) -> list["Answer"]:
    """The records as cells of a picture: photo, expression, truth and prediction."""
    import numpy as np

    from ..model.references import references_of
    from ..pipeline.images import read_photo
    from ..shards.codec import rle_decode
    from .pictures import Answer, Marks

    files = dict(zip(store.keys, store.images["file"].to_pylist(), strict=True))
    true_masks = {each.ref_id: each.mask for each in references_of(store, found.dataset, found.split)}

    def marks(box: Sequence[float] | None, mask: str | None, rgb: np.ndarray) -> Marks:
        return Marks(
            box=None if box is None else np.array(box),
            mask=None if mask is None else rle_decode(mask, *rgb.shape[:2]),
        )

    answers = []
    for record in shown:
        rgb = read_photo(data / files[record.key])
        answers.append(
            Answer(
                rgb=rgb,
                expression=record.sentence,
                note=record.miss or f"box IoU {record.box_iou:.2f} · mask IoU {record.mask_iou:.2f}",
                predicted=marks(record.box_photo, record.mask, rgb),
                true=marks(record.truth_photo, true_masks[record.ref_id], rgb),
                right=record.box_iou > 0.5,
            )
        )
    return answers


def _write_results(path: Path, found: Sequence["Evaluation"], story: Story, facts: dict[str, object]) -> None:
    from ..shards.atomic import write_json

    seconds = {"seconds": round(sum(story.seconds.values()), 1), "seconds_of_steps": story.seconds}
    write_json(path, {**{each.split: each.results for each in found}, **facts, **seconds})


def _tell_end(
    console: "Console",
    out: Path,
    found: Sequence["Evaluation"],
    run: "Run",
    store: "Store",
    data: Path,
    best: "SentenceRecord | None",
) -> None:
    """One sentence on the figures, where things are, and what to type next."""
    figures, baselines = found[0].summary, found[0].baselines
    floor = max(baselines[name]["rec_acc50"] for name in ("best_scored", "random", "largest"))
    overlap = f"its masks overlap the true ones by [bold]{figures['res_miou']:.0f} %[/] on average"
    masks = "its masks mean nothing" if run.notes else overlap
    console.print(
        f"\nOf {figures['sentences']:,} sentences of {found[0].split} it found the right box for "
        f"[bold]{figures['rec_acc50']:.0f} %[/] (without language {floor:.0f} %, at best "
        f"{baselines['oracle']['rec_acc50']:.0f} %); {masks}."
    )
    typer.echo(f"\nThe picture:  {out / 'contact_sheet.png'}\nThe figures:  {out / 'results.json'}")
    if best is not None:
        file = store.images["file"][store.keys.index(best.key)].as_py()
        program = "weakmcn" if shutil.which("weakmcn") else sys.argv[0]
        words = [program, "predict", "--run", run.path, "--image", data / file, "--phrase", best.sentence]
        typer.echo(f"\nNext, ask it yourself:\n  {shlex.join(map(str, words))}")

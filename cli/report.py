"""`weakmcn report`: one page about a run: figures, pictures, where it fails and how it was trained."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DatasetOfRun, Device, Split, StoreOfRun

if TYPE_CHECKING:
    from ..model.evaluate import Evaluation
    from ..model.run import Run
    from ..shards.store import Store
    from .cases import Case
    from .report_page import Shown


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")],
    split: Split = "val",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page.", show_default="RUN-SPLIT.html, here")
    ] = None,
    cases: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=500, help="Pictures of the best, the worst and of random answers."),
    ] = 24,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Photographs and annotations.", show_default="where the store was made from"),
    ] = None,
    shards: StoreOfRun = None,
    dataset: DatasetOfRun = None,
    device: Device = "auto",
) -> None:
    """Write one page about a run: results, pictures, what makes it fail, how it was trained.

    \b
    Needs    a run, its store with the split, and the folder of the data
    Writes   FILE: one HTML file without any other, to be opened offline,
             mailed, printed; some 20 KB a picture, 64 KB at most
    Example  weakmcn report demo/run --split val --out report.html

    The page holds the figures of `eval`; accuracy by length of the expression, by objects of the target's class, by
    overlap inside the predicted box, by disagreement of box and mask, by size of the target; the two kinds of failure
    of the paper's supplement, as rules, counted; a gallery that can be searched and filtered; the curves of training;
    what the routers weigh.
    """
    from ..model.evaluate import evaluate_run
    from ..model.journal import read_journal
    from ..model.router import router_weights
    from ..model.run import Run
    from ..pipeline.datasets import ALIASES
    from ..shards.atomic import write_bytes
    from ..shards.errors import ConfigError
    from .photographs import data_folder
    from .report_page import Contents, page

    target = out or Path(f"{run.resolve().name}-{split}.html")
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {target}: the page is HTML; write {target.with_suffix('.html')}.")
    opened = Run.open(run)
    store = opened.open_store(shards)
    name = ALIASES.get(dataset, dataset) if dataset else opened.dataset
    folder = data_folder(store, name, data)
    found = evaluate_run(opened, split, store=store, dataset=name, device=device)
    own_masks = opened.method.predicts_masks(opened.model)
    judged, objects = _cases(found, store, folder, own_masks, opened.method.boxes)
    contents = Contents(
        title=f"{opened.facts['method']} on {found.called} {split}",
        facts=_facts(opened, store),
        evaluation=found,
        cases=judged,
        own_masks=own_masks,
        boxes=opened.method.boxes,
        objects=objects,
        shown=_shown(judged, cases, store, folder, name, split),
        losses=read_journal(opened.metrics),
        router=router_weights(opened, split, store=store, dataset=name, device=device),
    )
    write_bytes(target, page(contents).encode("utf-8"))
    typer.echo(f"wrote {target} ({target.stat().st_size / 1e6:.1f} MB)")


def _facts(run: "Run", store: "Store") -> list[str]:
    from importlib.metadata import version

    columns = ", ".join(f"{stage}-{made_from['fingerprint'][:8]}" for stage, made_from in run.columns.items())
    epochs = "one epoch" if run.train.epochs == 1 else f"{run.train.epochs} epochs"
    return [
        f"run {run.path}, seed {run.train.seed}, {epochs} of batch {run.train.batch}",
        f"store {store.path}: {columns}",
        f"weakmcn {version('weakmcn')}",
    ]


def _cases(found: "Evaluation", store: "Store", folder: Path, own_masks: bool, boxes: bool) -> "tuple[list[Case], str]":
    """Every sentence as a case, and where the other objects come from."""
    from ..pipeline.objects import Thing, things_of
    from .cases import Target, case_of

    rows = [row for row in store.references(found.dataset).to_pylist() if row["split"] == found.split]
    sizes = {row["key"]: (row["height"], row["width"]) for row in store.images.to_pylist()}
    things: Mapping[str, Sequence[Thing]] | None = things_of(folder, found.dataset, {row["key"] for row in rows})
    told = "Other objects: all that are annotated in the photograph."
    if things is None:
        things = {row["key"]: [] for row in rows}
        for row in rows:
            x, y, width, height = row["box"]
            thing = Thing(category=row["category"], box_photo=(x, y, x + width, y + height), mask=row["mask"])
            things[row["key"]] = [*things[row["key"]], thing]
        told = "Other objects: those that references of the split name; this layout of annotations lists no others."
    targets = {
        row["ref_id"]: Target(category=row["category"], mask=row["mask"], size=sizes[row["key"]])
        for row in rows
        if row["key"] in sizes  # not where precompute left the photograph out
    }
    judged = [
        case_of(record, targets[record.ref_id], things[record.key], own_masks=own_masks, boxes=boxes)
        for record in found.records
        if record.ref_id in targets
    ]
    return judged, told


def chosen_cases(cases: "Sequence[Case]", count: int) -> "dict[int, list[str]]":
    """Place of a case -> its groups: the `count` best, worst and random ones, and half as many of each failure.

    Of one photograph the best and the worst have one sentence at most.
    """
    import numpy as np

    from .cases import KINDS

    ranked = sorted(range(len(cases)), key=lambda place: (-cases[place].mask_iou, -cases[place].record.box_iou))
    drawn = np.random.default_rng(0).permutation(len(cases)).tolist()
    asked = {
        "best": (_of_different_photographs(cases, ranked), count),
        "worst": (_of_different_photographs(cases, ranked[::-1]), count),
        "random": (drawn, count),
    }
    for kind in KINDS:
        asked[f"kind{kind}"] = ([place for place in drawn if cases[place].kind == kind], -(-count // 2))
    groups: dict[int, list[str]] = {}
    for name, (places, most) in asked.items():
        for place in list(places)[:most]:
            groups.setdefault(place, []).append(name)
    return groups


def _of_different_photographs(cases: "Sequence[Case]", places: Sequence[int]) -> Iterator[int]:
    seen: set[str] = set()
    for place in places:
        if cases[place].record.key not in seen:
            seen.add(cases[place].record.key)
            yield place


def _shown(
    cases: "Sequence[Case]", count: int, store: "Store", folder: Path, dataset: str, split: str
) -> "list[Shown]":
    import numpy as np

    from ..model.references import references_of
    from ..pipeline.images import read_photo
    from ..shards.codec import rle_decode
    from .photographs import photograph_files
    from .pictures import Marks
    from .report_page import Shown, picture

    files = photograph_files(store, folder)
    masks = {each.ref_id: each.mask for each in references_of(store, dataset, split)}
    found = []
    for place, groups in chosen_cases(cases, count).items():
        case, record = cases[place], cases[place].record
        rgb = read_photo(files[record.key])

        def marks(box: Sequence[float] | None, mask: str | None, size: tuple[int, ...] = rgb.shape[:2]) -> Marks:
            return Marks(box=None if box is None else np.array(box), mask=rle_decode(mask, *size) if mask else None)

        drawn = picture(rgb, marks(record.truth_photo, masks[record.ref_id]), marks(record.box_photo, record.mask))
        found.append(Shown(case=case, groups=groups, picture=drawn))
    return found

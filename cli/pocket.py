"""`weakmcn pocket`: write a small world of drawn photographs in the formats of the real data sets."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class FlavourName(StrEnum):
    """Which data set the expressions are like."""

    refcoco = "refcoco"
    refcoco_plus = "refcoco+"
    refcocog = "refcocog"


def pocket(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set; new, or one that goes on.")],
    flavour: Annotated[
        FlavourName,
        typer.Option(
            help="refcoco: short, places allowed. refcoco+: short, appearance only. refcocog: sentences with relations."
        ),
    ] = FlavourName.refcoco_plus,
    images: Annotated[int, typer.Option(help="Photographs of all splits together, at least 32.")] = 4000,
    seed: Annotated[int, typer.Option(help="Another seed, other photographs; 0 or more.")] = 0,
) -> None:
    """Write a data set to try things on: drawn photographs, expressions, boxes and masks, as real files.

    \b
    Needs    nothing: no network, no GPU, half a minute
    Writes   DIR/images/train2014/*.jpg, DIR/FLAVOUR/instances.json,
             DIR/FLAVOUR/refs(unc).p or refs(umd).p, DIR/pocket.json
    Example  weakmcn pocket data --flavour refcoco+ --images 4000 --seed 1
             weakmcn pocket data --flavour refcocog --images 4000 --seed 1
             (the second joins the first: the same photographs, other sentences)

    A photograph shows three to eight things on a textured ground, which differ in shape, colour, texture and size and
    hide one another in part. About two of them are referred to, each by three sentences that are true of nothing else
    in the photograph.

    The same arguments give the same bytes. A finished data set is kept, an interrupted one is written again, a folder
    with anything else in it is left alone.
    """
    from ..pipeline.plain_table import plain_console, plain_table
    from ..pipeline.pocket.dataset import write_pocket
    from ..pipeline.progress import Progress

    with Progress(plain_console(stderr=True)) as progress:
        summary = write_pocket(root, flavour=flavour.value, images=images, seed=seed, progress=progress)
    table = plain_table()
    for head in ("split", "images", "references", "sentences"):
        table.add_column(head, justify="left" if head == "split" else "right")
    for split, counts in summary.splits.items():
        table.add_row(split, *(f"{counts[name]:,}" for name in ("images", "references", "sentences")))
    plain_console().print(table)
    if summary.unasked:
        typer.echo(f"{summary.unasked}.")
    typer.echo(f"{root}: {'was there already, kept' if summary.kept else 'done'}.")
    words = ["--data", str(root), "--dataset", flavour.value, "--split", "train,val", "--store", "store"]
    typer.echo(f"Next: {shlex.join(['weakmcn', 'precompute', *words])}")

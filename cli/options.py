"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from . import completion

FilledStore = Annotated[
    Path, typer.Option("--shards", "--store", metavar="STORE", help="Folder of the store that precompute filled.")
]
StoreOfRun = Annotated[
    Path | None,
    typer.Option("--shards", "--store", metavar="STORE", help="Folder of the store.", show_default="the run's own"),
]
DatasetOfRun = Annotated[
    str | None,
    typer.Option(
        help="Whose expressions: refcoco, refcoco+, …",
        show_default="the run's own",
        autocompletion=completion.datasets,
    ),
]
Split = Annotated[str, typer.Option(help="val, testA, testB, test or train.", autocompletion=completion.splits)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto is the GPU where there is one.")]
MovedCheckpoints = Annotated[
    list[str] | None,
    typer.Option(metavar="STAGE=FILE", help="Where the weights of a frozen network are now; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead, and nothing else.")]

"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

FilledStore = Annotated[
    Path, typer.Option("--shards", "--store", metavar="STORE", help="Folder of the store that precompute filled.")
]
StoreOfRun = Annotated[
    Path | None,
    typer.Option("--shards", "--store", metavar="STORE", help="Folder of the store.", show_default="the run's own"),
]

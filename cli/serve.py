"""`weakmcn serve`: a page on this machine to try photographs and phrases on."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, MovedCheckpoints


def serve(
    run: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Of this machine; 0 takes any that is free.")
    ] = 8000,
    checkpoint: MovedCheckpoints = None,
    device: Device = "auto",
) -> None:
    """Try photographs and phrases on a page of this machine: choose one, type what to find, see box and mask.

    \b
    Needs    a run, and the weights of the frozen networks behind its store
             (those of pocket ship with the package)
    Writes   nothing; photographs stay in memory, and none is kept
    Example  weakmcn serve --run runs/first

    Only this machine can reach it (127.0.0.1). Ctrl-C ends it. From another machine, open the same address there after:

    \b
    ssh -L 8000:127.0.0.1:8000 HOST
    """
    from ..model.run import Run, device_of
    from .answering import Answerer, frozen_networks
    from .predict import checkpoints_named
    from .server import ADDRESS, Site
    from .who_answers import tell_notes

    opened, where = Run.open(run), str(device_of(device))
    config = frozen_networks(opened, checkpoints_named(checkpoint or ()))
    facts = {"run": str(run), "method": opened.facts["method"], "dataset": opened.called}
    with Site(port, Answerer(opened, config, where), facts) as site:
        tell_notes(opened)
        try:
            typer.echo(f"http://{ADDRESS}:{site.server_port}/   Ctrl-C ends it")
            site.serve_forever()
        except KeyboardInterrupt:  # the way to end it, so no interruption
            typer.echo("ended")

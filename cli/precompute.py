"""`weakmcn precompute`: run the frozen networks once over the photographs and keep what they see."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import completion


class DetectorBn(StrEnum):
    """Where the detector's BatchNorm statistics come from."""

    frozen = "frozen"
    reestimate = "reestimate"


class ExecutorName(StrEnum):
    """Where the work is done."""

    ray = "ray"
    local = "local"


def precompute(
    data: Annotated[Path, typer.Option(help="Folder of the data sets: annotations and photographs.")],
    dataset: Annotated[
        str,
        typer.Option(
            help="refcoco, refcoco+, refcocog-umd, refcocog-google, refclef, …", autocompletion=completion.datasets
        ),
    ],
    store: Annotated[Path, typer.Option(help="Folder of the store; made if it is not there.")],
    split: Annotated[
        str, typer.Option(help="Splits whose photographs are wanted, with commas.", autocompletion=completion.splits)
    ] = "train",
    stages: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas: detect, dino, sam, masks, clip, extra (yours), or all of the program.",
            show_default="detect, dino, sam, masks",
            autocompletion=completion.stages,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Networks and sizes: pocket, refcoco, refcoco-small, sam-b, …",
            show_default="the store's, else pocket for a pocket world and refcoco for photographs",
            autocompletion=completion.frozen_presets,
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="How large maps are kept: f16, bf16, u8 (half the size) or f32 (exact).",
            show_default="the store's, else f16",
            autocompletion=completion.codecs,
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE=FILE",
            help="Weights of a stage; may be repeated.",
            show_default="the store's, else the preset's",
        ),
    ] = None,
    detector_bn: Annotated[
        DetectorBn | None,
        typer.Option(
            help="The detector's BatchNorm statistics: the checkpoint's own, or taken from the training photographs.",
            show_default="the store's, else frozen",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan, measured on 20 photographs or fewer, and write nothing."),
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="With --dry-run: run no network; times are then a rough estimate.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out photographs that cannot be read or encoded; exit code 3.")
    ] = False,
    executor: Annotated[
        ExecutorName, typer.Option(help="Ray actors, or this process alone; the bytes are the same.")
    ] = ExecutorName.ray,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Ray actors.", show_default="one a GPU, else one a core")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster, HOST:PORT, that sees the same files.")
    ] = None,
    insecure_ray: Annotated[
        bool, typer.Option("--insecure-ray", help="Use a cluster that runs without token authentication.")
    ] = False,
    stall_minutes: Annotated[
        float,
        typer.Option(
            metavar="MINUTES",
            min=0.1,
            help="Stop a Ray worker that takes no step for so long, and try its shard again.",
        ),
    ] = 10,
) -> None:
    """Run the frozen networks once over the photographs and keep what they see as WebDataset shards.

    It prints the plan (what is up to date, missing, stale and why), then makes what is missing. Interrupted or killed,
    it loses at most the shards under way: run the same command again. What you do not name stays as the store was made.

    \b
    Needs    annotations and photographs below --data, laid out as by
             `weakmcn pocket` or RefCOCO's download; the weights of the
             preset's networks (those of `pocket` ship with the package)
    Writes   the folder --store: images.parquet, refs-<dataset>.parquet,
             one folder of shards a stage
    Example  weakmcn precompute --data data --dataset refcoco --store store \\
                 --split train,val
             weakmcn precompute --data data --dataset refcoco --store store \\
                 --checkpoint sam=sam_vit_b.pth --dry-run
    """
    from ..shards.lock import refuse_if_held

    if not dry_run:
        refuse_if_held(store)  # at once: importing torch and reading weights takes long

    from ..pipeline.plain_table import plain_console
    from ..pipeline.precompute import precompute, settings

    report = precompute(
        settings(store, data=data, preset=preset, codec=codec, checkpoints=_pairs(checkpoint or [])),
        store=store,
        data=data,
        dataset=dataset,
        splits=_names(split, "--split"),
        stages=None if stages is None else _names(stages, "--stages"),
        detector_bn=detector_bn and detector_bn.value,
        executor=executor.value,
        address=address,
        workers=workers,
        skip_bad=skip_bad,
        dry_run=dry_run,
        probe=dry_run and not no_probe,
        insecure_ray=insecure_ray,
        stall_s=60 * stall_minutes,
        console=plain_console(stderr=True),
        plan_console=plain_console() if dry_run else None,  # then it is the answer
    )
    typer.echo(report.summary())
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _names(text: str, option: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter(f"{option} names nothing.")
    return names


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        stage, sign, file = text.partition("=")
        if not (stage and sign and file):
            raise typer.BadParameter(f"--checkpoint {text}: write STAGE=FILE, for instance sam=sam_vit_b_01ec64.pth.")
        pairs[stage] = file
    return pairs

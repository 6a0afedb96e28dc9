"""`weakmcn convert`: the authors' checkpoint of WeakMCN, RefCLIP or APL as a run that eval and predict use."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import completion

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.convert import Conversion, Entry, Group
    from ..pipeline.config import PipelineConfig

DETECTOR_FILE = "detector.safetensors"
ENCODERS = ("detect", "dino", "sam", "clip")
"""Stages with a frozen network of their own; masks come from sam's."""


def convert(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="The authors' file, as they publish it.")],
    annotations: Annotated[
        Path, typer.Option(metavar="FILE.json", help="The SimREC JSON it was trained with: it numbers the words.")
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; must not hold anything.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Sizes, recipe and frozen networks: refcoco, refcoco-small, …",
            show_default="what fits its shapes",
            autocompletion=completion.presets,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Whose expressions: refcoco, refcocog-umd, …",
            show_default="told by FILE.json's name",
            autocompletion=completion.datasets,
        ),
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Where its own detector goes.",
            show_default=f"RUN/{DETECTOR_FILE}",
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every key, not only the modules.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead, every key in it.")] = False,
) -> None:
    """Turn an official WeakMCN, RefCLIP or APL checkpoint into a run, exactly; a table says what went where.

    \b
    Needs    the checkpoint, and the annotation file that it was trained with
    Writes   RUN: settings, vocabulary, weights, and the checkpoint's own detector
    Example  weakmcn convert det_best.pth --annotations data/anns/refcoco.json \\
                 --out runs/official

    Every key of the checkpoint is mapped to a weight of the run, or frozen (it belongs to an encoder, whose outputs are
    columns of a store here), or dead (it never got a gradient). A key that is none of these is an error.

    A released checkpoint carries a detector with BatchNorm statistics of its own, so the run only works on columns made
    with that one, and refuses another store. Make them with precompute and:

    \b
    --checkpoint detect=RUN/detector.safetensors
    """
    from ..model.convert import DETECTOR, fitting_preset, write_run
    from ..model.convert import convert as converted
    from ..model.origin import Origin
    from ..pipeline.config import preset as networks_of
    from ..pipeline.encoders.weights import load_state
    from ..pipeline.simrec import sentences_in_file_order
    from ..shards.errors import CheckpointError
    from ..shards.fingerprint import file_sha256

    own = detector or out / DETECTOR_FILE
    _require_free(out, own)
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such checkpoint; name the authors' file, det_best.pth for example.")
    dataset = _dataset_of(annotations, dataset)
    state = load_state(checkpoint, mapped=True)
    try:
        method = _system_of(state)
        name = preset or fitting_preset(state, method, dataset)
        made = converted(state, method, name, dataset, sentences_in_file_order(annotations))
    except CheckpointError as fault:
        raise CheckpointError(f"{checkpoint}: {fault}") from fault
    networks = networks_of(name)
    detector_state = {key.removeprefix(DETECTOR): value for key, value in state.items() if key.startswith(DETECTOR)}
    if detector_state:
        _require_detector(detector_state, networks, checkpoint)
    data = _data_of(annotations)
    run = write_run(
        out,
        made,
        Origin(
            checkpoint=checkpoint.name,
            sha256=file_sha256(checkpoint),
            preset=name,
            networks=_settings(made, networks),
            data=str(data) if data else None,
            **(_write_detector(detector_state, own, out) if detector_state else {}),
        ),
    )
    if as_json:
        _print_json(made, run.converted, out)
    else:
        _print_table(made, every)
        _tell_next(made, run.converted, out)


def _require_free(out: Path, detector: Path) -> None:
    from ..shards.errors import InputError

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: holds something already; choose a new folder.")
    if detector.suffix != ".safetensors":
        raise InputError(f"--detector {detector}: is written as safetensors; name it {detector.stem}.safetensors.")
    if detector.exists():
        raise InputError(f"--detector {detector}: is there already; choose another name.")


def _dataset_of(annotations: Path, asked: str | None) -> str:
    """The data set that was named, or whose annotations a file of this name holds."""
    from ..pipeline.datasets import DATASETS, find_dataset
    from ..shards.errors import InputError

    if asked:
        return find_dataset(asked).name
    named = [spec.name for spec in DATASETS.values() if annotations.stem in spec.simrec]
    if not named:
        raise InputError(f"{annotations}: no data set goes by that name; say which it is: --dataset refcoco")
    return named[0]


def _data_of(annotations: Path) -> Path | None:
    """ROOT of ROOT/anns/refcoco.json or ROOT/anns/refcoco/refcoco.json."""
    folders = annotations.absolute().parents
    return next((folder.parent for folder in folders[:2] if folder.name == "anns"), None)


def _system_of(state: "Mapping[str, Tensor]") -> str:
    """Which system's checkpoint this is; CheckpointError naming what it is instead."""
    from ..model.official import system_of
    from ..pipeline.encoders.identify import identify
    from ..shards.errors import CheckpointError

    try:
        return system_of(state)
    except CheckpointError as fault:
        raise CheckpointError(
            f"this is {identify(state)}; a checkpoint of WeakMCN, RefCLIP or APL was asked for, with the network that "
            "they trained in it"
        ) from fault


def _require_detector(state: "Mapping[str, Tensor]", networks: "PipelineConfig", checkpoint: Path) -> None:
    """CheckpointError, naming keys, unless the checkpoint's detector is all of the one its columns are made with."""
    import torch

    from ..pipeline.encoders.weights import require_fit
    from ..pipeline.encoders.yolov3 import YOLOv3

    with torch.device("meta"):
        net = YOLOv3(networks.detect.width, networks.detect.classes, networks.side_px)
    require_fit(net, state, checkpoint, mend=f"--preset {networks.name} does not fit it, or it is damaged")


def _settings(made: "Conversion", networks: "PipelineConfig") -> dict[str, dict[str, Any]]:
    """Stage -> the settings of the frozen networks whose columns the run reads."""
    from ..model.loader import columns_of
    from ..model.methods import method_of
    from ..pipeline.stages import parameters, stage_named

    fields = method_of(made.method).fields(made.model)
    read = {column.partition(".")[0] for column in columns_of(fields).values()}
    return {stage: parameters(stage_named(stage), networks) for stage in ENCODERS if stage in read}


def _write_detector(state: "Mapping[str, Tensor]", path: Path, out: Path) -> dict[str, str]:
    """Write the detector alone; its name, as the run keeps it, and its digest."""
    import hashlib

    from safetensors.torch import save

    from ..shards.atomic import write_bytes

    data = save({key: value.contiguous() for key, value in state.items()})
    write_bytes(path, data)
    name = path.name if path.absolute().parent == out.absolute() else str(path.absolute())
    return {"detector": name, "detector_sha256": hashlib.sha256(data).hexdigest()}


def _print_json(made: "Conversion", origin: Any, out: Path) -> None:
    import json
    from dataclasses import asdict

    facts = {"run": str(out), "method": made.method, "preset": made.preset, "dataset": made.dataset}
    facts |= {"words": len(made.vocabulary), "origin": asdict(origin), "keys": [asdict(entry) for entry in made.ledger]}
    typer.echo(json.dumps(facts, indent=2))


def _print_table(made: "Conversion", every: bool) -> None:
    from ..model.convert import grouped
    from ..pipeline.plain_table import plain_console, plain_table

    table = plain_table(gap=0)
    table.add_column("their module", overflow="fold")
    table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("becomes", overflow="fold")
    for group in grouped(made.ledger):
        table.add_row(group.official, f"{group.tensors:,}", f"{group.parameters:,}", _fate(group))
    console = plain_console()
    console.print(table)
    console.print("frozen: an encoder's; its outputs are columns of the store.", style="dim")
    console.print("dead: no loss ever gave it a gradient; left out.", style="dim")
    for entry in made.ledger if every else ():
        typer.echo(f"{entry.key} -> {_fate(entry)}")  # one a line, however narrow the terminal


def _fate(row: "Entry | Group") -> str:
    return row.becomes if row.fate == "mapped" else f"{row.fate} {row.becomes}".strip()


def _tell_next(made: "Conversion", origin: Any, out: Path) -> None:
    import shlex

    typer.echo(
        f"{out}: {made.method}, preset {made.preset}, {made.dataset}, {len(made.vocabulary):,} rows of words"
        + (f"; its detector: {out / origin.detector}" if origin.detector else "")
    )
    data, store = origin.data or "data", "store"
    if origin.detector is None:
        typer.echo("The checkpoint holds no detector, so nothing tells which one its columns must be made with.")
    named = [] if origin.detector is None else ["--checkpoint", f"detect={out / origin.detector}"]
    words = ["--data", data, "--dataset", made.dataset, "--split", "val", "--store", store, "--preset", made.preset]
    typer.echo("Next:")
    typer.echo(f"  {shlex.join(['weakmcn', 'precompute', *words, *named])}")
    typer.echo(f"  {shlex.join(['weakmcn', 'eval', '--run', str(out), '--shards', store, '--split', 'val'])}")

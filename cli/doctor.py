"""`weakmcn doctor`: one screen about this machine and its weights; and the parameters of a network, counted."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import completion
from .completion import SHIPPED
from .options import AsJson

if TYPE_CHECKING:
    from rich.console import Console

    from ..model.parameters import ParameterTable
    from ..pipeline.encoders.published import Verification
    from ..pipeline.health import Machine

CONVERTED = ("a WeakMCN", "a RefCLIP", "an APL")
"""How the checkpoints that are no frozen networks are called."""
COLOURS = {"verified": "green", "found": "yellow", "differs": "red", "missing": "dim"}
OF_AUTHORS = ("weakmcn", "refclip", "apl")
"""Methods whose modules are those of a released code."""
MAIN_LIBRARIES = ("torch", "torchvision", "timm", "segment-anything", "ray")
"""Told first; the others behind them."""


def doctor(
    weights: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the published checkpoints.")] = Path(
        "weights"
    ),
    ray: Annotated[bool, typer.Option("--ray", help="Start Ray too, and stop it again.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="Count this preset's parameters instead: refcoco, refcoco-small, …",
            autocompletion=completion.presets,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help=f"With --model: {', '.join(SHIPPED)}.", autocompletion=completion.methods),
    ] = "weakmcn",
    as_json: AsJson = False,
) -> None:
    """Look at this machine and at the weights of the frozen networks; or count a network's parameters.

    \b
    Needs    nothing; checkpoints are looked for in --weights
    Writes   nothing
    Example  weakmcn doctor
             weakmcn doctor --model refcoco --method apl

    Exit code 2 if something cannot be used: a library that does not load, a checkpoint that is not what its name says.
    A checkpoint that is missing is told, with the page it comes from, and is no fault: each preset needs a few of them.

    \b
    verified  its digest is the published one
    found     the right network; no digest of it is published
    differs   not the published file; what it is instead is told
    missing   not there
    """
    if model is not None:
        _parameters(model, method, as_json)
        return
    from rich.console import Console

    from ..pipeline import health
    from ..pipeline.encoders.weights import examine
    from ..pipeline.plain_table import plain_console

    waiting = Console(stderr=True)
    with waiting.status("looking around"):
        machine, (shipped, damaged) = health.machine(), health.shipped_faults()
        ray_fault = health.ray_fault() if ray else None
    seen = []
    for path in health.checkpoint_files(weights):
        with waiting.status(f"reading {path}"):
            seen.append(examine(path))
    problems = [
        *(f"{name}: not installed; pip install {name}" for name, known in machine.versions.items() if known is None),
        *(f"{module}: cannot be imported: {fault}" for module, fault in machine.import_faults.items()),
        *([ray_fault] if ray_fault else []),
        *damaged,
        *(f"{each.path}: {each.detail}" for each in seen if each.state == "differs"),
    ]
    facts = {
        "machine": asdict(machine),
        "ray_started": ray and not ray_fault,
        "shipped": {"files": shipped, "faults": damaged},
        "weights": str(weights),
        "checkpoints": [_facts(each, health.presets_of(each)) for each in seen],
        "problems": problems,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        console = plain_console()
        _show_machine(console, machine, shipped=(shipped, len(damaged)), ray_started=facts["ray_started"])
        _show_checkpoints(console, weights, seen)
        _show_problems(console, problems)
    if problems:
        raise typer.Exit(2)


def _facts(seen: "Verification", presets: Sequence[str]) -> dict[str, Any]:
    entry = seen.published
    known = {"file": entry.file, "stage": entry.stage, "page": entry.page, "licence": entry.licence} if entry else {}
    return {"path": str(seen.path), "state": seen.state, "detail": seen.detail, **known, "presets": list(presets)}


def _show_machine(console: "Console", machine: "Machine", *, shipped: tuple[int, int], ray_started: bool) -> None:
    from importlib.metadata import version

    from rich.table import Table

    from ..pipeline.estimate import in_bytes

    versions = dict(machine.versions)
    ray = versions.pop("ray")
    first = [f"{name} {versions.pop(name)}" for name in MAIN_LIBRARIES if name in versions]
    rest = [f"{name} {known}" for name, known in versions.items()]
    memory = "unknown"
    if machine.memory is not None:
        memory = f"{in_bytes(machine.memory)}, {in_bytes(machine.memory_free or 0)} of it free"
    shared = machine.shared_memory_free
    files, damaged = shipped
    rows = {
        "weakmcn": f"{version('weakmcn')}, Python {machine.python}, {machine.system}",
        "libraries": ", ".join(first + rest),
        "GPU": "; ".join(machine.gpus) or "none: everything runs on the processor",
        "processor": f"{machine.cores} cores",
        "memory": memory,
        "disk": f"{in_bytes(machine.disk_free)} free here",
        "Ray": f"{ray}, "
        + ("starts" if ray_started else "not started; weakmcn doctor --ray tries it")
        + (f"; /dev/shm has {in_bytes(shared)} free" if shared is not None else ""),
        "OpenCV": "cannot be imported" if "cv2" in machine.import_faults else "can be imported",
        "pocket": f"{files - damaged} of the {files} shipped networks are whole",
    }
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)


def _show_checkpoints(console: "Console", folder: Path, seen: Sequence["Verification"]) -> None:
    from ..pipeline.health import presets_of
    from ..pipeline.plain_table import plain_table
    from ..pipeline.stages import stage_named

    table = plain_table(gap=0)
    table.add_column("file", overflow="fold")
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("what is known", overflow="fold")
    for each in seen:
        stage = each.published.stage if each.published else ""
        detail = each.detail
        if each.state == "missing":
            only = "" if stage_named(stage).default else f", with --stages {stage} only"
            detail = f"for {_listed(presets_of(each))}{only}"
        if each.published is None and detail.startswith(CONVERTED):
            detail += "; weakmcn convert makes it a run"
        table.add_row(each.path.name, stage, f"[{COLOURS[each.state]}]{each.state}[/]", detail)
    there = "" if folder.is_dir() else ", which is not there"
    console.print(f"\nCheckpoints in {folder}{there}", markup=False, soft_wrap=True, style="bold")
    console.print(table)
    pages: dict[str, list[str]] = {}
    for each in seen:
        if each.published is not None and each.state in ("missing", "differs"):
            pages.setdefault(each.published.page, []).append(each.published.file)
    if pages:
        console.print("\n[bold]Where to get them[/]")
    for page, files in pages.items():
        console.print(", ".join(files), markup=False)
        console.print(f"  {page}", markup=False, soft_wrap=True, style="dim")


def _listed(presets: Sequence[str]) -> str:
    """Names of presets, or those that are not among them where that is shorter."""
    from ..pipeline.config import PRESETS

    others = [name for name in PRESETS if name not in presets]
    if len(others) < len(presets):
        return f"all presets but {', '.join(others)}"
    return ", ".join(presets) or "no preset"


def _show_problems(console: "Console", problems: Sequence[str]) -> None:
    console.print()
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True, style="red")
    if not problems:
        console.print("Nothing is wrong.")


def _parameters(preset: str, method: str, as_json: bool) -> None:
    from ..model.methods import recipe
    from ..model.parameters import nearest_to_the_paper, parameter_table

    config, _ = recipe(method, preset)
    counted = parameter_table(config, method)
    nearest = nearest_to_the_paper().total
    if as_json:
        facts = {"preset": preset, "method": method, "learns": counted.learns, "total": counted.total}
        modules = [asdict(row) | {"total": row.total} for row in counted.rows]
        typer.echo(json.dumps({**facts, "modules": modules, "left_out": counted.left_out}, indent=2))
        return
    _show_parameters(preset, method, counted, nearest)


def _show_parameters(preset: str, method: str, counted: "ParameterTable", nearest: int) -> None:
    from ..model.parameters import PAPER_MILLIONS
    from ..pipeline.plain_table import plain_console, plain_table

    table = plain_table(gap=0, footer=True)
    if method in OF_AUTHORS:
        table.add_column("their module", "sum", no_wrap=True)
        table.add_column("ours", no_wrap=True)
        left_out = counted.total - counted.learns
        for head, total in (("learns", counted.learns), ("left out", left_out), ("theirs", counted.total)):
            table.add_column(head, f"{total:,}", justify="right", no_wrap=True)
        for row in counted.rows:
            counts = (f"{n:,}" if n else "" for n in (row.learns, row.left_out, row.total))
            table.add_row(row.official, row.ours, *counts)
    else:  # a port has modules of its own
        table.add_column("module", "sum", no_wrap=True)
        table.add_column("learns", f"{counted.learns:,}", justify="right", no_wrap=True)
        for row in counted.rows:
            table.add_row(row.ours, f"{row.learns:,}")
    console = plain_console()
    console.print(f"Trainable parameters of {method}, preset {preset}", style="bold")
    console.print(table)
    console.print("Not counted: the word table, which is frozen and as long as the vocabulary.")
    if counted.left_out:
        console.print("Left out, because no loss ever gives them a gradient:")
        for block, size in counted.left_out.items():
            console.print(f"  {block}  {size:,}", markup=False)
    if method == "weakmcn" and preset != "pocket":
        console.print(
            f"The paper says {PAPER_MILLIONS} M (Table 5). No released configuration has that: they have 21.55 M "
            f"(R = 256) and 32.32 M (R = 512). Nearest is refcoco with wrec_dim 1024, as wide as RefCLIP: {nearest:,}."
        )

"""Starting a training on several ranks: processes of our own on this machine, or those that torchrun made.

    weakmcn train --devices 2 ...
    torchrun --nproc-per-node 2 --no-python weakmcn train ...

Our own are started and watched by children.py and meet in a file; torchrun's meet where it says.
"""

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from ..shards.errors import ConfigError, WeakmcnError
from .children import Report, received_order, run_ranks
from .config import TrainConfig
from .methods import method_of
from .ranks import LostRank, Ranks, ToldElsewhere
from .run import Run, device_of
from .sampler import check_ranks
from .train import train
from .train_settings import TrainSettings

PATIENCE_S = 600
"""How long a rank waits for another one's message before it gives up."""
_SERVE = "from weakmcn.model.launch import serve; serve()"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which of the ranks a process is, among all and on its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def place_in(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun gave this process; None where it did not start it, or started it alone.

    ConfigError where its variables say what cannot be.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
    usual = {"LOCAL_RANK": environment["RANK"], "LOCAL_WORLD_SIZE": environment["WORLD_SIZE"]}
    told = {name: environment.get(name, usual.get(name, "")) for name in names.values()}
    said = ", ".join(f"{name}={value}" for name, value in told.items())
    if not all(value.isdecimal() for value in told.values()):
        raise ConfigError(f"{said} in the environment: not four numbers; start with torchrun, or unset them.")
    place = Place(**{field: int(told[name]) for field, name in names.items()})
    if not (place.rank < place.size and place.local_rank < place.local_size <= place.size):
        raise ConfigError(f"{said} in the environment: there is no such rank; start with torchrun, or unset them.")
    if place.size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        raise ConfigError(f"{said} in the environment, but no MASTER_ADDR and MASTER_PORT; start with torchrun.")
    return place if place.size > 1 else None


def train_on(settings: TrainSettings, devices: int = 1, *, notes: Sequence[str] = ()) -> Run | None:
    """Train as `train` does, on as many ranks as are asked for or as torchrun started; one is this process itself.

    devices: ranks on this machine. The run; None from a rank of torchrun that is not the first. Raises what `train`
    raises; WeakmcnError where a rank was killed, when all others have ended too.
    """
    place = place_in(os.environ)
    if devices < 1:
        raise ConfigError(f"devices={devices} must be at least 1.")
    if place and devices > 1:
        raise ConfigError(f"--devices {devices} under torchrun, which has started {place.size} ranks; leave it out.")
    if place:
        settings = replace(settings, device=rank_device(settings.device, place))
        with member(place, settings) as ranks:
            run = train(settings, ranks=ranks, notes=notes)
        return run if ranks.first else None
    if devices == 1:
        return train(settings, notes=notes)
    check_ranks(settings.train.batch, devices, own_negatives=settings.negatives == "local")
    rank_device(settings.device, Place(rank=0, size=devices, local_rank=0, local_size=devices))
    with tempfile.TemporaryDirectory(prefix="weakmcn-") as folder:
        common = {"settings": asdict(settings), "notes": notes, "meeting": Path(folder) / "meeting"}
        places = [Place(rank=rank, size=devices, local_rank=rank, local_size=devices) for rank in range(devices)]
        run_ranks(_SERVE, [{**common, "place": asdict(place)} for place in places], settings.out)
    return Run.open(settings.out)


def rank_device(name: str, place: Place) -> str:
    """The device of a rank: each has its own GPU, or all share the processor. ConfigError where there are too few."""
    device = device_of(name)
    if device.type != "cuda":
        return str(device)
    if ":" in name:
        raise ConfigError(f"device={name!r} is one GPU, for {place.local_size} ranks; say cuda.")
    if place.local_size > torch.cuda.device_count():
        raise ConfigError(
            f"{place.local_size} ranks here, {torch.cuda.device_count()} GPUs; train on as many (--devices "
            f"{torch.cuda.device_count()}), or --device cpu."
        )
    return f"cuda:{place.local_rank}"


@contextmanager
def member(place: Place, settings: TrainSettings, meeting: Path | None = None) -> Iterator[Ranks]:
    """Belong to the ranks for the block. settings: with the rank's own device.

    meeting: a file in which the ranks find each other; None: as torchrun says. LostRank where they do not.
    """
    device = torch.device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            init_method="env://" if meeting is None else f"file://{meeting}",
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=PATIENCE_S),
        )
    except RuntimeError as fault:
        reason = str(fault).splitlines()[0]
        raise LostRank(f"rank {place.rank} of {place.size} cannot meet the others ({reason}); try again.") from fault
    try:
        yield Ranks(rank=place.rank, size=place.size, gather=settings.negatives == "gathered")
    finally:
        dist.destroy_process_group()


def serve() -> NoReturn:
    """Be one of the ranks that `train_on` starts."""
    order = received_order()
    told, place = order["settings"], Place(**order["place"])
    with ExitStack() as stack:
        try:
            settings = TrainSettings(
                **{
                    **told,
                    "model": method_of(told["method"]).settings(**told["model"]),
                    "train": TrainConfig(**told["train"]),
                }
            )
            settings = replace(settings, device=rank_device(settings.device, place))
            ranks = stack.enter_context(member(place, settings, Path(order["meeting"])))
            train(settings, ranks=ranks, notes=order["notes"])
            report = Report()
        except Exception as fault:
            report = report_of(fault)
        sys.stderr.flush()
        # Said before the others see this rank's connections end, so that it is known who was first.
        report.send(order["report_end"])
        os._exit(report.status)


def report_of(fault: Exception) -> Report:
    """What a rank says of its end; the traceback of a bug goes to standard error."""
    if isinstance(fault, WeakmcnError):
        return Report(
            status=fault.exit_code,
            message=str(fault),
            lost=isinstance(fault, LostRank),
            told_elsewhere=isinstance(fault, ToldElsewhere),
        )
    traceback.print_exception(fault)
    return Report(status=1, message=f"{type(fault).__name__}: {fault}; its traceback is above, please report it.")

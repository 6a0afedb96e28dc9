"""Ranks that stay for a module's tests: processes that each do what they are told, by name, and answer in JSON.

`python -m tests.rank_pool RANK SIZE MEETING` is one of them; `Pool` starts them and asks all at once. What they can be
asked for are the functions of this module that take `Ranks` first.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from weakmcn.model.apl import APL
from weakmcn.model.batch import Batch
from weakmcn.model.losses import anchor_contrast
from weakmcn.model.ranks import ALONE, Ranks, RanksDiffer
from weakmcn.model.refclip import RefCLIP
from weakmcn.model.state import TrainState
from weakmcn.model.train import train
from weakmcn.model.tris import TRIS, TrisConfig
from weakmcn.model.tris_segmenter import SegmenterConfig, TRISSegmenter
from weakmcn.model.vocabulary import RESERVED, Vocabulary
from weakmcn.model.weakmcn import WeakMCN
from weakmcn.model.whole_batch import whole_batch
from weakmcn.shards.errors import ConfigError, WeakmcnError

from .equations import TINY, VOCABULARY, make_batch, unlike_any_other

ROOT = Path(__file__).parent.parent
SIZE = 4
"""Expressions of the whole batch."""


class Pool:
    """Ranks in processes of their own."""

    def __init__(self, size: int, meeting: Path) -> None:
        words = [sys.executable, "-m", "tests.rank_pool"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        self._members = [
            subprocess.Popen(
                [*words, str(rank), str(size), str(meeting)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment,
            )
            for rank in range(size)
        ]

    def ask(self, what: Callable, **arguments: Any) -> list[Any]:
        """What every rank answers."""
        for member in self._members:
            assert member.stdin
            print(json.dumps([what.__name__, arguments], default=str), file=member.stdin, flush=True)
        answers = [json.loads(member.stdout.readline()) for member in self._members if member.stdout]
        faults = [answer["fault"] for answer in answers if "fault" in answer]
        assert not faults, faults
        return [answer["answer"] for answer in answers]

    def close(self) -> None:
        for member in self._members:
            member.communicate(timeout=30)
            assert member.returncode == 0


def main(rank: int, size: int, meeting: str) -> None:
    dist.init_process_group(
        "gloo", rank=rank, world_size=size, init_method=f"file://{meeting}", timeout=timedelta(seconds=60)
    )
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"answer": globals()[name](Ranks(rank=rank, size=size), **arguments)}
        except Exception as fault:
            answer = {"fault": f"rank {rank}: {type(fault).__name__}: {fault}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    dist.destroy_process_group()


# One step


def distances(
    ranks: Ranks,
    method: str,
    epoch: int,
    banks: list[str] | None = None,
    dtype: str = "float32",
    owner: list[int] | None = None,
) -> dict:
    """How far losses, gradients and statistics of a step on all ranks are from those of one process, at most.

    owner: the image of each of some expressions; by default each image has one. Gradients are compared in units of the
    largest of them; "rounding" is how far those of one process are from the same in float64.
    """
    batch = make_batch(SIZE, APL_CONFIG) if method == "apl" else make_batch(SIZE)
    if owner is not None:
        words = torch.randint(3, VOCABULARY, (len(owner), TINY.max_tokens), generator=torch.Generator().manual_seed(7))
        batch = replace(batch, tokens=words, owner=torch.tensor(owner))
    batch = replace(batch, pseudo=torch.arange(SIZE * 32, dtype=torch.uint8).view(SIZE, 16, 2))
    alone, shared = (_network(method, banks, getattr(torch, dtype)) for _ in range(2))
    exact = _network(method, banks, torch.float64)
    _step(exact, batch, epoch, ALONE)
    wanted, got = (
        _step(alone, batch, epoch, ALONE),
        _step(whole_batch(shared, ranks), _part(batch, ranks), epoch, ranks),
    )
    gradients = dict(_gradients(alone))
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert gradients.keys() == dict(_gradients(shared)).keys()
    buffers = dict(alone.named_buffers())
    assert buffers.keys() == dict(shared.named_buffers()).keys()
    return {
        "losses": {name: _apart(wanted[name], got[name]) / max(1, abs(float(wanted[name]))) for name in wanted},
        "values": {name: float(value) for name, value in wanted.items()},
        "gradients": max(_apart(gradients[name], gradient) / largest for name, gradient in _gradients(shared)),
        "rounding": max(_apart(gradients[name], gradient) / largest for name, gradient in _gradients(exact)),
        "weights_with_gradient": len(gradients),
        "statistics": max(_apart(buffer, buffers[name]) for name, buffer in shared.named_buffers()),
    }


def local_contrast(ranks: Ranks) -> list[float]:
    """RefCLIP's loss where ranks keep to their own images, and what it should be: of each part of the batch alone."""
    batch, net = make_batch(SIZE), _network("refclip", None, torch.float64)
    sentences, candidates = (part.chunk(ranks.size) for part in net._embed(batch))  # pyright: ignore
    own = [
        anchor_contrast(torch.einsum("bd,akd->bak", said, seen), torch.arange(len(said)))
        for said, seen in zip(sentences, candidates, strict=True)
    ]
    net = whole_batch(_network("refclip", None, torch.float64), ranks)
    got = _step(net, _part(batch, ranks), 0, replace(ranks, gather=False))
    return [got["det"].item(), torch.stack(own).mean().item()]


APL_CONFIG = replace(TINY, banks=(), wrec_dim=16, warm_epochs=2, class_names=("dog", "traffic light", "cat"))


TRIS_SIZES: dict[str, Any] = {k: v for k, v in asdict(TINY).items() if k not in ("banks", "warm_epochs")}
TRIS_WORDS = Vocabulary((*RESERVED, *(str(word) for word in range(VOCABULARY - len(RESERVED)))))


def _network(method: str, banks: list[str] | None, dtype: torch.dtype) -> nn.Module:
    from weakmcn.model.prompts import prompt_words

    torch.manual_seed(3)
    if method == "weakmcn":
        net = WeakMCN(TINY if banks is None else replace(TINY, banks=tuple(banks)), VOCABULARY)
    elif method == "refclip":
        net = RefCLIP(replace(TINY, banks=(), wrec_dim=16), VOCABULARY)
    elif method == "tris-c":
        net = TRIS(TrisConfig(**TRIS_SIZES, tris_dim=12), TRIS_WORDS)
    elif method == "tris-c2":
        net = TRISSegmenter(SegmenterConfig(**TRIS_SIZES, decoder_dims=(12, 10, 8, 6)), TRIS_WORDS)
    else:
        net = APL(APL_CONFIG, Vocabulary.build(prompt_words(APL_CONFIG)))
    unlike_any_other(net)
    return net.to(dtype).train()


def _part(batch: Batch, ranks: Ranks) -> Batch:
    """A rank's images, with the expressions about them."""
    first, last = ranks.rank * SIZE // ranks.size, (ranks.rank + 1) * SIZE // ranks.size
    values = ((field.name, getattr(batch, field.name)) for field in fields(batch))
    part = {name: value[first:last] for name, value in values if value is not None}
    if batch.owner is not None:
        own = (batch.owner >= first) & (batch.owner < last)
        part |= {"tokens": batch.tokens[own], "owner": batch.owner[own] - first}
    return replace(batch, **part)


def _step(net: Any, batch: Batch, epoch: int, ranks: Ranks) -> dict[str, torch.Tensor]:
    losses = net.losses(batch, epoch, ranks=ranks)
    losses.total.backward()
    losses = ranks.sum_step(list(net.parameters()), losses)
    return {field.name: getattr(losses, field.name).detach() for field in fields(losses)}


def _gradients(net: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, weight.grad) for name, weight in net.named_parameters() if weight.grad is not None]


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


# Agreement


def differing(ranks: Ranks, steps: list[int]) -> str:
    """What is said where the ranks are about to take so many steps."""
    try:
        ranks.require_same({"steps done": 7, "steps left": steps[ranks.rank]}, "epoch 3")
    except RanksDiffer as fault:
        return str(fault)
    return ""


def raising(ranks: Ranks, culprits: list[int], turns: bool, notes: str) -> list:
    """How a block ends that the culprits do not pass, and who entered it in which order."""
    try:
        with ranks.in_turn() if turns else ranks.all_or_none():
            with open(notes, "a") as file:
                file.write(str(ranks.rank))
            if ranks.rank in culprits:
                raise ConfigError(f"of rank {ranks.rank}")
    except WeakmcnError as fault:
        return [type(fault).__name__, str(fault), fault.exit_code]
    return []


# A run


class Crash(Exception):  # noqa: N818 - not an error of the program
    """Stands for a kill."""


def run(
    ranks: Ranks,
    store: str,
    out: str,
    model: dict,
    recipe: dict,
    crash: int = 0,
    spoil: list[int] | None = None,
    **more,
) -> dict:
    """Train; crash: all ranks do after this step. spoil: (rank, step), at whose next step its features are NaN."""
    from weakmcn.model.config import ModelConfig, TrainConfig
    from weakmcn.model.train_settings import TrainSettings

    settings = TrainSettings(
        store=Path(store),
        dataset="toy",
        out=Path(out),
        model=ModelConfig(**model),
        train=TrainConfig(**recipe),
        device="cpu",
        **more,
    )
    steps: list[int] = []

    def after_step(state: TrainState) -> None:
        steps.append(state.step)
        if state.step == crash:
            raise Crash
        if spoil == [ranks.rank, state.step]:
            layer = state.net.get_submodule("fusion.project.s32")
            handle = layer.register_forward_hook(lambda module, args, output: (handle.remove(), output * torch.nan)[1])

    try:
        train(settings, ranks=ranks, after_step=after_step)
    except (Crash, WeakmcnError) as fault:
        return {"steps": steps, "fault": type(fault).__name__, "message": str(fault)}
    return {"steps": steps}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

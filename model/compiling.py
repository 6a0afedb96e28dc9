"""Compiling the part of a network that computes maps: on a GPU fewer kernels that pass over memory, and fewer launches.

What is compiled computes the same numbers but for rounding, from the first step on that has its shapes; that step takes
a minute or more. With `graphs` the kernels of a step are launched as one CUDA graph besides. On a processor neither
pays: convolutions are most of a step.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import nn

Compiler = Literal["off", "inductor", "graphs"]
COMPILERS: tuple[str, ...] = get_args(Compiler)


def compile_parts(net: nn.Module, parts: Sequence[str], compiler: str) -> None:
    """Have these modules of the network compiled when they are first called; its tensors and their names stay.

    compiler: one of COMPILERS, or the name of another backend of torch.compile.
    """
    if compiler == "off":
        return
    how = {"mode": "reduce-overhead"} if compiler == "graphs" else {"backend": compiler}
    for part in parts:
        module = getattr(net, part)
        if module is not None:
            module.compile(**how)

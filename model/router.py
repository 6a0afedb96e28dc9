"""How much DVFE's routers trust each bank, over a split."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..shards.store import Store
from .fusion import BankMixer
from .loader import Loader
from .references import references_of
from .run import Run, device_of

TASKS = {"WREC": "rec_banks", "WRES": "res_banks"}
"""Task -> the network's mixer for it."""


def router_weights(
    run: Run, split: str, *, store: Store, dataset: str, batch: int = 64, device: str = "auto"
) -> dict[str, dict[str, np.ndarray]]:
    """Task -> bank -> its weight for each photograph of the split, float32 [images].

    Empty for a system without routers. They see the photograph alone, so each one counts once.
    """
    net = run.network(device=device_of(device))
    mixers = {task: getattr(net, name, None) for task, name in TASKS.items()}
    routed = {task: mixer for task, mixer in mixers.items() if isinstance(mixer, BankMixer)}
    seen: dict[str, list[Tensor]] = {}

    def noting(task: str) -> Callable[[nn.Module, object, Tensor], None]:
        seen[task] = []
        return lambda module, inputs, logits: seen[task].append(logits.softmax(dim=-1).float().cpu())

    for task, mixer in routed.items():
        if mixer.router is not None:
            mixer.router.register_forward_hook(noting(task))
    if not seen:
        return {}
    fields = [field for field in run.method.fields(run.model) if field != "masks"]
    skipped = {key for stage in store.families for key in store.skipped(stage)}
    first = {each.key: each.sentences[each.usable[0]] for each in references_of(store, dataset, split) if each.usable}
    keys = [key for key in first if key not in skipped]
    loader, vocabulary = Loader(store, fields, device=device_of(device)), run.vocabulary
    for start in range(0, len(keys), batch):
        chunk = keys[start : start + batch]
        tokens = np.stack([vocabulary.ids(first[key], run.model.max_tokens) for key in chunk])
        net.predict(loader.batch(chunk, tokens))  # pyright: ignore[reportCallIssue]
    weights = {task: torch.cat(parts).numpy() for task, parts in seen.items()}  # [images, banks] each
    return {task: dict(zip(routed[task].project, each.T, strict=True)) for task, each in weights.items()}

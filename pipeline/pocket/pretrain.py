"""Make the pocket encoders again: `python -m weakmcn.pipeline.pocket.pretrain [detect sam dino clip]`.

Draws a pool of pretraining scenes, trains one network at a time on the CPU and writes `<name>.safetensors` and its row
of `weights.json` (SHA-256, bytes, steps, minutes, figures). Figures are measured on scenes that no network was
trained on. The networks learn what the published ones know and no more; only CLIP ever sees words.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torchvision.ops import box_iou

from ...shards.atomic import finished_file, write_json
from ...shards.fingerprint import file_sha256
from ...shards.geometry import best_boxes
from ..config import preset
from ..encoders.clip import build_clip
from ..encoders.dino import build_dino
from ..encoders.sam import build_sam, decode, embed
from ..encoders.weights import SHIPPED_FOLDER, load_state
from ..encoders.yolov3 import YOLOv3, candidate_cells, normalised
from .expressions import captions
from .learn_clip import Matching, caption_ids, clip_batch
from .learn_detect import detect_batch, detect_loss, rigid
from .learn_dino import SelfDistillation, dino_crops
from .learn_sam import mask_ious, sam_batch, sam_loss
from .pool import Pool, draw_pool

POCKET = preset("pocket")
HALF = ("clip",)
"""Encoders whose weights are written as float16, so that the four together stay under 12 MB."""
HELD_OUT = 10_000_000
"""Number of the first scene that figures are measured on."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one pocket encoder is trained: AdamW, one cycle."""

    steps: int
    batch: int
    scenes: int
    peak_lr: float
    seed: int = 7


RECIPES = {
    "detect": Recipe(steps=2200, batch=32, scenes=8000, peak_lr=3e-3),
    "sam": Recipe(steps=2600, batch=8, scenes=6000, peak_lr=1.5e-3),
    "dino": Recipe(steps=800, batch=32, scenes=8000, peak_lr=1.5e-3),
    "clip": Recipe(steps=600, batch=96, scenes=8000, peak_lr=1.5e-3),
}


def picks(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches of scene numbers, each scene once before any comes again, without end."""
    while True:
        order = rng.permutation(count)
        yield from order[: count // batch * batch].reshape(-1, batch)


def fit(
    parameters: list[nn.Parameter],
    recipe: Recipe,
    step_loss: Callable[[np.ndarray], Tensor],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Run the recipe; `step_loss` gives the loss of a batch of scene numbers, `after` runs behind each step."""
    optimiser = torch.optim.AdamW(parameters, lr=recipe.peak_lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.peak_lr, total_steps=recipe.steps, pct_start=0.1)
    batches = picks(recipe.scenes, recipe.batch, np.random.default_rng(recipe.seed))
    started, mean = time.monotonic(), 0.0
    for step in range(1, recipe.steps + 1):
        loss = step_loss(next(batches))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        schedule.step()
        after()
        mean += (loss.item() - mean) / min(step, 100)
        if step % 100 == 0:
            typer.echo(f"  step {step}/{recipe.steps}  loss {mean:.4f}  {(time.monotonic() - started) / 60:.1f} min")


def learn_detect(pool: Pool, recipe: Recipe) -> nn.Module:
    """The detector of the pocket preset."""
    rng = np.random.default_rng(recipe.seed)
    net = YOLOv3(POCKET.detect.width, POCKET.detect.classes, POCKET.side_px)
    scales = itertools.cycle([(32, 16), (32, 8)])  # the coarsest every step, as only it proposes boxes
    with rigid(net):
        trained = [p for name, p in net.named_parameters() if "conv_offset" not in name]
        fit(
            trained, recipe, lambda batch: detect_loss(net, *detect_batch(pool, batch, rng), next(scales)), lambda: None
        )
    return net


def learn_sam(pool: Pool, recipe: Recipe) -> nn.Module:
    """The Segment Anything of the pocket preset."""
    rng = np.random.default_rng(recipe.seed)
    net = build_sam(POCKET.sam)
    trained = [p for name, p in net.named_parameters() if not name.startswith("prompt_encoder.mask_downscaling")]
    fit(trained, recipe, lambda batch: sam_loss(net, *sam_batch(pool, batch, rng)))
    return net


def learn_dino(pool: Pool, recipe: Recipe) -> nn.Module:
    """The DINO of the pocket preset: its teacher."""
    rng = np.random.default_rng(recipe.seed)
    model = SelfDistillation(build_dino(POCKET.dino))
    fit(
        list(model.trained()),
        recipe,
        lambda batch: model.loss(dino_crops(pool, batch, rng), rng),
        lambda: model.follow(0.99),
    )
    return model.teacher


def learn_clip(pool: Pool, recipe: Recipe) -> nn.Module:
    """The CLIP image tower of the pocket preset."""
    ids = caption_ids(pool.captions)
    model = Matching(build_clip(POCKET.clip), POCKET.clip.channels)
    fit(list(model.parameters()), recipe, lambda batch: model.loss(*clip_batch(pool, batch, ids)))
    return model.image


LEARN = {"detect": learn_detect, "sam": learn_sam, "dino": learn_dino, "clip": learn_clip}


@torch.inference_mode()
def detect_figures(net: nn.Module, pool: Pool) -> dict[str, float]:
    """Share of things for which one of the K candidates has IoU > 0.5, in percent; and that of a cell's best class."""
    assert isinstance(net, YOLOv3)
    found, right, things = 0, 0, 0
    for i in range(len(pool)):
        boxes, classes = _candidates(net, pool.canvases[i])
        iou, which = box_iou(torch.from_numpy(pool.boxes[i]), torch.from_numpy(boxes)).max(dim=1)
        found += int((iou > 0.5).sum())
        right += int((torch.from_numpy(classes)[which] == torch.from_numpy(pool.shapes[i])).sum())
        things += len(iou)
    return {f"recall@{POCKET.detect.keep}": 100 * found / things, "shape_accuracy": 100 * right / things}


@torch.inference_mode()
def sam_figures(net: nn.Module, pool: Pool) -> dict[str, float]:
    """Mean IoU, in percent, of the best-rated mask from true boxes, and from the nearest detected candidate's box."""
    assert isinstance(net, Sam)
    detector = YOLOv3(POCKET.detect.width, POCKET.detect.classes, POCKET.side_px).eval()
    detector.load_state_dict(load_state(SHIPPED_FOLDER / "detect.safetensors"))
    totals = {"mask_iou_true_box": 0.0, "mask_iou_detected_box": 0.0}
    things = 0
    for i in range(len(pool)):
        true = torch.from_numpy(pool.boxes[i])
        found = torch.from_numpy(_candidates(detector, pool.canvases[i])[0])
        nearest = found[box_iou(true, found).argmax(dim=1)]
        truth = torch.from_numpy(pool.unpacked(i))
        pixels = torch.from_numpy(pool.canvases[i])[None].permute(0, 3, 1, 2).float()
        embedding = embed(net, pixels)
        for name, boxes in zip(totals, (true, nearest), strict=True):
            low, predicted = decode(net, embedding, boxes)
            logits = nn.functional.interpolate(low, truth.shape[-2:], mode="bilinear", align_corners=False)
            ious = mask_ious(logits > 0, truth)
            totals[name] += float(ious.gather(1, predicted.argmax(dim=1, keepdim=True)).sum())
        things += len(true)
    return {name: 100 * total / things for name, total in totals.items()}


def _candidates(net: YOLOv3, canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [K, 4] and best class [K] of one canvas [S, S, 3]."""
    grid = net.grid(net.features(normalised(canvas[None], "cpu"))[32])[0]
    kept = grid[candidate_cells(grid[None, ..., 4], POCKET.detect.keep)[0]]
    return best_boxes(kept[..., :5].numpy())[0], kept[..., 5:].mean(dim=1).argmax(dim=1).numpy()


FIGURES: dict[str, Callable[[nn.Module, Pool], dict[str, float]]] = {"detect": detect_figures, "sam": sam_figures}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which encoders; all of them if none is named.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = SHIPPED_FOLDER,
    steps: Annotated[int | None, typer.Option(help="Fewer or more steps than the recipe has.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Pretrain the pocket encoders and write their weights, digests and figures."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    for name in names or list(LEARN):
        recipe = RECIPES[name] if steps is None else replace(RECIPES[name], steps=steps)
        torch.manual_seed(recipe.seed)
        typer.echo(f"{name}: drawing {recipe.scenes} scenes")
        caption = captions if name == "clip" else None
        pool = draw_pool(recipe.scenes, POCKET.side_px, seed=recipe.seed, caption=caption)
        started = time.monotonic()
        net = LEARN[name](pool, recipe).eval()
        minutes = (time.monotonic() - started) / 60
        path = out / f"{name}.safetensors"
        with finished_file(path) as scratch:
            save_file(_written(net, torch.float16 if name in HALF else torch.float32), scratch)
        held_out = draw_pool(500, POCKET.side_px, seed=recipe.seed, first=HELD_OUT)
        figures = FIGURES[name](net, held_out) if name in FIGURES else {}
        record(out / "weights.json", name, path, recipe, minutes, figures)


def _written(net: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict as it is kept: floating-point tensors in `dtype`, counters as they are."""
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def record(table: Path, name: str, path: Path, recipe: Recipe, minutes: float, figures: dict[str, float]) -> None:
    """Put one encoder's row into `weights.json` and print it."""
    rows = json.loads(table.read_text()) if table.exists() else {}
    rows[name] = {
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "steps": recipe.steps,
        "batch": recipe.batch,
        "scenes": recipe.scenes,
        "minutes": round(minutes, 1),
        "figures": {key: round(value, 2) for key, value in figures.items()},
    }
    write_json(table, rows)
    typer.echo(f"{name}: {json.dumps(rows[name])}")


if __name__ == "__main__":
    typer.run(main)

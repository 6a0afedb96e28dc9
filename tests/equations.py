"""The equations of the method pages in numpy: float64, one step after the other in the order of the page.

A second implementation beside the one that is tested, with every branch and resampling where the page has it. It reads
weights under their official names, so it also says that each name means what the authors' code does with it. Section
numbers are those of the page on WeakMCN.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from weakmcn.model.batch import Batch
from weakmcn.model.config import ModelConfig

TINY = ModelConfig(
    side_px=64,
    candidates=3,
    max_tokens=5,
    dark_channels=(6, 8, 10),
    dino_channels=5,
    sam_channels=7,
    clip_channels=4,
    word_dim=6,
    text_dim=8,
    wrec_dim=12,
    wres_dim=8,
    text_heads=2,
    text_layers=2,
    text_ff_dim=10,
    text_flat_dim=4,
    dropout=0.0,
    aspp_dilations=(1, 2, 3),
    isl_threshold=0.06,
    warm_epochs=10,
)
VOCABULARY = 12


def unmoved(net: nn.Module) -> set[str]:
    """Names of the weights that the last backward pass gave no gradient but rounding."""
    return {
        name
        for name, weight in net.named_parameters()
        if weight.requires_grad and (weight.grad is None or weight.grad.abs().max() < 1e-12)
    }


def unlike_any_other(net: nn.Module) -> None:
    """Leaves no weight at a special value: norms scale and shift, running statistics are not 0 and 1."""
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point() and value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.3)


def make_batch(size: int = 4, config: ModelConfig = TINY, seed: int = 1) -> Batch:
    g = torch.Generator().manual_seed(seed)
    side, k = config.side_px, config.candidates

    def maps(channels: int, stride: int) -> torch.Tensor:
        return torch.randn(size, channels, side // stride, side // stride, generator=g)

    tokens = torch.randint(1, VOCABULARY, (size, config.max_tokens), generator=g)
    for row in range(size):
        tokens[row, 1 + row % config.max_tokens :] = 0
    boxes = torch.rand(size, k, 4, 5, generator=g)
    boxes[..., :2] *= side
    boxes[..., 2:4] = boxes[..., 2:4] * side * 0.9 + 4
    # Photos of twice the width and of twice the height in turn.
    letterbox = torch.tensor([[50, 100, side // 2, side, 0, side // 4], [90, 45, side, side // 2, side // 4, 0]])
    return Batch(
        dark_s8=maps(config.dark_channels[0], 8),
        dark_s16=maps(config.dark_channels[1], 16),
        dark_s32=maps(config.dark_channels[2], 32),
        dino=maps(config.dino_channels, 16),
        sam=maps(config.sam_channels, 16),
        clip=maps(config.clip_channels, 16),
        cells=torch.stack([torch.randperm((side // 32) ** 2, generator=g)[:k].sort().values for _ in range(size)]),
        boxes=boxes,
        letterbox=letterbox.repeat(size, 1)[:size],
        tokens=tokens,
        masks=torch.randint(0, 256, (size, k, side, side // 8), generator=g, dtype=torch.uint8),
        classes=torch.rand(size, k, len(config.class_names), generator=g),
        colours=torch.rand(size, k, 3, generator=g) * 255,
    )


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.1 * x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def doubled(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=2).repeat(2, axis=3)


def halved(x: np.ndarray) -> np.ndarray:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def enlarged(x: np.ndarray, factor: int, align_corners: bool) -> np.ndarray:
    """Bilinear, one output pixel after the other."""
    side = x.shape[-1]
    out = np.zeros((*x.shape[:2], side * factor, side * factor))

    def source(pixel: int) -> tuple[int, int, float]:
        centred = max((pixel + 0.5) / factor - 0.5, 0)
        at = pixel * (side - 1) / (side * factor - 1) if align_corners else centred
        low = int(at)
        return low, min(low + 1, side - 1), at - low

    for row in range(side * factor):
        top, bottom, down = source(row)
        for column in range(side * factor):
            left, right, along = source(column)
            upper = x[:, :, top, left] * (1 - along) + x[:, :, top, right] * along
            lower = x[:, :, bottom, left] * (1 - along) + x[:, :, bottom, right] * along
            out[:, :, row, column] = upper * (1 - down) + lower * down
    return out


class Equations:
    """Sections 4 to 13 of the method page on one batch; `w` holds official names."""

    def __init__(self, w: Mapping[str, torch.Tensor], config: ModelConfig, batch: Batch, training: bool) -> None:
        self.w = {name: value.double().numpy() for name, value in w.items()}
        self.config, self.training = config, training
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        self.batch: Any = {name: value.numpy() for name, value in fields.items() if value is not None}
        self.run()

    # Layers.

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def conv(self, name: str, x: np.ndarray, dilation: int = 1) -> np.ndarray:
        weight = self.w[f"{name}.weight"]
        reach = weight.shape[-1] // 2 * dilation
        padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        height, width = x.shape[2:]
        out = np.zeros((len(x), len(weight), height, width))
        for i in range(weight.shape[2]):
            for j in range(weight.shape[3]):
                seen = padded[:, :, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
                out += np.tensordot(weight[:, :, i, j], seen, axes=(1, 1)).swapaxes(0, 1)
        if f"{name}.bias" in self.w:
            out += self.w[f"{name}.bias"][:, None, None]
        return out

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if self.training:
            mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        else:
            mean, variance = self.w[f"{name}.running_mean"], self.w[f"{name}.running_var"]
        gain = self.w[f"{name}.weight"] / np.sqrt(variance + 1e-5)
        return (x - mean[:, None, None]) * gain[:, None, None] + self.w[f"{name}.bias"][:, None, None]

    def cbl(self, name: str, x: np.ndarray, dilation: int = 1) -> np.ndarray:
        return leaky(self.norm(f"{name}.batch_norm", self.conv(f"{name}.conv", x, dilation)))

    def custom_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        mean, std = x.mean(axis=-1, keepdims=True), x.std(axis=-1, ddof=1, keepdims=True)
        return self.w[f"{name}.weight"] * (x - mean) / (std + 1e-6) + self.w[f"{name}.bias"]

    # Section 4.

    def sentence(self, tokens: np.ndarray, name: str = "lang_encoder") -> np.ndarray:
        width, heads = self.config.text_dim, self.config.text_heads
        words = self.w[f"{name}.embedding.weight"][tokens]
        state, states = np.zeros((len(tokens), width)), []
        for t in range(tokens.shape[1]):
            given = words[:, t] @ self.w[f"{name}.lstm.weight_ih_l0"].T + self.w[f"{name}.lstm.bias_ih_l0"]
            kept = state @ self.w[f"{name}.lstm.weight_hh_l0"].T + self.w[f"{name}.lstm.bias_hh_l0"]
            r, z = (sigmoid(given[:, s] + kept[:, s]) for s in (slice(0, width), slice(width, 2 * width)))
            n = np.tanh(given[:, 2 * width :] + r * kept[:, 2 * width :])
            state = (1 - z) * n + z * state
            states.append(state)
        x = np.stack(states, axis=1)
        pads = tokens == 0
        for i in range(self.config.text_layers):
            layer, merged = f"{name}.sa_list.{i}", np.zeros_like(x)
            q, k, v = (self.linear(f"{layer}.mhatt.linear_{part}", x) for part in "qkv")
            d = width // heads
            for head in range(heads):
                s = slice(head * d, (head + 1) * d)
                scores = np.einsum("bid,bjd->bij", q[..., s], k[..., s]) / math.sqrt(d)
                scores = np.where(pads[:, None, :], -1e9, scores)
                merged[..., s] = np.einsum("bij,bjd->bid", softmax(scores), v[..., s])
            x = self.custom_norm(f"{layer}.norm1", x + self.linear(f"{layer}.mhatt.linear_merge", merged))
            hidden = np.maximum(self.linear(f"{layer}.ffn.mlp.fc.linear", x), 0)
            x = self.custom_norm(f"{layer}.norm2", x + self.linear(f"{layer}.ffn.mlp.linear", hidden))
        hidden = np.maximum(self.linear(f"{name}.att_flat.mlp.fc.linear", x), 0)
        scores = np.where(pads, -1e9, self.linear(f"{name}.att_flat.mlp.linear", hidden)[..., 0])
        pooled = np.einsum("bt,btd->bd", softmax(scores), x)
        return self.linear(f"{name}.att_flat.linear_merge", pooled)

    # Sections 8 and 9.

    def fuse(
        self, name: str, s8: np.ndarray, s16: np.ndarray, s32: np.ndarray, outputs: Sequence[str]
    ) -> list[np.ndarray]:
        def pair(where: str, x: np.ndarray) -> np.ndarray:
            return self.cbl(f"{name}.{where}.2", self.cbl(f"{name}.{where}.1", x))

        m1 = np.concatenate([pair("up_modules.1", doubled(s32)), s16], axis=1)
        l1 = np.concatenate([pair("up_modules.0", doubled(m1)), s8], axis=1)
        if list(outputs) == ["s8"]:
            return [self.cbl(f"{name}.bot_proj", l1)]
        m2 = np.concatenate([pair("down_modules.0", halved(l1)), m1], axis=1)
        s1 = np.concatenate([pair("down_modules.1", halved(m2)), s32], axis=1)
        merged = {"s8": ("bot_proj", l1), "s16": ("mid_proj", m2), "s32": ("top_proj", s1)}
        return [self.cbl(f"{name}.{merged[scale][0]}", merged[scale][1]) for scale in outputs]

    def enrich(self, task: str, fused: np.ndarray) -> np.ndarray:
        banks = self.config.banks
        if not banks:
            return fused
        if self.config.dynamic:
            weights = softmax(self.linear(f"linear_router_{task}", fused.mean(axis=(2, 3))))
        else:
            weights = np.full((len(fused), len(banks)), 1 / len(banks))
        out = fused.copy()
        for i, bank in enumerate(banks):
            # Project first, resample afterwards, for every bank and both tasks.
            x = self.batch[bank].astype(np.float64)
            x = self.linear(f"linear_{bank}_{task}", x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            x = halved(x) if task == "rec" else enlarged(x, 2, align_corners=False)
            out += weights[:, i, None, None, None] * x
        return out

    # Sections 7 and 10.

    def position(self) -> np.ndarray:
        boxes, half = self.batch["boxes"], self.config.text_dim // 2
        out = np.zeros((*boxes.shape[:2], self.config.text_dim))
        for b, k in np.ndindex(*boxes.shape[:2]):
            centre = boxes[b, k, :, :2].mean(axis=0, dtype=np.float64) / self.config.side_px
            for part, u in enumerate((centre[1], centre[0])):
                for i in range(half):
                    angle = 2 * math.pi * u * 10000 ** (-2 * (i // 2) / half)
                    out[b, k, part * half + i] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
        return out

    def seen(self, d32: np.ndarray) -> np.ndarray:
        cells = self.batch["cells"]
        out = np.zeros((*cells.shape, self.config.text_dim))
        for b, k in np.ndindex(*cells.shape):
            row, column = divmod(cells[b, k], d32.shape[-1])
            out[b, k] = self.linear("linear_vs", d32[b, :, row, column])
        return out

    def compare(self, candidates: np.ndarray) -> None:
        """Similarity [text, image, candidate], and the best candidate of each text's own image."""
        self.similarity = np.einsum("akd,bd->bak", candidates, self.linear("linear_ts", self.f))
        self.chosen = np.array([own[b].argmax() for b, own in enumerate(self.similarity)])

    def chosen_box(self, b: int) -> np.ndarray:
        """Best box of the chosen candidate, float32, not clipped."""
        four = self.batch["boxes"][b, self.chosen[b]]
        cx, cy, w, h, _ = four[four[:, 4].argmax()]
        x0, y0 = cx - w / np.float32(2), cy - h / np.float32(2)
        return np.array([x0, y0, x0 + w, y0 + h], dtype=np.float32)

    def contrast(self) -> float:
        size, total = len(self.similarity), 0.0
        for b in range(size):
            ranked = np.sort(self.similarity[b], axis=-1)[:, ::-1]  # [image, rank]
            negatives = [ranked[a, 1] for a in range(size) if a != b]
            total -= math.log(math.exp(ranked[b, 0]) / sum(np.exp([*ranked[:, 0], *negatives])))
        return total / size

    # Section 11.

    def modulate(self, i: int, x: np.ndarray) -> np.ndarray:
        name = f"fusion_manner.{i}"
        seen = leaky(self.norm(f"{name}.v_proj.1", self.conv(f"{name}.v_proj.0", x)))
        said = leaky(self.norm(f"{name}.q_proj.1", self.conv(f"{name}.q_proj.0", self.f[:, :, None, None])))
        return leaky(self.norm(f"{name}.norm.0", seen * said))

    def attend(self, y: np.ndarray) -> np.ndarray:
        name, heads, d = "attention_manner", self.config.attention_heads, y.shape[1] // self.config.attention_heads
        q = self.linear(f"{name}.w_qs", self.f)
        kc, kd, v = (self.conv(f"{name}.{key}", y) for key in ("w_kc", "w_kd", "w_vs"))
        o = np.zeros_like(y)
        for b in range(len(y)):
            for head in range(heads):
                s = slice(head * d, (head + 1) * d)
                scores = np.einsum("c,chw->hw", q[b, s], kc[b, s]) / math.sqrt(d)
                pooled = np.einsum("hw,chw->c", softmax(scores.reshape(-1)).reshape(scores.shape), v[b, s])
                gate = sigmoid(np.einsum("c,chw->hw", q[b, s], kd[b, s]) / math.sqrt(d))
                for row, column in np.ndindex(*gate.shape):
                    o[b, s, row, column] = gate[column, row] * pooled
        return leaky(self.norm(f"{name}.layer_norm", self.conv(f"{name}.w_o", o)) + y)

    def segment(self, maps: Sequence[np.ndarray]) -> np.ndarray:
        modulated = [self.modulate(i, x) for i, x in enumerate(maps)]
        (y,) = self.fuse("multi_scale_manner_sup", *modulated, outputs=["s8"])
        z = self.attend(y)
        name = "seg_head.sconv.0"
        branches = [self.cbl(f"{name}.conv0", z)]
        branches += [self.cbl(f"{name}.conv{i + 1}", z, d) for i, d in enumerate(self.config.aspp_dilations)]
        overall = self.cbl(f"{name}.conv4", z.mean(axis=(2, 3), keepdims=True))
        branches.append(np.broadcast_to(overall, z.shape))
        return enlarged(self.conv(f"{name}.out_proj", np.concatenate(branches, axis=1)), 8, align_corners=True)[:, 0]

    # Section 13.

    def mask_terms(self, epoch: int) -> tuple[float, float, list[int]]:
        side, bce, scl, kept = self.config.side_px, 0.0, 0.0, []
        for b, z in enumerate(self.logits):
            target = np.unpackbits(self.batch["masks"][b, self.chosen[b]], axis=-1)
            p = sigmoid(z)
            _, _, nh, nw, dx, dy = (np.float32(v) for v in self.batch["letterbox"][b])
            x0, y0, x1, y1 = self.chosen_box(b)
            x0, x1 = np.clip(x0, dx, dx + nw), np.clip(x1, dx, dx + nw)
            y0, y1 = np.clip(y0, dy, dy + nh), np.clip(y1, dy, dy + nh)
            box = np.zeros((side, side))
            box[int(y0) : int(y1 + np.float32(1)), int(x0) : int(x1 + np.float32(1))] = 1
            inside, either = ((p > 0.5) & (box > 0)).sum(), ((p > 0.5) | (box > 0)).sum()
            weight = 1
            if self.config.isl and epoch >= self.config.isl_start_epoch:
                weight = int(either > 0 and inside / either > self.config.isl_threshold)
            kept.append(weight)
            bce -= weight * np.where(target > 0, np.log(p), np.log(1 - p)).mean()
            for axis in (0, 1):
                shadow, wanted = p.max(axis=axis), box.max(axis=axis)
                dice = 2 * (shadow * wanted).sum() / ((shadow**2).sum() + (wanted**2).sum() + 1e-5)
                scl += (1 - dice) / len(self.logits)
        return bce, scl if self.config.scl else 0.0, kept

    def dark(self) -> list[np.ndarray]:
        return [self.batch[name].astype(np.float64) for name in ("dark_s8", "dark_s16", "dark_s32")]

    def run(self) -> None:
        self.f = self.sentence(self.batch["tokens"])
        f8, f16, f32 = self.fuse("multi_scale_manner", *self.dark(), outputs=["s8", "s16", "s32"])
        d32, d8 = self.enrich("rec", f32), self.enrich("res", f8)
        self.compare(self.seen(d32) + self.position())
        self.logits = self.segment([d8, f16, d32])


def close(ours: torch.Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=tolerance, atol=tolerance)

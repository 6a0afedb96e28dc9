"""Segment Anything (Kirillov et al. 2023) from the `segment-anything` package, and the two stages that use it.

A stage takes the family that the configuration names: SAM, or EfficientSAM (efficient_sam.py). Either sees the same
square as every other network, made straight from the photograph at the family's own resolution, so that embedding, box
prompts and masks share the canvas with every column. Boxes are scaled by image_px / S.

    embedding   [C, S/16, S/16]   image embedding; SAM's resampled to the canvas grid (bilinear, antialiased)
    masks       [K, S, S] bool    for each candidate box the multimask output of best predicted IoU, threshold 0
"""

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from ...shards.codec import pack_masks
from ..config import PipelineConfig, SamConfig
from ..images import Photo
from .efficient_sam import EfficientSamModel, VitNorm
from .sam_attention import RelativeAttention
from .weights import frozen
from .yolov3 import prompt_boxes


def build_sam(config: SamConfig) -> Sam:
    """The published architecture at the sizes of `config`; keys and shapes of ViT-B, L and H are the official ones."""
    grid = config.image_px // config.patch_px
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=config.image_px,
            patch_size=config.patch_px,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=4,
            out_chans=config.channels,
            qkv_bias=True,
            norm_layer=VitNorm,
            use_rel_pos=True,
            window_size=config.window,
            global_attn_indexes=config.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=config.channels,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_px, config.image_px),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=config.channels,
                mlp_dim=config.decoder_mlp,
                num_heads=config.decoder_heads,
            ),
            transformer_dim=config.channels,
            iou_head_depth=3,
            iou_head_hidden_dim=config.channels,
        ),
    )
    for block in sam.image_encoder.blocks:
        block.attn = RelativeAttention(block.attn)  # type: ignore[arg-type]
    return sam


class SamModel:
    """A frozen SAM on one device: image encoding, chunked box prompting."""

    def __init__(self, config: SamConfig, device: str) -> None:
        self.config = config
        self.device = device
        self.net = frozen(build_sam(config), config.checkpoint, device)

    def embed(self, photos: list[Photo]) -> Tensor:
        """Image embeddings at SAM's own grid: [B, C, G, G]."""
        squares = np.stack([photo.letterbox.image(photo.rgb, self.config.image_px) for photo in photos])
        return embed(self.net, torch.from_numpy(squares).to(self.device).permute(0, 3, 1, 2).float())

    def masks(self, embedding: Tensor, boxes_canvas: np.ndarray, side_px: int) -> tuple[Tensor, Tensor]:
        """Masks bool [K, S, S] and predicted IoU [K] for boxes [K, 4] (x0 y0 x1 y1, canvas pixels) of one image.

        embedding: [C, G, G]. Of the three multimask outputs the one with the best predicted IoU; a pixel belongs to the
        mask where its logit, resampled bilinearly, is above 0.
        """
        boxes = torch.from_numpy(boxes_canvas).to(self.device) * (self.config.image_px / side_px)
        masks, ious = [], []
        for chunk in boxes.split(self.config.boxes_chunk):
            logits, iou = decode(self.net, embedding[None], chunk)
            best = iou.argmax(dim=1)
            low = logits[torch.arange(len(best), device=best.device), best][:, None]  # [n, 1, 4G, 4G]
            masks.append(F.interpolate(low, (side_px, side_px), mode="bilinear", align_corners=False)[:, 0] > 0)
            ious.append(iou.amax(dim=1))
        return torch.cat(masks), torch.cat(ious)


def embed(sam: Sam, pixels: Tensor) -> Tensor:
    """Image embeddings [B, C, G, G] of squares float [B, 3, s, s], RGB of 0..255 at SAM's own side."""
    mean, deviation = sam.get_buffer("pixel_mean"), sam.get_buffer("pixel_std")
    return sam.image_encoder((pixels - mean) / deviation)


def decode(sam: Sam, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Low-resolution logits [n, 3, 4G, 4G] and predicted IoU [n, 3] of n box prompts on one image [1, C, G, G]."""
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    return sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )


def prompted_model(config: SamConfig, device: str) -> SamModel | EfficientSamModel:
    """The network of the configured family, with its weights."""
    return EfficientSamModel(config, device) if config.family == "efficient_sam" else SamModel(config, device)


class SamEncoder:
    """Stage `sam`: the image embedding on the canvas grid."""

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.batch = config.sam.batch
        self._side = config.side_px
        self._sam = prompted_model(config.sam, device)

    @torch.inference_mode()
    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Field embedding of each photo. `inputs` is not read."""
        del inputs
        return _on_canvas_grid(self._sam.embed(photos), self._side)


class MaskEncoder:
    """Stage `masks`: one mask for each candidate box.

    SAM encodes the image again, because its stored embedding is resampled; EfficientSAM decodes from the stored one,
    its rounding by the codec included.
    """

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.batch = config.sam.batch
        self._side = config.side_px
        self._stored = "sam.embedding" in config.sam.mask_inputs
        self._device = device
        self._sam = prompted_model(config.sam, device)

    @torch.inference_mode()
    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Fields bits and iou of each photo. `inputs` needs the columns that `SamConfig.mask_inputs` names."""
        return _drawn(self._sam, self._embeddings(photos, inputs), photos, inputs, self._side)

    def _embeddings(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> Tensor:
        if not self._stored:
            return self._sam.embed(photos)
        stored = np.stack([columns["sam.embedding"] for columns in inputs])
        return torch.from_numpy(stored).to(self._device).float()


class SamAndMaskEncoder:
    """Stages `sam` and `masks` in one pass over the photographs, where both start from SAM's own embedding."""

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.batch = config.sam.batch
        self._side = config.side_px
        self._sam = prompted_model(config.sam, device)

    @torch.inference_mode()
    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Fields embedding, bits and iou of each photo. `inputs` needs detect.boxes."""
        embeddings = self._sam.embed(photos)
        masks = _drawn(self._sam, embeddings, photos, inputs, self._side)
        return [one | other for one, other in zip(_on_canvas_grid(embeddings, self._side), masks, strict=True)]


def _on_canvas_grid(embeddings: Tensor, side_px: int) -> list[dict[str, np.ndarray]]:
    """Field embedding of each image, resampled to [C, S/16, S/16] where it has another grid."""
    size = (side_px // 16, side_px // 16)
    if embeddings.shape[2:] != size:
        embeddings = F.interpolate(embeddings, size, mode="bilinear", align_corners=False, antialias=True)
    return [{"embedding": embedding.cpu().numpy()} for embedding in embeddings]


def _drawn(
    sam: SamModel | EfficientSamModel,
    embeddings: Tensor,
    photos: list[Photo],
    inputs: list[dict[str, np.ndarray]],
    side_px: int,
) -> list[dict[str, np.ndarray]]:
    """Fields bits and iou of each photo, for the boxes in its column detect.boxes."""
    records = []
    for photo, embedding, columns in zip(photos, embeddings, inputs, strict=True):
        masks, iou = sam.masks(embedding, prompt_boxes(photo, columns["detect.boxes"]), side_px)
        records.append({"bits": pack_masks(masks.cpu().numpy()), "iou": iou.cpu().numpy()})
    return records

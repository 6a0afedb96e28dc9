"""Large maps as float16, bfloat16, 8 bits a value or float32; masks as packed bits or COCO run lengths.

A codec turns one float map [C, H, W] into named parts, each stored as a member of its own:

    f16    ""      float16 [C, H, W]   exact enough to be the default: relative L2 error 2e-4
    bf16   ""      uint16  [C, H, W]   the upper half of the float32, rounded to nearest even
    u8     ""      uint8   [C, H, W]   affine: value = zero + scale * stored, a channel of an image at a time
           _scale  float32 [C]
           _zero   float32 [C]
    f32    ""      float32 [C, H, W]   as computed, twice the bytes: where nothing at all may change

Masks: the K masks of an image are packed along their last axis, first pixel in the highest bit (numpy.packbits), and
compressed as one zstd frame.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from .choices import not_known
from .columns import Field
from .errors import DamagedShardError, StageError

CODECS = ("f16", "bf16", "u8", "f32")

_PARTS: dict[str, dict[str, str]] = {
    "f16": {"": "float16"},
    "bf16": {"": "uint16"},
    "u8": {"": "uint8", "_scale": "float32", "_zero": "float32"},
    "f32": {"": "float32"},
}


def check_codec(codec: str) -> str:
    """The codec itself, or ConfigError naming those that exist."""
    if codec not in CODECS:
        raise not_known(f"codec {codec!r}", codec, CODECS)
    return codec


def stored_members(field: Field, codec: str) -> dict[str, str]:
    """The members that hold a field, name -> numpy dtype: {"s8": "uint8", "s8_scale": "float32", ...}."""
    if not field.coded:
        return {field.name: field.numpy_dtype}
    return {field.name + suffix: dtype for suffix, dtype in _PARTS[check_codec(codec)].items()}


def encode(codec: str, array: np.ndarray, *, name: str = "array") -> dict[str, np.ndarray]:
    """The parts of a float map [C, H, W] by suffix; StageError, with `name`, if a value is not finite or too large."""
    check_codec(codec)
    if codec == "f16":
        return {"": to_float16(array, name=name)}
    values = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(values, name=name)
    if codec == "f32":
        return {"": values}
    if codec == "bf16":
        return {"": _to_bfloat16(values, name)}
    return _to_affine(values, name)


def decode(codec: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Undo `encode`: float16 for f16, float32 for the others; leading axes (a batch) are allowed in every part."""
    check_codec(codec)
    stored = parts[""]
    if codec in ("f16", "f32"):
        return stored
    if codec == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    values = stored.astype(np.float32)
    values *= parts["_scale"][..., None, None]
    values += parts["_zero"][..., None, None]
    return values


def to_float16(array: np.ndarray, *, name: str = "array") -> np.ndarray:
    """float16 of a float array of any shape; StageError if a value is not finite or leaves float16's range."""
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(array, dtype=np.float16)
    if not np.isfinite(half).all():
        check_finite(np.asarray(array), name=name)
        largest = float(np.abs(array).max())
        raise StageError(f"{name}: a value of {largest:g} is beyond float16 (65504); use --codec bf16 or u8.")
    return half


def check_finite(array: np.ndarray, *, name: str = "array") -> None:
    """StageError naming the array and how many of its values are NaN or infinite, if any is."""
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise StageError(f"{name}: {bad} of {array.size} values are NaN or infinite; check the weights and the image.")


def _to_bfloat16(values: np.ndarray, name: str) -> np.ndarray:
    bits = values.view(np.uint32)
    # Half of the lowest kept bit, one less where that bit is even: ties go to even.
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise StageError(f"{name}: a value of {float(np.abs(values).max()):g} is beyond bfloat16.")
    return rounded


def _to_affine(values: np.ndarray, name: str) -> dict[str, np.ndarray]:
    if values.ndim != 3:
        raise ValueError(f"{name}: codec u8 takes [C, H, W], not {values.shape}")
    zero = values.min(axis=(1, 2))  # [C]
    with np.errstate(over="ignore"):
        scale = (values.max(axis=(1, 2)) - zero) / np.float32(255)  # [C]
    if not np.isfinite(scale).all():
        raise StageError(f"{name}: the range of a channel is beyond float32; use --codec bf16.")
    step = np.where(scale > 0, scale, np.float32(1))  # a constant channel stores zeros and is exact
    steps = np.rint((values - zero[:, None, None]) / step[:, None, None])
    return {"": np.clip(steps, 0, 255).astype(np.uint8), "_scale": scale, "_zero": zero}


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """bool [K, S, S] -> uint8 [n]: one zstd frame of the bits packed along the last axis; same masks, same bytes."""
    packed = np.packbits(np.asarray(masks, dtype=bool), axis=-1)
    frame = pa.Codec("zstd", compression_level=3).compress(packed.tobytes(), asbytes=True)
    return np.frombuffer(frame, dtype=np.uint8)


def unpack_masks(frame: np.ndarray, count: int, side: int) -> np.ndarray:
    """uint8 [n] -> uint8 [K, S, S/8], still packed; DamagedShardError if it is not a frame of exactly that many."""
    row_bytes = -(-side // 8)
    size = count * side * row_bytes
    try:
        data = pa.Codec("zstd").decompress(np.ascontiguousarray(frame), decompressed_size=size)
    except (OSError, pa.ArrowException) as error:
        raise DamagedShardError(f"masks: not a zstd frame of {count} masks of {side} pixels: {error}.") from error
    if data.size != size:
        raise DamagedShardError(f"masks: {data.size} bytes in the frame, {count} masks of {side} pixels have {size}.")
    return np.frombuffer(data, dtype=np.uint8).reshape(count, side, row_bytes)


def rle_encode(mask: np.ndarray) -> str:
    """bool [h, w] -> COCO's compressed run lengths (the `counts` of pycocotools, as text)."""
    counts = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts if isinstance(counts, str) else counts.decode("ascii")


def rle_decode(counts: str, height: int, width: int) -> np.ndarray:
    """COCO's compressed run lengths -> bool [h, w]; DamagedShardError if they do not cover the image exactly.

    Read here rather than by pycocotools, which trusts the runs and writes past its buffer when they are wrong.
    """
    runs = _run_lengths(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise DamagedShardError(f"mask: run lengths do not cover {height} x {width} pixels exactly.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def rle_area(counts: str) -> int:
    """Pixels of a mask in COCO's compressed run lengths, whatever the size of its image."""
    return sum(_run_lengths(counts)[1::2])


def _run_lengths(counts: str) -> list[int]:
    """Numbers of five bits a character, lowest first, the sixth bit says that more follow.

    From the fourth on they are differences to the run two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for code in map(ord, counts):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:  # a number without end would take time without end
            raise DamagedShardError(f"mask: {chr(code)!r} cannot stand there in COCO's run lengths.")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise DamagedShardError("mask: the run lengths end in the middle of a number.")
    return runs

"""Maps lose no more than their codec promises; masks lose nothing; values that cannot be stored are named."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from weakmcn.shards.codec import CODECS, decode, encode, pack_masks, rle_decode, rle_encode, unpack_masks
from weakmcn.shards.errors import ConfigError, DamagedShardError, StageError

properties = settings(max_examples=40, deadline=None, database=None)
seeds = st.integers(0, 2**32 - 1)


def leaky_map(seed: int) -> np.ndarray:
    """float32 [16, 24, 24] as a detector's leaky ReLU leaves it, channels of very different strength."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((16, 24, 24)) * np.exp(rng.standard_normal((16, 1, 1)))
    return np.where(values > 0, values, 0.1 * values).astype(np.float32)


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize(("codec", "bound"), [("f16", 3e-4), ("bf16", 2.5e-3), ("u8", 0.01)])
@properties
@given(seed=seeds)
def test_a_map_comes_back_within_the_codecs_error(codec: str, bound: float, seed: int) -> None:
    values = leaky_map(seed)
    found = decode(codec, encode(codec, values))
    assert found.shape == values.shape
    assert relative_error(found, values) <= bound


@properties
@given(values=hnp.arrays(np.float32, (3, 5, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_keeps_every_bit(values: np.ndarray) -> None:
    (stored,) = encode("f32", values).values()
    found = decode("f32", {"": stored})
    assert found.dtype == np.float32
    assert found.tobytes() == values.tobytes()  # signed zeros and subnormals too


@properties
@given(values=hnp.arrays(np.float32, (3, 5, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_8_bits_are_within_half_a_step_of_each_channel(values: np.ndarray) -> None:
    found = decode("u8", encode("u8", values))
    step = np.ptp(values.astype(np.float64), axis=(1, 2)) / 255
    size = np.abs(values).max(axis=(1, 2)).astype(np.float64)
    assert (np.abs(found - values.astype(np.float64)).max(axis=(1, 2)) <= 0.5 * step + 1e-6 * size + 1e-44).all()


def test_a_constant_channel_is_exact_in_8_bits() -> None:
    values = np.full((2, 3, 3), -7.3, dtype=np.float32)
    np.testing.assert_array_equal(decode("u8", encode("u8", values)), values)


@properties
@given(bits=hnp.arrays(np.uint32, (1, 4, 8)))
def test_bf16_rounds_as_torch_does(bits: np.ndarray) -> None:
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16)
    if not torch.isfinite(expected).all():
        with pytest.raises(StageError):
            encode("bf16", values)
        return
    stored = encode("bf16", values)
    np.testing.assert_array_equal(stored[""], expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(decode("bf16", stored), expected.float().numpy())


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_is_decoded_as_its_images_are(codec: str) -> None:
    images = [encode(codec, leaky_map(seed)) for seed in range(3)]
    batch = decode(codec, {suffix: np.stack([parts[suffix] for parts in images]) for suffix in images[0]})
    np.testing.assert_array_equal(batch, np.stack([decode(codec, parts) for parts in images]))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(codec: str, bad: float) -> None:
    values = leaky_map(0)
    values[3, 2, 1] = bad
    with pytest.raises(StageError, match=r"s32: 1 of 9216 values"):
        encode(codec, values, name="s32")


def test_a_value_beyond_float16_is_refused_and_told_what_to_use() -> None:
    values = leaky_map(0)
    values[0, 0, 0] = 1e5
    with pytest.raises(StageError, match=r"s8: .*100000.*--codec bf16"):
        encode("f16", values, name="s8")


def test_an_unknown_codec_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="f16, bf16, u8, f32"):
        encode("fp8", leaky_map(0))


@properties
@given(seed=seeds, count=st.integers(0, 6), side=st.sampled_from([8, 32, 96]), share=st.floats(0, 1))
def test_packed_masks_come_back_bit_for_bit(seed: int, count: int, side: int, share: float) -> None:
    masks = np.random.default_rng(seed).random((count, side, side)) < share
    frame = pack_masks(masks)
    packed = unpack_masks(frame, count, side)
    assert (frame.dtype, packed.dtype, packed.shape) == (np.uint8, np.uint8, (count, side, side // 8))
    np.testing.assert_array_equal(np.unpackbits(packed, axis=-1), masks)
    np.testing.assert_array_equal(pack_masks(masks), frame)


def test_the_first_pixel_is_the_highest_bit() -> None:
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[0, 0, 0] = True
    assert unpack_masks(pack_masks(masks), 1, 8)[0, 0].tolist() == [0b10000000]


def test_a_frame_that_is_cut_or_holds_another_number_of_masks_is_refused() -> None:
    frame = pack_masks(np.random.default_rng(0).random((3, 32, 32)) < 0.5)
    for wrong, count in [(frame[:-3], 3), (frame[5:], 3), (frame[:0], 3), (frame, 2), (frame, 4)]:
        with pytest.raises(DamagedShardError):
            unpack_masks(wrong, count, 32)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools under numpy 2
@properties
@given(mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
def test_run_lengths_come_back_and_are_cocos_own(mask: np.ndarray) -> None:
    counts = rle_encode(mask)
    np.testing.assert_array_equal(rle_decode(counts, *mask.shape), mask)
    by_coco = coco_mask.decode({"size": list(mask.shape), "counts": counts})
    np.testing.assert_array_equal(by_coco, mask)


@properties
@given(seed=seeds)
def test_run_lengths_of_a_large_mask_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.random((7, 9)) < 0.4
    mask = np.kron(coarse, np.ones((60, 70), dtype=bool))
    np.testing.assert_array_equal(rle_decode(rle_encode(mask), *mask.shape), mask)


@properties
@given(counts=st.text(st.characters(min_codepoint=32, max_codepoint=300), max_size=12))
def test_any_text_is_a_mask_of_the_right_size_or_refused(counts: str) -> None:
    try:
        mask = rle_decode(counts, 6, 5)
    except DamagedShardError:
        return
    assert mask.shape == (6, 5)
    np.testing.assert_array_equal(rle_decode(rle_encode(mask), 6, 5), mask)

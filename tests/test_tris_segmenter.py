"""TRIS-C's second stage, a segmenter that learns from masks of the first: sizes and equations of the method page."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from weakmcn.model.losses import unpack_bits
from weakmcn.model.methods import recipe
from weakmcn.model.parameters import parameter_table
from weakmcn.model.tris_segmenter import SegmenterConfig, TRISSegmenter, WordSegmenter
from weakmcn.shards.errors import ConfigError

from .equations import unlike_any_other, unmoved
from .tris_batches import SIZES, VOCABULARY, batch_of, in_double, learning

SEGMENTER = SegmenterConfig(**SIZES, decoder_dims=(12, 10, 8, 6))


def build_segmenter(config: SegmenterConfig = SEGMENTER) -> TRISSegmenter:
    torch.manual_seed(2)
    net = TRISSegmenter(config, VOCABULARY)
    unlike_any_other(net)
    return net


def test_the_segmenter_has_as_many_parameters_as_the_method_page_says() -> None:
    def counted(banks: tuple[str, ...], dims: tuple[int, ...]) -> int:
        model, _ = recipe("tris-c2", "refcoco")
        table = parameter_table(replace(model, banks=banks, decoder_dims=dims), "tris-c2")
        return table.learns - 11_101_697  # the sentence encoder

    assert counted(("dino",), (512, 256, 128, 64)) == 15_998_057
    assert counted(("dino", "sam"), (512, 256, 128, 64, 32)) == 16_173_452
    with torch.device("meta"):
        assert learning(WordSegmenter((2048, 1024, 512), 256, 512, (512, 256, 128, 64, 32))) == 40_078_732


def test_more_padding_changes_no_mask() -> None:
    net, batch = build_segmenter().eval(), batch_of()
    padded = replace(batch, tokens=nn.functional.pad(batch.tokens[:, :3], (0, 2)))
    short = replace(batch, tokens=batch.tokens[:, :3])
    one, other = net.predict(padded).mask_logits, net.predict(short).mask_logits
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_word_that_stands_alone_is_heard() -> None:
    net, batch = build_segmenter().eval(), batch_of()
    one, other = (
        net.predict(replace(batch, tokens=torch.full_like(batch.tokens[:, :1], word))).mask_logits for word in (2, 3)
    )
    assert (one - other).abs().amax(dim=(1, 2)).min() > 1e-3


def test_without_a_positive_logit_the_mask_is_empty() -> None:
    net, batch = build_segmenter().eval(), batch_of()
    last: Any = net.segment.sides[-1]
    with torch.no_grad():
        last[1].weight.fill_(-1)
        last[0][1].bias.fill_(5)
        last[0][1].weight.fill_(0)
    logits = net.predict(batch).mask_logits
    assert (net.logits(batch)[-1] < 0).all()
    assert not (logits.sigmoid() > 0.5).any()


def test_the_loss_of_stage_2_is_the_sum_of_every_steps_cross_entropy() -> None:
    net, batch = build_segmenter().double(), in_double(batch_of())
    assert batch.pseudo is not None
    target = unpack_bits(batch.pseudo).double()
    wanted = []
    for logits in net.logits(batch):
        enlarged = nn.functional.interpolate(logits[:, None], (16, 16), mode="bilinear")[:, 0]
        p = enlarged.sigmoid()
        wanted.append(-(target * p.log() + (1 - target) * (1 - p).log()).mean().item())
    losses = net.losses(batch, epoch=0)
    assert losses.total.item() == pytest.approx(sum(wanted), rel=1e-9)
    assert losses.final.item() == pytest.approx(wanted[-1], rel=1e-9)


def test_every_weight_of_stage_2_learns_but_those_that_cannot_matter() -> None:
    net, batch = build_segmenter().double(), in_double(batch_of())
    net.losses(batch, epoch=0).total.backward()
    assert unmoved(net) == {
        *(f"text.blocks.{i}.attention.key.bias" for i in range(2)),
        # In front of a norm over the cells, or a shift of all words' scores.
        *(f"segment.attention.{i}.{part}.bias" for i in range(3) for part in ("query", "key", "value", "heard")),
        "text.pool.score.bias",
    }


def test_with_sams_map_the_answer_is_twice_as_fine() -> None:
    net = build_segmenter(replace(SEGMENTER, banks=("dino", "sam"), decoder_dims=(12, 10, 8, 6, 4))).eval()
    assert [x.shape[-1] for x in net.logits(batch_of())] == [4, 8, 16, 16]
    assert [x.shape[-1] for x in build_segmenter().eval().logits(batch_of())] == [4, 8, 8]


def test_settings_of_stage_2_that_do_not_fit_are_refused() -> None:
    for share in (0, 1.5):
        with pytest.raises(ConfigError, match="cut"):
            replace(SEGMENTER, cut=share)
    with pytest.raises(ConfigError, match=r"decoder_dims=\[12, 10, 8, 6\]: 5 widths .* with banks dino, sam"):
        replace(SEGMENTER, banks=("dino", "sam"))
    with pytest.raises(ConfigError, match="refine='crf' is not known; choose one of walk, none, sam"):
        replace(SEGMENTER, refine="crf")

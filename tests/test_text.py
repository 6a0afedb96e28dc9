"""The sentence encoder computes section 4 of the method page, quirks included."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from weakmcn.model.text import AttentivePool, SampleNorm, TextEncoder
from weakmcn.shards.errors import ConfigError


def encoder(layers: int = 2, dropout: float = 0.0) -> TextEncoder:
    torch.manual_seed(3)
    return TextEncoder(
        vocabulary_size=20, word_dim=6, width=8, heads=2, layers=layers, ff_dim=12, flat_dim=5, dropout=dropout
    ).double()


def test_normalisation_divides_by_the_unbiased_deviation_and_adds_epsilon_outside_the_root() -> None:
    norm = SampleNorm(3).double()
    # 1, 2, 3: mean 2, squared deviations 1 + 0 + 1 over N - 1 = 2, so the deviation is 1.
    torch.testing.assert_close(
        norm(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
        torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) / (1 + 1e-6),
        rtol=1e-12,
        atol=0,
    )
    # A constant vector has deviation 0: 0 / 1e-6 is 0, not NaN.
    assert norm(torch.full((3,), 5.0, dtype=torch.float64)).tolist() == [0, 0, 0]


def test_pooling_gives_pads_no_weight() -> None:
    pool = AttentivePool(4, 3, dropout=0.0).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    pads = torch.tensor([[False, False, True]])
    torch.testing.assert_close(pool(x, pads), pool(x[:, :2], pads[:, :2]), rtol=0, atol=1e-12)


def test_cutting_a_batch_to_its_longest_expression_changes_nothing() -> None:
    text = encoder()
    tokens = torch.tensor([[4, 5, 6] + [0] * 12, [7, 1] + [0] * 13])
    torch.testing.assert_close(text(tokens), text(tokens[:, :3]), rtol=0, atol=1e-12)
    torch.testing.assert_close(text(tokens)[1:], text(tokens[1:, :2]), rtol=0, atol=1e-12)


def test_the_order_of_words_matters() -> None:
    text = encoder(layers=0)
    swapped = text(torch.tensor([[4, 5, 6], [6, 5, 4]]))
    assert (swapped[0] - swapped[1]).abs().max() > 1e-3


def test_an_expression_without_words_is_finite_and_weighs_its_pads_equally() -> None:
    text = encoder(layers=0)
    empty = torch.zeros(1, 15, dtype=torch.int64)
    states, _ = text.gru(text.words(empty))
    torch.testing.assert_close(text(empty), text.pool.merge(states.mean(dim=1)), rtol=0, atol=1e-12)
    answer = encoder(layers=3).float()(empty)
    assert torch.isfinite(answer).all()
    answer.sum().backward()


def test_the_word_table_is_frozen_unless_it_is_asked_to_learn() -> None:
    words = torch.arange(12.0).reshape(4, 3)

    def build(train_words: bool) -> TextEncoder:
        return TextEncoder(
            vocabulary_size=4,
            word_dim=3,
            width=4,
            heads=1,
            layers=1,
            ff_dim=4,
            flat_dim=4,
            dropout=0.0,
            train_words=train_words,
            words=words,
        )

    for train_words in (False, True):
        text = build(train_words)
        assert torch.equal(text.words.weight, words)
        text(torch.tensor([[2, 3]])).sum().backward()
        assert (text.words.weight.grad is not None) == train_words
        assert text.words.weight.requires_grad == train_words
    assert words[0, 0] == 0, "the caller's table is copied, not used"


def test_a_word_table_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[4, 3\].*\[20, 6\]"):
        TextEncoder(
            vocabulary_size=20,
            word_dim=6,
            width=4,
            heads=1,
            layers=1,
            ff_dim=4,
            flat_dim=4,
            dropout=0.0,
            words=torch.zeros(4, 3),
        )


def test_it_equals_the_equations_written_out_word_by_word() -> None:
    text = encoder().eval()
    tokens = torch.tensor([[4, 5, 6, 0, 0], [7, 0, 0, 0, 0], [0, 0, 0, 0, 0], [3, 9, 1, 8, 2]])
    expected = np.stack([by_hand(text, row) for row in tokens.tolist()])
    np.testing.assert_allclose(text(tokens).detach().numpy(), expected, rtol=0, atol=1e-10)


def array(x: Tensor) -> np.ndarray:
    return x.detach().numpy()


def by_hand(text: TextEncoder, ids: list[int]) -> np.ndarray:
    """One expression, one word and one head at a time."""
    w = {name: array(value) for name, value in text.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def softmax(scores: Sequence[float]) -> np.ndarray:
        powers = np.exp(np.array(scores) - max(scores))
        return powers / powers.sum()

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        deviation = math.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - 1))
        return w[f"{name}.weight"] * (x - x.mean()) / (deviation + 1e-6) + w[f"{name}.bias"]

    state, states = np.zeros(8), []
    for word in ids:
        given = w["gru.weight_ih_l0"] @ w["words.weight"][word] + w["gru.bias_ih_l0"]
        kept = w["gru.weight_hh_l0"] @ state + w["gru.bias_hh_l0"]
        reset, update = sigmoid(given[:8] + kept[:8]), sigmoid(given[8:16] + kept[8:16])
        fresh = np.tanh(given[16:] + reset * kept[16:])
        state = (1 - update) * fresh + update * state
        states.append(state)
    for layer in range(2):
        name, blended = f"blocks.{layer}", []
        for one in states:
            parts = []
            for head in (slice(0, 4), slice(4, 8)):
                query = linear(f"{name}.attention.query", one)[head]
                keys = [linear(f"{name}.attention.key", other)[head] for other in states]
                scores = [-1e9 if word == 0 else float(query @ key) / 2 for word, key in zip(ids, keys, strict=True)]
                values = np.stack([linear(f"{name}.attention.value", other)[head] for other in states])
                parts.append(softmax(scores) @ values)
            merged = linear(f"{name}.attention.merge", np.concatenate(parts))
            x = norm(f"{name}.norm_attention", one + merged)
            hidden = np.maximum(linear(f"{name}.expand", x), 0)
            blended.append(norm(f"{name}.norm_ff", x + linear(f"{name}.contract", hidden)))
        states = blended
    scores = [
        -1e9 if word == 0 else linear("pool.score", np.maximum(linear("pool.hidden", x), 0)).item()
        for word, x in zip(ids, states, strict=True)
    ]
    return linear("pool.merge", softmax(scores) @ np.stack(states))

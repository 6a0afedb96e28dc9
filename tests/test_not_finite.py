"""A step, or weights, that are no numbers cost nothing that was trained."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from weakmcn.model import checkpoint
from weakmcn.model.run import Run
from weakmcn.model.state import TrainState
from weakmcn.model.train import NotFinite, train

from .trainings import Crash, at_step, content, crash, drawn_for, settings
from .worlds import RECIPE


def all_finite(run: Path) -> bool:
    saved = [checkpoint.read(path).tensors for path in (run / "checkpoints").glob("*.safetensors")]
    return all(bool(tensor.isfinite().all()) for tensors in saved for tensor in tensors.values())


def once(value: float) -> Callable[[TrainState], None]:
    """A fault of the machine: at the next step, and only then, the network's features are `value`."""

    def fail(state: TrainState) -> None:
        def spoil(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return output * value

        handle = state.net.get_submodule("fusion.project.s32").register_forward_hook(spoil)

    return fail


def one_gradient(state: TrainState) -> None:
    """A fault of the machine: one number of the next gradient is not finite, all losses are."""

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient.index_fill(0, torch.tensor([0]), torch.inf)

    handle = state.weights[0].register_hook(spoil)


@pytest.mark.parametrize("fault", [once(torch.nan), once(torch.inf), one_gradient])
def test_a_step_that_is_not_finite_is_not_taken_names_its_references_and_costs_nothing_that_was_trained(
    store: Path, undisturbed: Run, tmp_path: Path, fault: Callable[[TrainState], None]
) -> None:
    wanted = settings(store, tmp_path / "run")
    with pytest.raises(NotFinite) as stop:
        train(wanted, after_step=at_step(5, fault))
    ref_ids, keys = drawn_for(store, 5)
    assert stop.value.exit_code == 1
    assert re.search(
        rf"step 5: a loss or its gradient is not finite \(.*\), the step was not taken; references {ref_ids} of images "
        rf"{keys}; all 5 steps before it are saved. Lower .* weakmcn store verify {re.escape(str(store))}$",
        str(stop.value),
    )
    steps: list[int] = []
    train(wanted, after_step=lambda state: steps.append(state.step))
    assert steps[0] == 6
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_a_learning_rate_that_blows_the_weights_up_ends_the_run_and_no_such_checkpoint_is_written(
    store: Path, tmp_path: Path
) -> None:
    """Nothing is wrong with the first losses; the weights of the first step are no numbers any more."""
    wild = replace(RECIPE, lr=1e300, warmup_epochs=0)
    with pytest.raises(NotFinite, match=r"step 0: \S+ is not finite after it; no checkpoint"):
        train(settings(store, tmp_path / "each", recipe=wild, checkpoint_minutes=0))
    with pytest.raises(NotFinite, match=rf"step 1: .*references {drawn_for(store, 1)[0]} of .*; no checkpoint"):
        train(settings(store, tmp_path / "epoch", recipe=wild))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_that_are_no_numbers_at_the_end_of_an_epoch_do_not_replace_the_sound_checkpoint(
    store: Path, undisturbed: Run, tmp_path: Path
) -> None:
    def spoil(state: TrainState) -> None:
        with torch.no_grad():
            state.weights[0].fill_(torch.nan)

    wanted = settings(store, tmp_path / "run")
    with pytest.raises(
        NotFinite, match=r"step 5: net/\S+ is not finite after it; the newest checkpoint is from before"
    ):
        train(wanted, after_step=at_step(6, spoil))
    assert [path.stem for path in (tmp_path / "run/checkpoints").glob("*.safetensors")] == ["00000003"]
    assert all_finite(tmp_path / "run")
    train(wanted)
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_a_run_that_goes_on_from_weights_too_large_to_train_says_so_and_leaves_them(
    store: Path, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run"), after_step=at_step(5, crash))
    ((saved, _),) = [checkpoint.newest(tmp_path / "run/checkpoints")]
    assert saved is not None
    huge = {name: torch.full_like(x, 1e30) if name.startswith("net/gru") else x for name, x in saved.tensors.items()}
    huge = {name: x * 1e30 if name.startswith("net/matcher") else x for name, x in huge.items()}
    checkpoint.save(tmp_path / "run/checkpoints", huge, saved.position)
    before = content(tmp_path / "run")
    with pytest.raises(
        NotFinite, match=f"step 3: .*references {drawn_for(store, 3)[0]} of images .* 3 steps before it"
    ):
        train(settings(store, tmp_path / "run"))
    assert content(tmp_path / "run") == before

"""TRIS-C learns masks from captions, on a quick version of the acceptance set; `just acceptance` runs all checks."""

from itertools import chain
from pathlib import Path

import pytest

from . import synthetic
from .acceptance import exact
from .acceptance.settings import figures, floors, localiser, trained


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("world") / "store"
    return synthetic.write_store(path, grid=12, channels=48, train=200, val=60)


def test_masks_are_learned_from_captions_and_follow_them(store: Path, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "run", localiser(12, 48), "tris-c", steps=200)
    found, swapped, floor = figures(run), figures(run, synthetic.SWAPPED), floors(store)
    assert found["pointm"] >= 0.85
    assert found["res_miou"] >= max(floor["centre"], found["largest"]) + 0.2
    assert found["res_miou"] - swapped["res_miou"] >= 0.3


def test_from_captions_of_other_images_nothing_is_learned(store: Path, tmp_path: Path) -> None:
    run = trained(store, tmp_path / "run", localiser(12, 48), "tris-c", steps=200, shuffle_captions=True)
    found, floor = figures(run), floors(store)
    assert found["res_miou"] <= floor["centre"] + 0.1
    assert found["pointm"] <= 0.35


@pytest.mark.parametrize("method", exact.FILES)
def test_the_tests_that_stand_for_a_check_are_there(method: str) -> None:
    for test in chain(*exact.tests_of(method).values()):
        file, _, name = test.partition("::")
        assert f"def {name}(" in (exact.TESTS / file).read_text("utf-8"), test

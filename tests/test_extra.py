"""An encoder of the user's own is one Python file; it is run where it is named and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
from weakmcn.pipeline.encoders.extra import extra_config
from weakmcn.pipeline.images import read_photo
from weakmcn.pipeline.stages import STAGES, chosen_stages
from weakmcn.shards.store import Store

from .tiny import config_with, photo, write_data

GREY = """
from pathlib import Path

import numpy as np

Path(__file__).with_suffix(".ran").touch()


class Encoder:
    channels = 2
    batch = 3

    def __init__(self, side_px, device):
        self.grid = side_px // 16

    def encode(self, photos):
        grey = np.stack([photo.letterbox.image(photo.rgb).mean(axis=2, dtype=np.float32) for photo in photos])
        cells = grey.reshape(len(photos), self.grid, 16, self.grid, 16).mean(axis=(2, 4))
        return np.stack([cells, -cells], axis=1)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data", images=5, val=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "grey.py").write_text(GREY)
    return tmp_path / "grey.py"


@pytest.fixture
def make(run, data: Path, tmp_path: Path):
    """Run precompute of the stage with more words."""

    def call(*words: object):
        common = ("--data", data, "--dataset", "refcoco", "--store", tmp_path / "store", "--executor", "local")
        return run("precompute", *common, "--preset", "pocket", *words)

    return call


def test_the_column_is_what_the_file_makes_of_each_photograph(make, file: Path, data: Path, tmp_path: Path) -> None:
    ended = make("--stages", "extra", "--checkpoint", f"extra={file}")
    assert ended.status == 0, ended.err
    store = Store.open(tmp_path / "store")
    assert store.columns.keys() == {"extra.tokens"}
    for number, key in enumerate(store.keys, 1):
        canvas = store.letterbox(key).image(read_photo(photo(data, number)))
        grid = store.side // 16
        cells = canvas.mean(axis=2, dtype=np.float32).reshape(grid, 16, grid, 16).mean(axis=(1, 3))
        np.testing.assert_array_equal(store[key]["extra.tokens"], np.stack([cells, -cells]).astype(np.float16))


def test_a_changed_file_makes_the_column_anew_and_an_equal_one_does_not(make, file: Path, tmp_path: Path) -> None:
    words = ("--stages", "extra", "--checkpoint", f"extra={file}")
    made = [make(*words).status]
    first = Store.open(tmp_path / "store").families["extra"].name
    file.rename(file.with_name("moved.py"))
    again = make("--stages", "extra", "--checkpoint", f"extra={file.with_name('moved.py')}")
    assert "up to date" in again.err
    file.write_text(GREY.replace("-cells", "cells"))
    made += [again.status, make(*words).status]
    assert made == [0, 0, 0]
    assert Store.open(tmp_path / "store").families["extra"].name != first


def test_other_weights_make_the_column_anew(file: Path, tmp_path: Path) -> None:
    file.write_text(GREY.replace("batch = 3", "batch = 3\n    weights = 'w.bin'"))
    digests = set()
    for content in (b"one", b"two"):
        (tmp_path / "w.bin").write_bytes(content)
        digests.add(extra_config(str(file), config_with(tmp_path).extra).weights_sha256)
    assert len(digests) == 2


def test_what_a_store_remembers_of_the_file_is_never_run(make, file: Path, tmp_path: Path) -> None:
    """A store may come from anywhere."""
    assert make("--stages", "extra", "--checkpoint", f"extra={file}").status == 0
    ran = file.with_suffix(".ran")
    ran.unlink()
    ended = make("--stages", "extra", "--split", "val")
    assert ended.status == 2
    assert "stage extra is made by a Python file, which is run only where it is named: --checkpoint extra=" in ended.err
    assert Store.open(tmp_path / "store").verify() == []
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("class Encoder", "class Encode"), "has no class Encoder"),
        (("channels = 2", "channels = 2.5"), "must be whole numbers of at least 1"),
        (("batch = 3", "batch = 3\n    weights = 'none.bin'"), "its weights none.bin cannot be read"),
        (("axis=1)", "axis=1)[:1]"), "encode gave float32 [1, 2, 12, 12], not float [3, 2, 12, 12]"),
        (("axis=1)", "axis=1).astype(int)"), "encode gave int64 [3, 2, 12, 12], not float [3, 2, 12, 12]"),
        (("-cells", "np.nan * cells"), "values are NaN or infinite"),
        (("channels = 2", "channels = lost"), "grey.py: line 10: NameError: name 'lost' is not defined"),
        (("batch = 3", "batch = "), "grey.py: line 11: SyntaxError: invalid syntax"),
    ],
)
def test_a_file_that_does_not_keep_the_rules_is_told(make, file: Path, change: tuple[str, str], says: str) -> None:
    file.write_text(GREY.replace(*change))
    ended = make("--stages", "extra", "--checkpoint", f"extra={file}")
    assert ended.status in (1, 2)
    assert says in ended.out + ended.err
    assert not list(file.parent.rglob("__pycache__"))


def test_a_name_that_is_no_python_file_is_told(make, tmp_path: Path) -> None:
    ended = make("--stages", "extra", "--checkpoint", f"extra={tmp_path / 'lost.py'}")
    assert ended.status == 2
    assert "lost.py: no Python file" in ended.err


def test_all_stages_are_those_of_the_program_and_those_of_the_store() -> None:
    names = [stage.name for stage in STAGES]
    assert [stage.name for stage in chosen_stages(["all"])] == [name for name in names if name != "extra"]
    assert [stage.name for stage in chosen_stages(["all"], present=["extra"])] == names

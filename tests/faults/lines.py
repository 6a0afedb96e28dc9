"""Command lines that are wrong. Each is given beside a sound data set `data`, and says what should be told."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .sound import DATASET

PRECOMPUTE = (
    *("precompute", "--data", "data", "--dataset", DATASET, "--store", "new"),
    *("--preset", "pocket", "--executor", "local"),
)
POCKET = ("pocket", "world")
DATA_OF = ("precompute", "--data", "data", "--store", "new", "--dataset")
DEMO = ("demo", "--out")


@dataclass(frozen=True)
class BadLine:
    """One command line that is refused, with nothing written."""

    words: tuple[str, ...]
    says: str
    """What the message begins with, behind `weakmcn: `, or holds."""
    prepare: Callable[[Path], object] = lambda folder: None
    """What stands in the folder already."""
    lists: bool = False
    """Whether the line names so many things that it may be long."""


def _line(*words: str, says: str) -> BadLine:
    return BadLine(words, says)


def _folder_with(name: str, file: str, content: str = "somebody's") -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        (folder / name).mkdir()
        (folder / name / file).write_text(content)

    return prepare


BAD_LINES = (
    _line("trian", says="no such command 'trian'. Did you mean 'train'?"),
    _line("precompute", "--dataset", DATASET, "--store", "new", says="missing option '--data'"),
    _line(*PRECOMPUTE, "--stage", "sam", says="no such option: --stage"),
    _line(*DATA_OF, "refcoc", says="data set 'refcoc' is not known (did you mean 'refcoco'?)"),
    _line(*DATA_OF, "refcoco+", says="data: no refcoco+; neither refcoco+/refs(unc).p nor anns/refcoco+.json is there"),
    _line(*PRECOMPUTE, "--split", "trian", says="no split 'trian' (did you mean 'train'?); splits present: train, val"),
    _line(*PRECOMPUTE, "--split", " , ", says="--split names nothing"),
    _line(
        *PRECOMPUTE,
        "--stages",
        "sma",
        says="stage 'sma' is not known (did you mean 'sam'?); choose one of detect, dino, sam, masks, clip",
    ),
    _line(*PRECOMPUTE, "--preset", "pockt", says="preset 'pockt' is not known (did you mean 'pocket'?)"),
    _line(*PRECOMPUTE, "--codec", "f8", says="codec 'f8' is not known; choose one of f16, bf16, u8"),
    _line(*PRECOMPUTE, "--checkpoint", "detect", says="--checkpoint detect: write STAGE=FILE"),
    _line(*PRECOMPUTE, "--checkpoint", "detct=a.pth", says="stage 'detct' is not known"),
    _line(*PRECOMPUTE, "--checkpoint", "detect=nowhere.pth", says="nowhere.pth: no such checkpoint"),
    BadLine((*PRECOMPUTE, "--preset", "refcoco"), "checkpoints are missing: weights/", lists=True),
    _line(*PRECOMPUTE[:-1], "cluster", says="invalid value for '--executor'"),
    _line(*PRECOMPUTE, "--workers", "0", says="invalid value for '--workers'"),
    _line(
        "precompute",
        "--data",
        "nowhere",
        "--dataset",
        DATASET,
        "--store",
        "new",
        says="nowhere: there is no such folder",
    ),
    _line("precompute", "--data", "data", "--dataset", DATASET, "--store", "data", says="data: no store, but a folder"),
    _line(
        "precompute", "--data", "data", "--dataset", DATASET, "--store", "data/refcoco/instances.json", says="is a file"
    ),
    _line(*POCKET, "--images", "many", says="invalid value for '--images'"),
    _line(*POCKET, "--images", "5", says="pocket data set of 5 images"),
    _line(*POCKET, "--seed", "-1", says="seed -1 is negative"),
    _line(*POCKET, "--flavour", "refclef", says="invalid value for '--flavour'"),
    BadLine(POCKET, "world", _folder_with("world", "thesis.txt")),
    BadLine(POCKET, "world/pocket.json is damaged", _folder_with("world", "pocket.json", "[" * 100_000)),
    BadLine(POCKET, "world/pocket.json is damaged", _folder_with("world", "pocket.json", '{"flavours": 7}')),
    BadLine(POCKET, "world holds a pocket data set of", _folder_with("world", "pocket.json", '{"\\u001b[2J": 1}')),
    BadLine((*DEMO, "mine"), "--out mine: is a file", lambda folder: (folder / "mine").write_text("a file")),
    _line("store", "ls", "data", says="data is not a store"),
    _line("store", "verify", "nowhere", says="nowhere is not a store"),
    _line("store", "gc", "nowhere", says="nowhere is not a store"),
    _line("store", "repair", "nowhere", says="nowhere is not a store"),
    _line("store", "verify", "nowhere", "--stages", "smA", says="stage 'smA' is not known"),
    _line("train", "--shards", "data", "--dataset", DATASET, "--out", "new", says="data is not a store"),
    _line("eval", "--run", "data", says="data: no run here"),
    _line("eval", "--run", "r", "--with", "a.py", says="stands before the command: weakmcn --with FILE eval"),
    _line("train", "--shards", "s", "--lr", "0.1", says="no such option: --lr; it is a setting: --set train.lr=VALUE"),
    _line(
        *("predict", "--run", "r", "--image", "a.jpg", "b.jpg", "--phrase", "dog"),
        says="--image takes one, write it again before each, or name their folder",
    ),
    _line(
        *("predict", "--run", "r", "--phrase", "red", "circle", "--image", "a.jpg"),
        says='several words need plain quotes: --phrase "red circle"',
    ),
    _line(
        *("predict", "--run", "r", "--image", "a.jpg", "red circle"),
        says='several words need plain quotes: --phrase "red circle"',
    ),
    _line(
        *("precompute", "--data", ".", "--dataset", DATASET, "--store", "new"),
        says="put its annotations there; is it data?",
    ),
    _line("predict", "--run", "nowhere", "--image", "a.jpg", "--phrase", "dog", says="nowhere: no run here"),
    _line(
        "convert",
        "nowhere.pth",
        "--annotations",
        "refcoco.json",
        "--out",
        "new",
        says="nowhere.pth: no such checkpoint",
    ),
)

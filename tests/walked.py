"""What lies in the folder in which a page's commands are typed: what the page says that its reader has by then."""

import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from weakmcn.model.methods import method_of, recipe
from weakmcn.model.official import to_official
from weakmcn.model.vocabulary import RESERVED, Vocabulary
from weakmcn.pipeline.config import preset
from weakmcn.pipeline.encoders.dino import build_dino
from weakmcn.pipeline.encoders.efficient_sam import EfficientSam
from weakmcn.pipeline.encoders.yolov3 import YOLOv3

from .walk import done, shown_again, steps, terminal, typed

DEMO = "weakmcn demo --images 72 --epochs 5 --seed 3 --executor local"
"""The smallest that a training with the preset's own batch of 48 photographs can be tried on. Pages name it."""
QUICK = Path(__file__).parent.parent / "demo"
"""Where `weakmcn demo --quick`, the README's first command, leaves what these pages show."""
OF_QUICK = ("index.md", "export.md", "predict.md", "predictions.md")
PHOTO = "demo/data/images/train2014/COCO_train2014_000000000001.jpg"


def make_demo(folder: Path) -> None:
    """The demo that all pages share, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with terminal(folder):
        status, printed = typed(DEMO)
    assert status == 0, printed


def has_quick() -> bool:
    """Whether QUICK holds such a demo, as the README has it, at its end."""
    if not (QUICK / "results.json").is_file():
        return False
    facts = json.loads((QUICK / "results.json").read_text("utf-8"))
    return facts["quick"] and facts["images"] == 900 and facts["seed"] == 0 and facts["flavour"] == "refcoco+"


def demo_of(page: str, small: Path) -> Path:
    """The demo in whose folder a page is walked: the quick one where the page shows that, and it is there."""
    return QUICK if page in OF_QUICK and has_quick() else small


def painted_photo(folder: Path) -> None:
    """`photo.jpg`: a red circle and a blue square that somebody has painted."""
    picture = Image.new("RGB", (400, 300), (205, 200, 190))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((60, 110, 160, 210), (210, 30, 30))
    draw.rectangle((260, 60, 340, 140), (30, 60, 200))
    picture.save(folder / "photo.jpg", quality=92)


def own_photo(folder: Path, name: str) -> None:
    shutil.copy(folder / PHOTO, folder / name)


def as_refcoco(folder: Path) -> None:
    """The demo's data as `data`, told as RefCOCO, with vectors of a few words beside."""
    shutil.copytree(folder / "demo/data", folder / "data")
    (folder / "data/refcoco+").rename(folder / "data/refcoco")
    with zipfile.ZipFile(folder / "glove.6B.zip", "w") as archive:
        words = ("red", "ring", "left", "the", "star")
        for width in (64, 300):  # the pocket world's, and GloVe's own
            vectors = "".join(f"{word} {' '.join(['0.1'] * width)}\n" for word in words)
            archive.writestr(f"glove.6B.{width}d.txt", vectors)


def refcoco_store(folder: Path) -> None:
    """`store`: RefCOCO's, with the columns of the pocket networks."""
    as_refcoco(folder)
    shutil.copytree(folder / "demo/store", folder / "store")
    with terminal(folder):
        words = "--data data --dataset refcoco --split train,val,testA,testB --store store --executor local"
        status, printed = typed(f"weakmcn precompute {words}")
    assert status == 0, printed


PUBLISHED = preset("refcoco")


def paper_weights(folder: Path) -> None:
    """`weights`: files of the paper's sizes, all of them zeros."""
    networks = {
        PUBLISHED.detect.checkpoint: lambda: YOLOv3(
            PUBLISHED.detect.width, PUBLISHED.detect.classes, PUBLISHED.side_px
        ),
        PUBLISHED.dino.checkpoint: lambda: build_dino(PUBLISHED.dino),
        PUBLISHED.sam.checkpoint: lambda: EfficientSam(PUBLISHED.sam),
    }
    (folder / "weights").mkdir()
    for file, build in networks.items():
        with torch.device("meta"):
            shapes = build().state_dict()
        save_file({name: torch.zeros(each.shape, dtype=each.dtype) for name, each in shapes.items()}, folder / file)


def refcoco(folder: Path) -> None:
    """With weights of zeros: `doctor` says so, and ends with 2."""
    refcoco_store(folder)
    own_photo(folder, "dog.jpg")
    paper_weights(folder)


def checkpoints(folder: Path) -> None:
    """`det_best.pth`: what the authors' training leaves, untrained, of a data set with as many words as RefCOCO's."""
    said = ("the", "left", "dog", *(f"word{number}" for number in range(10_341 - 3)))
    expressions = [" ".join(said[first : first + 100]) for first in range(0, len(said), 100)]
    entry = {"iid": 1, "bbox": [60, 60, 90, 90], "cat_id": 0, "mask_id": 1, "refs": expressions}
    (folder / "data/anns").mkdir(parents=True)
    (folder / "data/anns/refcoco.json").write_text(json.dumps({"train": [], "val": [entry]}))
    net = method_of("weakmcn").build(recipe("weakmcn", "refcoco")[0], Vocabulary((*RESERVED, *said)), None)
    paper_weights(folder)
    detector = load_file(folder / PUBLISHED.detect.checkpoint)
    frozen = {f"visual_encoder.{key}": value for key, value in detector.items()}
    torch.save({"epoch": 24, "state_dict": to_official(net) | frozen}, folder / "det_best.pth")
    own_photo(folder, "dog.jpg")


def faq(folder: Path) -> None:
    refcoco_store(folder)
    own_photo(folder, "dog.jpg")
    shutil.copytree(folder / "demo/run", folder / "runs/first")
    shutil.copytree(folder / "demo/run", folder / "runs/second")


def predict(folder: Path) -> None:
    photos = folder / "photos"
    (photos / "sub").mkdir(parents=True)
    for number in (1, 2, 3):
        shutil.copy((folder / PHOTO).with_name(f"COCO_train2014_{number:012d}.jpg"), photos)
    shutil.copy(folder / PHOTO, photos / "sub")
    (photos / "broken.jpg").write_bytes((folder / PHOTO).read_bytes()[:-25])


PREPARED: dict[str, Callable[[Path], None]] = {
    "check.md": as_refcoco,
    "checkpoints.md": checkpoints,
    "faq.md": faq,
    "index.md": painted_photo,
    "methods.md": lambda folder: (folder / "store").symlink_to("demo/store"),
    "predict.md": predict,
    "refcoco.md": refcoco,
}
"""Page -> what is put beside `demo`, for what its commands name."""


def prepare(page: str, demo: Path, folder: Path) -> None:
    """A copy of the demo, and what else the page's reader has, in `folder`."""
    shutil.copytree(demo, folder / "demo", symlinks=True)
    PREPARED.get(page, lambda folder: None)(folder)


def rewrite(pages: Sequence[Path]) -> None:
    """Run the commands of pages and put what they print into them.

    Those of the quick demo need it in ./demo.
    """
    if {page.name for page in pages} & {*OF_QUICK} and not has_quick():
        sys.exit("demo: no finished quick demo; make it first: weakmcn demo --quick")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        make_demo(made)
        for page in pages:
            folder = Path(scratch) / page.name
            prepare(page.name, demo_of(page.name, made / "demo"), folder)
            page.write_text(_rewritten(page.read_text("utf-8"), folder), "utf-8")


def _rewritten(text: str, folder: Path) -> str:
    outputs: list[str | None] = []
    with terminal(folder):
        for step in steps(text):
            status, printed = (step.exit_code, None) if step.by_gate else done(step)
            assert status == step.exit_code, f"{step.code}\n{printed}"
            outputs.append(printed)
        return shown_again(text, outputs)

"""What the documentation tells a reader to run, runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from weakmcn.shards.store import Store

DOCS = Path(__file__).parent.parent / "docs"


def program(page: str, name: str) -> str:
    """The Python block behind `<!-- run: name -->`."""
    found = re.search(rf"<!-- run: {name} -->\n```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_ten_lines_of_webdataset_read_features_and_boxes_of_every_image(demo: Path, tmp_path: Path) -> None:
    script = tmp_path / "read.py"
    script.write_text(program("store.md", "webdataset"))
    store = Store.open(demo / "store")
    shards = sorted(store.families["detect"].folder.glob("*.tar"))
    lines = []
    for shard in shards:
        words = [sys.executable, "-W", "ignore", str(script), str(shard)]
        printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
        lines += printed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(store.keys)
    first = store[lines[0].split()[0]]
    assert str(first["detect.s32"].shape) in lines[0]
    boxes = first["detect.boxes"]
    best = boxes[np.arange(len(boxes)), boxes[..., 4].argmax(axis=1)]
    assert lines[0].endswith(str(best[0].round(1)))


def test_stock_webdataset_opens_every_shard_of_every_family(demo: Path) -> None:
    code = (
        "import sys, webdataset as wds\n"
        "for shard in sys.argv[1:]:\n"
        "    print(sum(1 for _ in wds.WebDataset(shard, shardshuffle=False)))"
    )
    store = Store.open(demo / "store")
    shards = [str(shard) for family in store.families.values() for shard in sorted(family.folder.glob("*.tar"))]
    words = [sys.executable, "-W", "ignore", "-c", code, *shards]
    printed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert sum(map(int, printed.stdout.split())) == len(store.families) * len(store.keys)

"""Outside bytes come in through one door for each kind; the linter finds every other way in."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cli", "model", "pipeline", "shards")

WAYS_IN = {
    "import cv2\ncv2.imread('a')": "TID251",
    "import cv2\ncv2.imdecode(b'', 1)": "TID251",
    "from cv2 import imreadmulti": "TID251",
    "from PIL import Image\nImage.open('a')": "TID251",
    "import torchvision.io": "TID251",
    "import imageio": "TID251",
    "from pycocotools import mask": "TID251",
    "from pycocotools.coco import COCO": "TID251",
    "import pickle\npickle.load(open('a'))": "TID251",
    "import pickle as p\np.loads(b'')": "TID251",
    "from pickle import Unpickler": "TID251",
    "import cloudpickle": "TID251",
    "import dill": "TID251",
    "import shelve": "TID251",
    "import marshal\nmarshal.loads(b'')": "TID251",
    "import pandas": "TID251",
    "import yaml\nyaml.load('a')": "TID251",
    "import numpy as np\nnp.load('a')": "TID251",
    "import numpy\nnumpy.fromfile('a')": "TID251",
    "import torch\ntorch.load('a')": "TID251",
    "import torch\ntorch.load('a', weights_only=True)": "TID251",
    "from torch import load": "TID251",
    "import torch\ntorch.jit.load('a')": "TID251",
    "import torch\ntorch.hub.load('a', 'b')": "TID251",
    "import torch\ntorch.export.load('a')": "TID251",
    "import torch.distributed.checkpoint as dcp": "TID251",
    "from torch.distributed import checkpoint": "TID251",
    "from safetensors.torch import load_file": "TID251",
    "from safetensors import safe_open": "TID251",
    "import webdataset as wds": "TID251",
    "from webdataset import WebDataset": "TID251",
    "import tarfile\ntarfile.open('a').extractall()": "TID251",
    "import shutil\nshutil.unpack_archive('a')": "TID251",
    "import zipfile\nzipfile.ZipFile('a')": "TID251",
    "import gzip": "TID251",
    "import pyarrow.parquet as pq\npq.read_table('a')": "TID251",
    "from pyarrow import ipc": "TID251",
    "import urllib.request": "TID251",
    "import requests": "TID251",
    "import huggingface_hub": "TID251",
    "import os\nos.path.getmtime('a')": "TID251",
    "eval('1')": "S307",
    "exec('1')": "S102",
    "import subprocess\nsubprocess.run('a', shell=True)": "S602",
    "import os\nos.system('a')": "S605",
    "import os\nos.popen('a')": "S605",
}
"""Code -> the rule that finds it."""

DOORS = {
    ("model/checkpoint.py", "safetensors.safe_open"),
    ("model/checkpoint.py", "safetensors.torch.load"),
    ("model/word_text.py", "zipfile.ZipFile"),
    ("model/words.py", "safetensors.safe_open"),
    ("pipeline/encoders/reestimate.py", "safetensors.safe_open"),
    ("pipeline/encoders/weights.py", "safetensors.torch.load_file"),
    ("pipeline/encoders/weights.py", "torch.load"),
    ("pipeline/encoders/weights.py", "zipfile.ZipFile"),
    ("pipeline/images.py", "cv2.imdecode"),
    ("pipeline/pocket/coco.py", "pycocotools"),  # writes run lengths
    ("pipeline/pocket/pool.py", "cv2.imdecode"),  # of a picture that it has just encoded
    ("pipeline/refs_pickle.py", "pickle.Unpickler"),
    ("pipeline/segmentation.py", "pycocotools"),
    ("shards/codec.py", "pycocotools"),
    ("shards/tables.py", "pyarrow.parquet.read_table"),
    ("shards/verify.py", "tarfile"),  # reads headers; unpacks nothing
    ("shards/writer.py", "webdataset"),
}
"""File, and the banned name that it alone may use."""


def found(*words: str, source: str | None = None) -> list[dict]:
    """What ruff finds, under this repository's rules."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", *words]
    ended = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (0, 1), ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def findings() -> dict[str, set[str]]:
    """Code of WAYS_IN -> the rules that it breaks where any module of the program could have it."""
    broken: dict[str, set[str]] = {code: set() for code in WAYS_IN}
    starts, lines = {}, 0
    for code in WAYS_IN:
        starts[code] = range(lines + 1, lines + 1 + len(code.splitlines()))
        lines += len(code.splitlines())
    source = "".join(f"{code}\n" for code in WAYS_IN)
    for each in found("--stdin-filename", "pipeline/seeded.py", "-", source=source):
        code = next(code for code, rows in starts.items() if each["location"]["row"] in rows)
        broken[code].add(each["code"])
    return broken


@pytest.mark.parametrize("code", WAYS_IN)
def test_a_way_around_the_doors_is_found(findings: dict[str, set[str]], code: str) -> None:
    assert WAYS_IN[code] in findings[code]


def test_every_banned_name_is_used_by_its_door_and_by_no_other_file() -> None:
    everywhere = found("--select", "TID251", "--config", "lint.per-file-ignores = {}", *FOLDERS)
    used = {(Path(each["filename"]).relative_to(ROOT).as_posix(), each["message"].split("`")[1]) for each in everywhere}
    assert used == DOORS


def test_torch_files_are_only_read_as_tensors() -> None:
    """The default can be turned back by an environment variable, the argument cannot."""
    tree = ast.parse((ROOT / "pipeline" / "encoders" / "weights.py").read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    assert calls
    for call in calls:
        assert "weights_only=True" in ast.unparse(call)


def test_no_file_of_the_program_turns_a_ban_off_for_a_line() -> None:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = path.read_text("utf-8").splitlines()
            excused = [line for line in lines if "noqa" in line and ("TID251" in line or "S3" in line or "S6" in line)]
            assert not excused, path

"""`weakmcn doctor`: parameters counted as the method page counts them; libraries and weights told for what they are."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from weakmcn.model.config import PRESETS, preset
from weakmcn.model.methods import recipe
from weakmcn.model.parameters import ParameterTable, nearest_to_the_paper, parameter_table
from weakmcn.pipeline import health
from weakmcn.pipeline.config import PRESETS as NETWORKS
from weakmcn.pipeline.encoders.published import PUBLISHED
from weakmcn.pipeline.encoders.weights import SHIPPED_FOLDER
from weakmcn.shards.fingerprint import file_sha256

from .section17 import APL_LINEARS, APL_LINEARS_MILLIONS, APL_MILLIONS, NEVER_LEARN, TABLE, TOTAL
from .tiny import write_data

DOCS = Path(__file__).parent.parent / "docs"

# The page of RefCLIP and APL.
REFCLIP = {"lang_encoder": 11_101_697, "multi_scale_manner": 15_611_904, "linear_vs linear_ts": 787_456}
APL = {**APL_MILLIONS, " ".join(APL_LINEARS): APL_LINEARS_MILLIONS}


def total_of(table: ParameterTable, modules: str) -> int:
    return sum(row.total for row in table.rows if row.official in modules.split())


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "pocket"])
def test_every_module_has_as_many_parameters_as_the_authors_less_those_that_never_learn(name: str) -> None:
    config = preset(name)
    column = {256: 0, 512: 1}[config.wres_dim]
    table = parameter_table(config)
    assert {module: total_of(table, module) for module in TABLE} == {m: sizes[column] for m, sizes in TABLE.items()}
    assert (table.total, table.total - table.learns) == (TOTAL[column], NEVER_LEARN[column])
    assert sum(table.left_out.values()) == NEVER_LEARN[column]


def test_refclip_and_apl_have_the_papers_counts() -> None:
    refclip = parameter_table(recipe("refclip", "refcoco")[0], "refclip")
    assert refclip.total == 27_501_057
    assert {module: total_of(refclip, module) for module in REFCLIP} == REFCLIP
    apl = parameter_table(recipe("apl", "refcoco")[0], "apl")
    assert apl.total == 49_910_539
    assert {module: round(total_of(apl, module) / 1e6, 2) for module in APL} == APL


def test_the_papers_count_is_nearest_to_a_configuration_that_was_not_released() -> None:
    assert nearest_to_the_paper().total == 34_211_591
    released = {parameter_table(preset(name)).total for name in PRESETS if name != "pocket"}
    assert all(abs(total - 34_310_000) > 34_310_000 - 34_211_591 for total in released)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "refcoco"], ["21,551,879", "20,908,550", "643,329", "attention_manner.w_m", "34,211,591"]),
        (["--model", "refcoco-small"], ["32,317,447", "29,752,838", "2,564,609", "34.31 M"]),
        (["--model", "refcoco", "--method", "refclip"], ["27,501,057", "multi_scale_manner.bot_proj"]),
        (["--model", "refcoco", "--method", "apl"], ["49,910,539", "prompts.text"]),
    ],
)
def test_the_table_of_parameters_fits_a_terminal_and_says_all(run, words: list[str], says: list[str]) -> None:
    ended = run("doctor", *words)
    assert ended.status == 0, ended.err
    assert all(len(line) <= 80 for line in ended.out.splitlines())
    assert "…" not in ended.out
    for text in says:
        assert text in ended.out


def test_the_table_as_json_adds_up(run) -> None:
    facts = json.loads(run("doctor", "--model", "refcoco", "--json").out)
    assert sum(module["learns"] for module in facts["modules"]) == facts["learns"] == TOTAL[0] - NEVER_LEARN[0]
    assert sum(facts["left_out"].values()) + facts["learns"] == facts["total"] == TOTAL[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--model", "refcco"], "'refcoco'"), (["--model", "refcoco", "--method", "yolo"], "choose one of weakmcn")],
)
def test_a_preset_or_method_that_does_not_exist_is_answered_with_those_that_do(
    run, words: list[str], says: str
) -> None:
    ended = run("doctor", *words)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small "published" files: one verified, one of an unknown digest, one that is another network."""
    made = tmp_path / "weights"
    made.mkdir()
    files = {
        "yolov3_coco.pth": {
            "module_list.0.conv.weight": (32, 3, 3, 3),
            "module_list.19.conv.weight": (340, 1024, 1, 1),
        },
        "sam_vit_b_01ec64.pth": {
            "image_encoder.patch_embed.proj.weight": (1024, 3, 16, 16),
            "image_encoder.blocks.0.attn.rel_pos_h": (1,),
        },
        "efficient_sam_vitt.pt": {"image_encoder.patch_embed.proj.weight": (192, 3, 16, 16)},
    }
    for name, shapes in files.items():
        torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, made / name)
    known = made / "efficient_sam_vitt.pt"
    entry = replace(PUBLISHED[known.name], git_blob=None, sha256=file_sha256(known))
    monkeypatch.setitem(PUBLISHED, known.name, entry)
    return made


def test_each_published_file_is_missing_found_verified_or_told_to_be_another(run, folder: Path) -> None:
    ended = run("doctor", "--weights", folder, "--json")
    assert ended.status == 2  # something there is not what its name says
    facts = json.loads(ended.out)
    seen = {Path(each["path"]).name: each for each in facts["checkpoints"]}
    assert seen.keys() == PUBLISHED.keys()
    states = {name: each["state"] for name, each in seen.items() if each["state"] != "missing"}
    assert states == {
        "yolov3_coco.pth": "found",
        "efficient_sam_vitt.pt": "verified",
        "sam_vit_b_01ec64.pth": "differs",
    }
    assert seen["sam_vit_b_01ec64.pth"]["detail"] == "this is sam_vit_l; sam_vit_b was asked for"
    assert facts["problems"] == [f"{folder / 'sam_vit_b_01ec64.pth'}: this is sam_vit_l; sam_vit_b was asked for"]
    assert seen["sam_vit_h_4b8939.pth"]["page"] == PUBLISHED["sam_vit_h_4b8939.pth"].page
    assert seen["efficient_sam_vitt.pt"]["presets"] == ["refcoco", "refcoco+", "refcocog", "dinov3"]


def test_the_screen_fits_80_columns_and_ends_with_what_is_wrong(run, folder: Path) -> None:
    ended = run("doctor", "--weights", folder)
    assert ended.status == 2
    *lines, last = ended.out.rstrip().splitlines()
    assert last.endswith("sam_vit_b_01ec64.pth: this is sam_vit_l; sam_vit_b was asked for")
    assert all(len(line.rstrip()) <= 80 for line in lines if "https://" not in line and str(folder) not in line)
    for word in ("libraries", "GPU", "memory", "disk", "Ray", "OpenCV", "pocket", "verified", "found", "differs"):
        assert re.search(rf"\b{word}\b", ended.out), word


def test_nothing_there_is_no_fault_and_every_file_is_named_with_its_page(run, tmp_path: Path) -> None:
    ended = run("doctor", "--weights", tmp_path)
    assert ended.status == 0, ended.out
    assert ended.out.rstrip().endswith("Nothing is wrong.")
    assert "missing for all presets but pocket, with --stages clip only" in " ".join(ended.out.split())
    for entry in PUBLISHED.values():
        assert entry.file in ended.out
        assert entry.page in ended.out


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_what_else_lies_in_the_folder_is_named_and_no_code_in_it_runs(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    torch.save({"a": Payload()}, "weights/bad.pth")
    torch.save({"a": Payload()}, "weights/old.pth", _use_new_zipfile_serialization=False)
    torch.save({"lang_encoder.a": torch.ones(1), "tag_encoder.b": torch.ones(1)}, "weights/det_best.pth")
    Path("weights/notes.md").write_text("mine")
    ended = run("doctor", "--json")
    assert ended.status == 2
    others = {Path(each["path"]).name: each for each in json.loads(ended.out)["checkpoints"] if "file" not in each}
    assert {name: each["state"] for name, each in others.items()} == {
        "bad.pth": "differs",
        "det_best.pth": "found",
        "old.pth": "differs",
    }
    assert others["det_best.pth"]["detail"] == "an APL checkpoint"
    assert "asks for posix.mkdir" in others["bad.pth"]["detail"]
    assert not Path("ran").exists()


def test_shipped_networks_are_compared_with_their_digests(tmp_path: Path) -> None:
    assert health.shipped_faults() == (4, [])
    copy = Path(shutil.copytree(SHIPPED_FOLDER, tmp_path / "weights"))
    (copy / "dino.safetensors").unlink()
    with (copy / "sam.safetensors").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    count, faults = health.shipped_faults(copy)
    assert count == 4
    assert [fault.partition(": ")[2] for fault in faults] == [
        "missing; install weakmcn again",
        "differs from what was shipped; install weakmcn again",
    ]
    (copy / "weights.json").write_text("[]")
    assert health.shipped_faults(copy)[1][0].endswith("weights.json: cannot be read; install weakmcn again")


def test_a_library_that_cannot_be_loaded_is_told_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_gl.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    (tmp_path / "needs_torch.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(health.import_fault("needs_gl")).endswith("install the system library: apt-get install libgl1")
    assert str(health.import_fault("needs_torch")).endswith("reinstall it beside torch")
    assert str(health.import_fault("not_there_at_all")).endswith("pip install not_there_at_all")
    assert health.import_fault("torchvision") is None


def test_ray_is_started_only_when_asked_and_why_it_does_not_start_is_told(run, tmp_path: Path) -> None:
    quiet = json.loads(run("doctor", "--weights", tmp_path, "--json").out)
    assert quiet["ray_started"] is False
    code = "import sys; from weakmcn.cli.main import main; sys.exit(main())"
    asked = subprocess.run(  # in a process where Ray was started before, it remembers its folder
        [sys.executable, "-c", code, "doctor", "--weights", str(tmp_path), "--ray"],
        env={**os.environ, "RAY_TMPDIR": str(tmp_path / ("x" * 120))},  # longer than the name of a socket may be
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.returncode == 2, asked.stderr
    assert asked.stdout.rstrip().splitlines()[-1].startswith("Ray did not start on this machine: ")


def test_weights_that_precompute_misses_are_told_all_at_once(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data", images=2, val=1)
    words = ["--data", "data", "--dataset", "refcoco", "--store", "store", "--preset", "refcoco"]
    ended = run("precompute", *words)
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    for name in ("yolov3_coco.pth", "dinov2_vitb14_pretrain.pth", "efficient_sam_vitt.pt"):
        assert f"weights/{name} (from {PUBLISHED[name].page})" in ended.err
    assert os.listdir() == ["data"]


# docs/checkpoints.md


def test_the_page_of_checkpoints_has_every_published_file_with_its_digest() -> None:
    page = (DOCS / "checkpoints.md").read_text("utf-8")
    for entry in PUBLISHED.values():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{entry.file}`")]
        assert entry.page.partition(" ")[0] in page
        assert (entry.sha256 or entry.git_blob or "none published") in row
    for name, config in NETWORKS.items():
        if name != "pocket":
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
            for section in (config.detect, config.dino, config.sam):
                assert f"`{Path(section.checkpoint).name}`" in row

"""`weakmcn tables`: every row is trained once, measured as it says, and written down; nothing is dropped in silence."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest
from weakmcn.cli.speed import speeds
from weakmcn.cli.table_fill import Filler, Plan, is_the_papers
from weakmcn.cli.table_rows import TABLES, Paper, Row, System, Table
from weakmcn.cli.table_runs import Plans, make, result_of
from weakmcn.cli.table_text import Grid, markdown
from weakmcn.cli.tables import chosen, table_of_teachers
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.journal import seconds_trained
from weakmcn.model.methods import METHODS
from weakmcn.model.references import references_of
from weakmcn.model.run import Run
from weakmcn.shards.errors import ConfigError
from weakmcn.shards.layout import remember_source
from weakmcn.shards.store import IMAGES_FILE, Store, write_stage_json
from weakmcn.shards.tables import read_table, write_table

from .conftest import Ended
from .faults.commands import Commands
from .worlds import DATASET, RECIPE, TINY, make_store, scenes, write_family

SMALL = (
    *(f"model.{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
      for name, value in asdict(TINY).items() if name not in ("banks", "class_names")),
    *(f"train.{name}={value}" for name, value in asdict(RECIPE).items() if name not in ("betas", "seed", "epochs")),
    "train.epochs=2",
)  # fmt: skip
"""The tiny world's sizes, as `--set`."""

NO_WRES = System(settings=("model.wres=false",))
TWO_ROWS = Table(
    name="1",
    title="Two rows",
    rows=(
        Row(label="boxes", system=NO_WRES, res="none", paper=Paper(rec={"refcoco": 67.36})),
        Row(label="SAM", system=NO_WRES, res="SAM head", paper=Paper(rec={"refcoco": 67.36}, res={"refcoco": 53.97})),
        Row(label="all", system=System()),
    ),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("world") / "store")


def plans_of(store: Path, out: Path, *assignments: str, splits: Sequence[str] = ("val",)) -> Plans:
    return Plans(store, DATASET, out, preset="pocket", splits=splits, assignments=[*SMALL, *assignments])


def filled(plan: Plan, out: Path, table: Table, *, beside_paper: bool = False) -> list[Grid]:
    return Filler(plan, out, ["val"], None, beside_paper, "cpu").grids(table)


def cells(grid: Grid) -> dict[str, dict[str, str]]:
    return {label: dict(zip(grid.heads, map(str, values), strict=True)) for label, values in grid.rows}


def files(folder: Path) -> Mapping[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """The two rows, trained and measured."""
    out = tmp_path_factory.mktemp("made")
    plan = Plan.of(plans_of(store, out), [TWO_ROWS], seeds=1)
    make(out, list(plan.runs.values()), jobs=1)
    return out, plan


# What is trained


def test_rows_of_the_same_system_train_once_and_another_seed_is_another_run(store: Path, tmp_path: Path) -> None:
    same = Row(label="said", system=System(settings=("model.isl_threshold=0.4", "model.dynamic=true")))
    table = Table(name="x", title="", rows=(*TWO_ROWS.rows, same))
    runs = Plan.of(plans_of(store, tmp_path), [table, TWO_ROWS], seeds=1).runs
    boxes, full = runs
    assert [f"{run}" for run in runs.values()] == [f"boxes, seed 0 ({boxes})", f"all, seed 0 ({full})"]
    assert len(Plan.of(plans_of(store, tmp_path), [table], seeds=3).runs) == 6


def test_a_run_is_known_by_all_that_it_is_trained_on_and_with(store: Path, tmp_path: Path) -> None:
    def name(path: Path, *settings: str, method: str = "weakmcn") -> str:
        system = System(method=method, settings=settings)
        return plans_of(path, tmp_path).plan(system, 0).name

    moved = make_store(tmp_path / "elsewhere")
    other = make_store(tmp_path / "other", seed=1)
    assert name(store) == name(moved), "where the store is changes nothing"
    names = [name(store), name(store, "train.lr=1e-3"), name(store, "model.scl=false"), name(other)]
    names += [name(store, "model.wrec_dim=32", method="refclip")]
    assert len(set(names)) == len(names)


def test_figures_of_other_annotations_are_not_taken_for_these(store: Path, tmp_path: Path) -> None:
    def moved(rows: list[dict]) -> None:
        for row in rows:
            if row["split"] == "val":
                row["box"] = [0.0, 0.0, 5.0, 5.0]

    before = plans_of(store, tmp_path).plan(NO_WRES, 0)
    after = plans_of(make_store(tmp_path / "store", edit=moved), tmp_path).plan(NO_WRES, 0)
    assert before.name == after.name
    assert before.measured != after.measured


def test_what_is_done_is_not_made_again(made: tuple[Path, Plan]) -> None:
    out, plan = made
    before = files(out)
    make(out, list(plan.runs.values()), jobs=1)
    assert files(out) == before


def test_two_trainings_at_once_give_the_figures_of_one_after_the_other(
    store: Path, made: tuple[Path, Plan], tmp_path: Path
) -> None:
    plan = Plan.of(plans_of(store, tmp_path), [TWO_ROWS], seeds=1)
    make(tmp_path, list(plan.runs.values()), jobs=2)
    for planned in plan.runs.values():
        one, two = (result_of(out, planned, "val") for out in (made[0], tmp_path))
        assert one is not None
        assert two is not None
        assert two.summary == one.summary
        assert (one.beside, two.beside) == (0, 1)


def test_a_second_stage_goes_on_from_the_first_of_its_seed_which_is_made_before_it(store: Path, tmp_path: Path) -> None:
    first = System(method="tris-c", settings=("model.tris_dim=16",))
    second = System(method="tris-c2", settings=("model.decoder_dims=8,8,8,8",), after=first)
    table = Table(name="x", title="", rows=(Row(label="second", system=second, rec=False),))
    plan = Plan.of(plans_of(store, tmp_path), [table], seeds=2)
    assert plan.absent == {}
    assert len(plan.runs) == 4
    make(tmp_path, list(plan.runs.values())[:2], jobs=2)
    (grid,) = filled(plan, tmp_path, table)
    assert cells(grid)["second"]["REC val"] == "–"
    assert cells(grid)["second"]["RES val"] != "–"
    assert any("a cached-feature port, not a reproduction" in note for note in grid.notes)
    made_after, before = (plan.of_system(system)[0].training.out for system in (second, first))
    assert Run.open(made_after).facts["first_stage"]["run"] == str(before)


def test_a_run_that_fails_is_told_in_its_row_and_keeps_no_other_from_being_made(store: Path, tmp_path: Path) -> None:
    broken = System(settings=("train.lr=1e30",))
    table = Table(name="x", title="", rows=(Row(label="broken", system=broken), *TWO_ROWS.rows[:1]))
    plan = Plan.of(plans_of(store, tmp_path), [table], seeds=1)
    make(tmp_path, list(plan.runs.values()), jobs=1)
    (grid,) = filled(plan, tmp_path, table)
    assert cells(grid)["broken ‡"] == {"REC val": "–", "RES val": "–"}
    assert cells(grid)["boxes"]["REC val"] != "–"
    assert any("not finite" in note for note in grid.notes)
    assert Filler(plan, tmp_path, ["val"], None, False, "cpu").failed() == [plan.of_system(broken)[0].name]


def test_a_split_that_could_not_be_measured_is_no_fault_of_a_table_that_does_not_show_it(
    store: Path, tmp_path: Path
) -> None:
    table = replace(TWO_ROWS, rows=TWO_ROWS.rows[:1])
    both = Plan.of(plans_of(store, tmp_path, splits=("val", "later")), [table], seeds=1)
    make(tmp_path, list(both.runs.values()), jobs=1)
    assert len(Filler(both, tmp_path, ["val", "later"], None, False, "cpu").failed()) == 1
    alone = Plan.of(plans_of(store, tmp_path), [table], seeds=1)
    (grid,) = filled(alone, tmp_path, table)
    assert cells(grid)["boxes"]["REC val"] != "–"
    assert Filler(alone, tmp_path, ["val"], None, False, "cpu").failed() == []


def test_a_split_that_there_is_not_is_refused_before_anything_is_trained(store: Path, tmp_path: Path, run) -> None:
    out = tmp_path / "tables"
    ended = run(
        "tables", "1", "--shards", store, "--dataset", DATASET, "--preset", "pocket", "--split", "vla", "--out", out
    )
    assert ended.status == 2
    assert "split 'vla' (did you mean 'val'?)" in ended.err
    assert not out.exists()


def test_a_folder_of_other_things_is_refused_and_left_alone(store: Path, tmp_path: Path, run) -> None:
    (tmp_path / "notes.txt").touch()
    ended = run("tables", "1", "--shards", store, "--dataset", DATASET, "--preset", "pocket", "--out", tmp_path)
    assert ended.status == 2
    assert "holds other things and no tables" in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_killed_command_goes_on_and_a_finished_one_only_reads(
    commands: Commands, store: Path, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    out = tmp_path / "out"
    words = ["tables", "1", "--shards", store, "--dataset", DATASET, "--preset", "pocket", "--out", out, "--jobs", 1]
    words += [word for each in (*SMALL, "train.epochs=8") for word in ("--set", each)]
    killed = commands.begin(*words, folder=tmp_path)
    killed.until(lambda: list(out.glob("runs/*/checkpoints/[0-9]*.json")))
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.ended() == -signal.SIGKILL
    (begun,) = (out / "runs").iterdir()
    step = max(int(path.stem) for path in begun.glob("checkpoints/[0-9]*.json"))

    again = run(*words)
    assert again.status == 0, again.err
    assert "WeakMCN without WRES, with the SAM head" in again.out
    told = [json.loads(line)["step"] for line in (begun / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(told)) == told, "every step once"
    assert told[-1] > step
    before = {**files(out / "runs"), **files(out / "results")}
    assert run(*words).out == again.out
    assert {**files(out / "runs"), **files(out / "results")} == before


def test_tables_of_an_earlier_call_stay_with_their_command(
    made: tuple[Path, Plan], store: Path, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    words = ["--shards", store, "--dataset", DATASET, "--preset", "pocket", "--out", out, "--jobs", 1, "--no-speed"]
    words += [word for each in SMALL for word in ("--set", each)]
    told = []
    for which in (["1"], ["3", "--method", "weakmcn"]):
        ended = run("tables", *which, *words)
        assert ended.status in (0, 3), ended.err
        told.append((out / "tables.md").read_text())
    first, both = told
    assert first.count("\n## ") == 1
    assert both.count("\n## ") == 2
    assert (out / "table-1.md").read_text() in both
    assert "Made by `weakmcn" in both


# What is told


def test_a_row_is_measured_as_it_says(made: tuple[Path, Plan]) -> None:
    out, plan = made
    (grid,) = filled(plan, out, TWO_ROWS)
    found = evaluate_run(Run.open(plan.of_system(NO_WRES)[0].training.out), "val")
    rec, sam = found.summary["rec_acc50"], found.sam_head["res_miou"]
    assert cells(grid)["boxes"] == {"REC val": f"{rec:.1f}", "RES val": "–"}
    assert cells(grid)["SAM"] == {"REC val": f"{rec:.1f}", "RES val": f"{sam:.1f} †"}
    full = evaluate_run(Run.open(plan.of_system(System())[0].training.out), "val").summary
    assert cells(grid)["all"] == {"REC val": f"{full['rec_acc50']:.1f}", "RES val": f"{full['res_miou']:.1f}"}
    assert any(note.startswith("† the SAM head") for note in grid.notes)


def test_a_row_that_the_store_cannot_give_stays_with_the_command_that_mends_it(store: Path, tmp_path: Path) -> None:
    clip = Row(label="clip", system=System(settings=("model.banks=clip",)))
    table = Table(name="x", title="", rows=(clip,))
    plan = Plan.of(plans_of(store, tmp_path), [table], seeds=1)
    assert plan.runs == {}
    (grid,) = filled(plan, tmp_path, table)
    assert cells(grid)["clip ‡"] == {"REC val": "–", "RES val": "–"}
    assert any("no clip column" in note and "--stages clip" in note for note in grid.notes)


def test_a_store_of_another_sam_is_a_row_trained_on_its_masks_and_sams_without_one_are_told(
    store: Path, tmp_path: Path
) -> None:
    other = make_store(tmp_path / "other")
    write_family(other, "masks", scenes(32), parameters={"family": "sam", "embed_dim": 1280})
    table = table_of_teachers([Store.open(store), Store.open(other)], DATASET, ["val"])
    plan = Plan.of(plans_of(store, tmp_path / "out"), [table], seeds=1)
    make(tmp_path / "out", list(plan.runs.values()), jobs=1)
    (grid,) = filled(plan, tmp_path / "out", table)
    assert [label for label, _ in grid.rows] == ["the SAM of store", "SAM ViT-H"]
    for row, place in zip(table.rows, (store, other), strict=True):
        run = Run.open(plan.of_system(row.system)[0].training.out)
        assert run.facts["store"] == str(place)
        assert cells(grid)[row.label]["REC val"] == f"{evaluate_run(run, 'val').summary['rec_acc50']:.1f}"
    told = [note for note in grid.notes if "--teacher" in note]
    assert [note.partition(":")[0] for note in told] == ["EfficientSAM-Ti", "EfficientSAM-S", "SAM ViT-B", "SAM ViT-L"]
    assert f"--preset sam-l, then here --teacher {store}-sam-l" in told[-1]


def test_the_command_for_a_teacher_that_is_missing_names_the_data_of_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    remember_source(store, DATASET, tmp_path / "photos", ["train"])
    told = table_of_teachers([Store.open(store)], DATASET, ["val"]).notes
    wanted = f"--data {tmp_path / 'photos'} --dataset {DATASET} --split train,val --store {store}-sam-b --preset sam-b,"
    assert [wanted in note for note in told] == [note.startswith("SAM ViT-B") for note in told]
    assert len(told) == 5


def test_two_stores_of_the_same_sam_are_not_two_teachers(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"masks of the same SAM, the SAM of store; leave one out"):
        table_of_teachers([Store.open(store), Store.open(store)], DATASET, ["val"])


def papers_store(path: Path, preset: str, source: str) -> Store:
    """A store as if made by `preset` from photographs of `source`."""
    make_store(path)
    images = read_table(path / IMAGES_FILE)
    column = images.column_names.index("source")
    write_table(path / IMAGES_FILE, images.set_column(column, "source", pa.array([source] * len(images))))
    for stage, family in Store.open(path).families.items():
        (family.folder / "stage.json").unlink()
        write_stage_json(path, stage, family.stage_json["hashed"], {"preset": preset})
    return Store.open(path)


def test_only_the_papers_own_data_stand_beside_its_figures(tmp_path: Path) -> None:
    paper = papers_store(tmp_path / "paper", "refcoco", "coco")
    assert is_the_papers(paper, "refcoco", "refcoco")
    assert not is_the_papers(paper, "refcoco", "pocket")
    assert not is_the_papers(paper, "refcocog-umd", "refcocog")
    assert not is_the_papers(papers_store(tmp_path / "networks", "pocket", "coco"), "refcoco", "refcoco")
    assert not is_the_papers(papers_store(tmp_path / "photographs", "refcoco", "pocket-0"), "refcoco", "refcoco")


def test_the_papers_figures_are_in_columns_of_their_own_or_not_at_all(made: tuple[Path, Plan]) -> None:
    out, plan = made
    (beside,), (alone,) = (filled(plan, out, TWO_ROWS, beside_paper=shown) for shown in (True, False))
    assert beside.heads == ["REC val", "RES val", "paper: REC", "paper: RES"]
    assert alone.heads == ["REC val", "RES val"]
    assert "67.36" not in markdown(alone)


def test_the_tables_hold_what_the_papers_supplement_prints() -> None:
    said = {
        (table.name, row.label): (row.paper.rec["refcoco+"], row.paper.res.get("refcoco+"))
        for table in TABLES
        for row in table.rows
        if row.paper.rec
    }
    assert said["1", "WeakMCN without WRES"] == (48.94, None)
    assert said["1", "WeakMCN without WRES, with the SAM head"] == (48.94, 37.97)
    assert [said["2", f"α = 0.{tenth}"] for tenth in range(1, 5)] == [
        (50.26, 41.58),
        (51.48, 41.48),
        (50.49, 41.34),
        (50.19, 40.57),
    ]
    assert [said["3", bank] for bank in ("dino", "dino + sam", "dino + sam + clip")] == [
        (50.32, 40.43),
        (51.49, 41.47),
        (50.98, 40.76),
    ]
    fps = [row.paper.fps for table in TABLES if table.name == "4" for row in table.rows]
    assert fps == [24.5, 20.3, 17.7]
    assert said["5", "WeakMCN"] == (51.48, 41.48)


def test_every_row_names_a_method_and_settings_that_exist(store: Path, tmp_path: Path) -> None:
    systems = {row.system for table in TABLES for row in table.rows}
    assert {system.method for system in systems} <= set(METHODS)
    plan = Plan.of(Plans(store, DATASET, tmp_path, preset="pocket", splits=["val"]), TABLES, seeds=1)
    assert all("canvas" in fault for fault in plan.absent.values()), "the settings are refused for nothing else"


def test_tables_are_named_one_by_one_or_as_a_range() -> None:
    assert chosen(["1-3", "5", "ablations"]) == ["1", "2", "3", "5", "ablations"]
    for wrong in ("6", "3-1", "0-2", "all"):
        with pytest.raises(ConfigError, match="choose from 1, 2, 3, 4, 5, ablations, teachers"):
            chosen([wrong])


# Time


def test_the_time_of_a_training_counts_an_interrupted_epoch_whole(tmp_path: Path) -> None:
    timing = tmp_path / "timing.jsonl"
    lines = [
        {"epoch": 0, "references": 100, "seconds": 2.0},
        {"epoch": 1, "references": 25, "seconds": 1.0},  # three quarters of it were before the interruption
    ]
    timing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert seconds_trained(timing, epochs=2) == pytest.approx(2 + 4)
    assert seconds_trained(timing, epochs=3) is None
    assert seconds_trained(tmp_path / "none", epochs=1) is None


def test_a_run_is_timed_with_its_heads_alone_and_from_the_file_on(demo: Path) -> None:
    run, store = Run.open(demo / "run"), Store.open(demo / "store")
    files_of = {
        key: demo / "data" / file for key, file in zip(store.keys, store.images["file"].to_pylist(), strict=True)
    }
    timed = speeds(run, references_of(store, run.dataset, "val"), files_of, device="cpu", most=5)
    assert timed.keys() == {"heads", "end_to_end"}
    for way in timed.values():
        assert 0 < way["p50_ms"] <= way["p95_ms"]
        assert way["fps"] > 0
        assert way["batch_fps"] > 0
    assert timed["end_to_end"]["p50_ms"] > timed["heads"]["p50_ms"]


def test_photographs_that_are_gone_are_told_and_the_rest_of_the_table_stands(made: tuple[Path, Plan]) -> None:
    out, plan = made
    table = Table(name="5", title="", rows=TWO_ROWS.rows[:1], costs=("parameters", "training", "speed"))
    (grid,) = filled(plan, out, table)
    row = cells(grid)["boxes"]
    assert row["fps"] == "–"
    assert float(row["parameters, M"]) > 0
    assert any("not timed" in note and "--data DIR" in note for note in grid.notes)

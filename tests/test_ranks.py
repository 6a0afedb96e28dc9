"""N ranks with B/N expressions each are one process with B: same order, losses, gradients; and they end together."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from weakmcn.cli.main import main
from weakmcn.model import children
from weakmcn.model.children import GRACE_S, RankFailed, run_ranks
from weakmcn.model.config import TrainConfig
from weakmcn.model.interrupts import Interrupted
from weakmcn.model.launch import Place, place_in, rank_device, train_on
from weakmcn.model.ranks import ALONE, Ranks
from weakmcn.model.run import Run
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards.errors import ConfigError

from . import rank_pool
from .faults.commands import Commands
from .rank_pool import Pool
from .trainings import content, drawn_for, spelt
from .worlds import DATASET, RECIPE, TINY, make_store

CALM = replace(TINY, dropout=0.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(2, tmp_path_factory.mktemp("ranks") / "meeting")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("world") / "store")


def settings(store: Path, out: Path, *, recipe: TrainConfig = RECIPE, **more) -> TrainSettings:
    return TrainSettings(store=store, dataset=DATASET, out=out, model=TINY, train=recipe, device="cpu", **more)


# One step


@pytest.mark.parametrize(
    ("method", "epoch", "banks"),
    [
        ("weakmcn", 0, None),  # warm-up
        ("weakmcn", 12, None),
        ("weakmcn", 16, None),  # with ISL
        ("weakmcn", 16, ["dino", "sam", "clip"]),
        ("refclip", 0, None),
        ("apl", 1, None),
        ("apl", 2, None),  # with the box head
        ("tris-c", 0, None),
        ("tris-c2", 0, None),
    ],
)
def test_losses_gradients_and_statistics_are_those_of_one_process(
    pair: Pool, method: str, epoch: int, banks: list[str] | None
) -> None:
    for dtype, close in (("float32", 1e-5), ("float64", 1e-12)):
        for found in pair.ask(rank_pool.distances, method=method, epoch=epoch, banks=banks, dtype=dtype):
            assert found["values"]["total"] > 0.1
            assert found["weights_with_gradient"] > 20
            assert max(found["losses"].values()) < close
            # TRIS-C normalises maps that are nearly flat, which enlarges what float32 rounds off in one process too.
            assert found["gradients"] < max(close, 4 * found["rounding"])
            assert found["statistics"] < close


@pytest.mark.parametrize(("method", "epoch"), [("weakmcn", 0), ("weakmcn", 16), ("refclip", 0), ("apl", 2)])
def test_ranks_with_unequally_many_expressions_of_their_images_are_one_process_too(
    pair: Pool, method: str, epoch: int
) -> None:
    for found in pair.ask(rank_pool.distances, method=method, epoch=epoch, dtype="float64", owner=[0, 0, 0, 1, 2, 3]):
        assert found["weights_with_gradient"] > 20
        assert max(found["losses"].values()) < 1e-12
        assert found["gradients"] < 1e-12
        assert found["statistics"] < 1e-12


def test_local_negatives_contrast_a_text_with_its_own_ranks_images_only(pair: Pool) -> None:
    for got, wanted in pair.ask(rank_pool.local_contrast):
        assert got == pytest.approx(wanted, rel=1e-12)


def test_dropout_is_a_function_of_seed_step_and_rank_and_a_process_alone_keeps_its_generator() -> None:
    def drawn(seed: int, step: int, ranks: Ranks) -> float:
        ranks.draw_anew(seed, step)
        return torch.rand(()).item()

    places = [(seed, step, Ranks(rank=rank, size=2)) for seed in (1, 2) for step in (0, 1) for rank in (0, 1)]
    assert len({drawn(*place) for place in places}) == len(places)
    assert [drawn(*place) for place in places] == [drawn(*place) for place in places]
    assert drawn(1, 0, ALONE) != drawn(1, 0, ALONE)


# Agreement


def test_before_an_epoch_a_rank_that_would_take_another_number_of_steps_is_found_and_named(pair: Pool) -> None:
    assert pair.ask(rank_pool.differing, steps=[4, 4]) == ["", ""]
    for said in pair.ask(rank_pool.differing, steps=[4, 5]):
        assert said.startswith("epoch 3: rank 1 differs from rank 0 in the steps left (5, not 4); give all ranks")


@pytest.mark.parametrize(
    ("culprits", "ends"),
    [
        ([], [[], []]),
        ([0], [["ConfigError", "of rank 0", 2], ["ToldElsewhere", "", 2]]),
        ([1], [["ToldElsewhere", "", 2], ["ConfigError", "of rank 1", 2]]),
        ([0, 1], [["ConfigError", "of rank 0", 2], ["ToldElsewhere", "", 2]]),
    ],
)
def test_what_one_rank_raises_ends_all_and_is_told_once(
    pair: Pool, tmp_path: Path, culprits: list[int], ends: list
) -> None:
    assert pair.ask(rank_pool.raising, culprits=culprits, turns=False, notes=tmp_path / "all") == ends
    assert pair.ask(rank_pool.raising, culprits=culprits, turns=True, notes=tmp_path / "turns") == ends
    assert (tmp_path / "turns").read_text() == ("0" if 0 in culprits else "01"), "the first one goes first"


# A run


def test_a_run_on_two_ranks_is_the_run_of_one_process(pair: Pool, store: Path, tmp_path: Path) -> None:
    calm = {"store": store, "model": asdict(CALM), "recipe": asdict(RECIPE), "log_steps": 1}
    pair.ask(rank_pool.run, out=tmp_path / "two", **calm)
    alone = Run.open(train(replace(settings(store, tmp_path / "one", log_steps=1), model=CALM)).path)
    two = Run.open(tmp_path / "two")
    assert two.facts == alone.facts
    lines = [[json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (alone, two)]
    assert len(lines[0]) == len(lines[1]) == 9
    assert lines[1][0] == pytest.approx(lines[0][0], rel=1e-5)
    # Adam's first steps have the size of the rate whatever the gradient's, so rounding grows from step to step.
    for one, other in zip(*lines, strict=True):
        assert other == pytest.approx(one, rel=0.02)


def test_a_run_of_two_ranks_that_crashes_and_goes_on_ends_with_the_same_bytes(
    pair: Pool, store: Path, tmp_path: Path
) -> None:
    wanted = {"store": store, "model": asdict(TINY), "recipe": asdict(RECIPE)}
    assert TINY.dropout > 0
    pair.ask(rank_pool.run, out=tmp_path / "undisturbed", **wanted)
    for answer in pair.ask(rank_pool.run, out=tmp_path / "run", crash=4, checkpoint_minutes=0, **wanted):
        assert answer["fault"] == "Crash"
    for answer in pair.ask(rank_pool.run, out=tmp_path / "run", **wanted):
        assert answer == {"steps": [4, 5, 6, 7, 8, 9]}
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed")
    for answer in pair.ask(rank_pool.run, out=tmp_path / "run", **wanted):
        assert answer == {"steps": []}, "a finished run is left as it is"


def test_a_run_goes_on_with_another_number_of_ranks(pair: Pool, store: Path, tmp_path: Path) -> None:
    wanted = {"store": store, "out": tmp_path / "run", "model": asdict(TINY), "recipe": asdict(RECIPE)}
    steps: list[int] = []
    pair.ask(rank_pool.run, crash=3, checkpoint_minutes=0, **wanted)
    with pytest.raises(InterruptedError):
        train(settings(store, tmp_path / "run", checkpoint_minutes=0), after_step=stop_at(6, steps))
    for answer in pair.ask(rank_pool.run, **wanted):
        assert answer == {"steps": [6, 7, 8, 9]}
    assert steps == [3, 4, 5, 6]
    assert Run.open(tmp_path / "run").finished


def stop_at(step: int, steps: list[int]) -> Callable:
    def after_step(state) -> None:
        steps.append(state.step)
        if state.step == step:
            raise InterruptedError

    return after_step


def test_with_local_negatives_the_number_of_ranks_is_a_setting_of_the_run(
    pair: Pool, store: Path, tmp_path: Path
) -> None:
    wanted = {"store": store, "out": tmp_path / "run", "model": asdict(TINY), "recipe": asdict(RECIPE)}
    pair.ask(rank_pool.run, crash=1, negatives="local", **wanted)
    with pytest.raises(ConfigError, match="was made with negatives='local, 2 ranks', this command says None"):
        train(settings(store, tmp_path / "run", negatives="local"))


def test_what_is_not_finite_on_one_rank_no_rank_steps_on_and_the_references_of_all_are_named(
    pair: Pool, store: Path, tmp_path: Path
) -> None:
    wanted = {"store": store, "model": asdict(TINY), "recipe": asdict(RECIPE)}
    first, second = pair.ask(rank_pool.run, out=tmp_path / "run", spoil=[1, 5], **wanted)
    ref_ids, keys = drawn_for(store, 5)
    assert first["fault"] == "NotFinite"
    assert f"references {ref_ids} of images {keys}; all 5 steps before it are saved" in first["message"]
    assert second == {"steps": [1, 2, 3, 4, 5], "fault": "ToldElsewhere", "message": ""}
    pair.ask(rank_pool.run, out=tmp_path / "run", **wanted)
    pair.ask(rank_pool.run, out=tmp_path / "undisturbed", **wanted)
    assert content(tmp_path / "run") == content(tmp_path / "undisturbed")


# Processes


def ranks_of(parent: int) -> list[int]:
    """Living ranks that `parent` started, in the order of their numbers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, _, rest = (folder / "stat").read_text().rpartition(") ")
            words = (folder / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        state, owner = rest.split()[:2]
        if int(owner) == parent and state != "Z" and (b"serve()" in words or b"received_order()" in words):
            found.append(int(folder.name))
    return sorted(found)


def when(holds: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Does `act` as soon as something holds."""

    def wait() -> None:
        deadline = time.monotonic() + 100
        while not holds():
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def saved(out: Path, step: int) -> Callable[[], bool]:
    """Whether a checkpoint of that step or a later one is there."""
    return lambda: any(int(path.stem) >= step for path in (out / "checkpoints").glob("[0-9]*.json"))


def test_a_signal_saves_the_step_of_all_ranks_and_a_killed_rank_ends_the_others_with_one_line(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--shards", store, "--dataset", DATASET, "--preset", "pocket", "--device", "cpu", "--devices", 2]
    words += [*spelt(recipe=replace(RECIPE, epochs=60)), "--out", out]
    monkeypatch.setattr(sys, "argv", ["weakmcn", "train", *map(str, words)])
    before = signal.getsignal(signal.SIGTERM)

    sent = when(saved(out, 3), lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main() == 130
    sent.join()
    err = capfd.readouterr().err.splitlines()
    assert err.count("Stopping: this step is finished and saved first.") == 1
    stopped = re.fullmatch(
        rf"weakmcn: {out}: interrupted after step (\d+), which is saved; run the same command again to go on.", err[-1]
    )
    assert stopped
    assert (out / "checkpoints" / f"{int(stopped[1]):08d}.json").exists()
    assert ranks_of(os.getpid()) == []

    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)

    sent = when(saved(out, int(stopped[1]) + 1), kill)
    assert main() == 1
    assert time.monotonic() - killed[0] < GRACE_S + 1
    *told, line = capfd.readouterr().err.splitlines()
    assert line == (
        f"weakmcn: {out}: rank 1 of 2 was killed by SIGKILL, the others were stopped; run the same command again to go "
        "on from the newest checkpoint."
    )
    assert [
        other.partition(", in epoch")[0]
        for other in told
        if not other.startswith(("epoch ", "Features: ", "The mask head ", "From epoch "))
    ] == [f"Goes on after step {stopped[1]}"]
    assert ranks_of(os.getpid()) == []
    assert not list(out.rglob(".tmp-*"))
    signal.signal(signal.SIGTERM, before)


def test_torchrun_starts_ranks_too(commands: Commands, store: Path, tmp_path: Path) -> None:
    words = ["train", "--shards", store, "--dataset", DATASET, "--preset", "pocket", "--device", "cpu", *spelt()]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [
        commands.begin(
            *(*words, "--out", tmp_path / "run"),
            folder=tmp_path,
            environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.ended() for rank in ranks] == [0, 0], [rank.err for rank in ranks]
    said = [(rank.out, rank.err) for rank in ranks]
    assert said[0][0] == f"{tmp_path / 'run'}: done. Measure it: weakmcn eval --run {tmp_path / 'run'} --split val\n"
    assert said[1] == ("", "")
    assert Run.open(tmp_path / "run").finished


def free_port() -> int:
    import socket

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


# Processes that say how they end: no torch, so that they start in a moment


AS_TOLD = """
import os, time
from weakmcn.model.children import Report, received_order
order = received_order()
open(order["here"], "w").close()
exec(order["code"])
"""


def started(tmp_path: Path, *codes: str) -> None:
    run_ranks(AS_TOLD, [{"code": code, "here": tmp_path / f"{rank}"} for rank, code in enumerate(codes)], tmp_path)


def saying(**report) -> str:
    return f"Report(**{report}).send(order['report_end']); os._exit({report.get('status', 0)})"


def test_ranks_that_say_they_are_done_are_done(tmp_path: Path) -> None:
    started(tmp_path, saying(), "time.sleep(0.2); " + saying())


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (
            ["os._exit(3)", saying(status=1, message="cannot reach", lost=True)],
            "rank 0 of 2 ended with status 3, the o",
        ),
        (["time.sleep(60)", "os.kill(os.getpid(), 11)"], "rank 1 of 2 was killed by SIGSEGV, the others were stopped"),
        ([saying(status=2, message="cannot reach", lost=True), saying(status=2, message="no disk")], "^no disk$"),
        (["time.sleep(60)", saying(status=1, message="cannot reach", lost=True)], "^cannot reach$"),
        ([saying(status=2, message="no disk"), saying(status=2, told_elsewhere=True)], "^no disk$"),
        (["time.sleep(1); " + saying(status=2, message="no disk"), saying(status=2, told_elsewhere=True)], "^no disk$"),
    ],
)
def test_the_one_line_is_of_the_rank_that_failed_first_and_hanging_ones_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[str], message: str
) -> None:
    monkeypatch.setattr(children, "GRACE_S", 3)
    began = time.monotonic()
    with pytest.raises(RankFailed, match=message) as failed:
        started(tmp_path, *codes)
    assert failed.value.exit_code == (2 if "no disk" in message else 1)
    assert time.monotonic() - began < 20
    assert ranks_of(os.getpid()) == []


def test_a_second_signal_ends_ranks_that_do_not_stop(tmp_path: Path) -> None:
    deaf = (
        "import signal; signal.signal(15, signal.SIG_IGN); open(order['here'] + ' deaf', 'w').close(); time.sleep(60)"
    )

    def send_twice() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    began = time.monotonic()
    sent = when(lambda: len(list(tmp_path.glob("* deaf"))) == 2, send_twice)
    with pytest.raises(Interrupted, match="interrupted; what was finished is kept") as stopped:
        started(tmp_path, deaf, deaf)
    sent.join()
    assert time.monotonic() - began < 30
    assert stopped.value.exit_code == 143
    assert ranks_of(os.getpid()) == []


def test_ranks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    orders = [{"code": "time.sleep(60)", "here": str(tmp_path / f"{rank}")} for rank in range(2)]
    code = f"from weakmcn.model.children import run_ranks; run_ranks({AS_TOLD!r}, {orders}, '')"
    parent = subprocess.Popen([sys.executable, "-c", code])
    when(lambda: len(list(tmp_path.iterdir())) == 2, lambda: None).join()
    ranks = ranks_of(parent.pid)
    assert len(ranks) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# What cannot be


def test_a_batch_that_cannot_be_shared_equally_is_refused_before_anything_starts(
    run, store: Path, tmp_path: Path
) -> None:
    words = ["--shards", store, "--dataset", DATASET, "--preset", "pocket", "--out", tmp_path / "run", *spelt()]
    ended = run("train", *words, "--devices", 3)
    assert (ended.status, ended.err.splitlines()[-1]) == (
        2,
        "weakmcn: batch=8 for 3 ranks is no equal share; train on 2 (--devices 2), or --set train.batch=6.",
    )
    ended = run("train", *words, "--devices", 8, "--negatives", "local")
    assert "leaves a rank one image and nothing to contrast it with; train on 4 (--devices 4), or" in ended.err
    assert run("train", *words, "--devices", 0).err == "weakmcn: devices=0 must be at least 1.\n"
    assert not (tmp_path / "run").exists()


def torchrun(**changes: str) -> dict[str, str]:
    usual = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    return {**usual, "MASTER_ADDR": "here", "MASTER_PORT": "29500", **changes}


def test_the_place_is_the_one_that_torchrun_gave() -> None:
    assert place_in(torchrun()) == Place(rank=1, size=4, local_rank=1, local_size=2)
    assert place_in({}) is None
    assert place_in(torchrun(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")) is None
    for wrong in ({"RANK": "4"}, {"LOCAL_RANK": "2"}, {"RANK": "first"}, {"LOCAL_WORLD_SIZE": "5"}):
        (name,) = wrong
        with pytest.raises(ConfigError, match=rf"{name}={wrong[name]}\b.*; start with torchrun"):
            place_in(torchrun(**wrong))
    with pytest.raises(ConfigError, match="no MASTER_ADDR and MASTER_PORT"):
        place_in({"RANK": "0", "WORLD_SIZE": "2"})


def test_devices_under_torchrun_are_refused(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in torchrun().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--devices 2 under torchrun, which has started 4 ranks; leave it out"):
        train_on(settings(store, tmp_path / "run"), 2)


def test_every_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(rank=5, size=8, local_rank=1, local_size=4)
    assert rank_device("cpu", place) == "cpu"
    if torch.cuda.device_count() >= 4:
        assert rank_device("cuda", place) == "cuda:1"
    elif torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"4 ranks here, .* GPUs"):
            rank_device("cuda", place)
    else:
        assert rank_device("auto", place) == "cpu"

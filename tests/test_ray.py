"""Ray actors make the bytes that one process makes, and outlive the death of a worker."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from weakmcn.pipeline.executor import RayExecutor
from weakmcn.pipeline.health import ray_fault
from weakmcn.pipeline.precompute import precompute
from weakmcn.shards.errors import InputError

from .soak.ray_kills import working
from .tiny import digests, write_data, write_weights

pytestmark = pytest.mark.ray

CORES = 2


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """One session for all tests: starting Ray takes seconds."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=CORES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=100 << 20,
    )
    yield
    ray.shutdown()


def run(root: Path, store: str, executor: str) -> dict[str, str]:
    """The files of a store made from the data in `root`, relative path -> digest."""
    report = precompute(
        write_weights(root / "weights"),
        store=root / store,
        data=root / "data",
        dataset="refcoco",
        splits=["train", "val"],
        detector_bn="reestimate",
        executor=executor,
        console=Console(quiet=True),
    )
    assert report.exit_code == 0
    return digests(root / store)


def test_ray_and_this_process_write_the_same_bytes_even_if_a_worker_is_killed(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    undisturbed = run(tmp_path, "local", "local")
    killed: list[int] = []
    is_over = threading.Event()

    def kill_one() -> None:
        while not killed and not is_over.wait(0.01):
            if list((tmp_path / "ray").glob("detect-*/*.tar")):  # the run is well under way
                for pid in working(os.getpid(), b"ray::Worker.run")[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        on_ray = run(tmp_path, "ray", "ray")
    finally:
        is_over.set()
        killer.join()
    assert len(killed) == 1
    assert on_ray == undisturbed


def test_more_workers_than_cores_are_refused_instead_of_awaited() -> None:
    with pytest.raises(InputError, match=f"--workers {CORES + 1}: the Ray cluster has {CORES} cores"):
        RayExecutor(workers=CORES + 1).__enter__()


def test_the_doctor_finds_that_ray_starts() -> None:
    assert ray_fault() is None

"""Shards on Ray actors: the only file that imports Ray.

Actors hold the frozen networks, one a GPU (or a fraction of one), one a core where there is none. They are handed
paths, write their shards themselves and send back a few numbers; no array passes through the object store. Ray places
actors and tells when one dies. Retrying is ours (attempts.py), because Ray's own never ends on a record that always
kills its worker, and so is the deadline: Ray waits for ever for an actor that hangs.
"""

import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from ..shards import faults
from ..shards.errors import InputError, StageError, WeakmcnError
from .attempts import Attempts
from .tasks import Outcome, ShardFailed, ShardTask
from .trail import STALL_S, START_S, images_in, read_trail, trail_path
from .work import Worker

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent home
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would pack and copy the working folder
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_OBJECT_STORE_BYTES = 100 << 20
"""Small: only numbers travel."""
_WAIT_S = 1.0


class RayExecutor:
    """A set of actors, used as a context manager. Joins the Ray session of the process if there is one.

    address: of a running cluster; None starts one on this machine and stops it at the end. workers: number of actors,
    by default one a GPU, or one a core. stall_s: a worker that takes no step for so long is stopped, and its shard
    counts as failed once. Raises InputError where the cluster cannot hold the workers.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        workers: int | None = None,
        insecure_ray: bool = False,
        stall_s: float = STALL_S,
    ) -> None:
        if address and not insecure_ray and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            raise InputError(
                f"the Ray cluster at {address} is used without token authentication: whoever reaches its ports runs "
                "code on it. Start it and this command with RAY_AUTH_MODE=token, or say --insecure-ray."
            )
        self._address = address
        self._asked = workers
        self._stall_s = stall_s
        self._is_ours = False
        self._actors: list[Any] = []
        self.device = "cpu"

    @property
    def workers(self) -> int:
        return len(self._actors)

    def __enter__(self) -> Self:
        try:
            self._connect()
            self._options, count = self._placement()
            self._actors = [self._new_actor() for _ in range(count)]
            self.device = _answer(self._actors[0].device_name.remote())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def run(self, tasks: Sequence[ShardTask]) -> Iterator[Outcome]:
        """Run the tasks, each as often as attempts.py says; yields one outcome a task, as they come."""
        import ray

        waiting = deque(Attempts(task=task) for task in tasks)
        idle = list(self._actors)
        busy: dict[Any, _Running] = {}
        while waiting or busy:
            while waiting and idle:
                running = _Running(actor=idle.pop(), attempts=waiting.popleft())
                busy[running.actor.run.remote(running.task)] = running
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=_WAIT_S)
            ended = {answer: self._outcome(answer, busy[answer]) for answer in ready}
            ended |= {
                answer: self._stopped(running)
                for answer, running in busy.items()
                if answer not in ended and running.is_stalled(self._stall_s)
            }
            for answer, outcome in ended.items():
                running = busy.pop(answer)
                died = isinstance(outcome, ShardFailed) and outcome.worker_died
                idle.append(self._replaced(running.actor) if died else running.actor)
                final = running.attempts.after(outcome)
                if final is None:
                    waiting.appendleft(running.attempts)
                else:
                    yield final

    def _connect(self) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            return
        self._is_ours = True
        terminate = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
        if self._address:
            del options["include_dashboard"]
            options["address"] = self._address
        else:
            cores = len(os.sched_getaffinity(0))
            options |= {"address": "local", "object_store_memory": _OBJECT_STORE_BYTES}
            options["num_cpus"] = max(cores, self._asked or 0)
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises its own kinds, and plain Exception when a machine is overloaded
            where = f"at {self._address}" if self._address else "on this machine"
            raise WeakmcnError(
                f"Ray did not start {where}: {_first_line(error)}; try --executor local, which needs no Ray."
            ) from error
        except SystemExit:  # SIGTERM while Ray starts meets Ray's own handler
            raise SystemExit(128 + signal.SIGTERM) from None
        with suppress(ValueError):  # Ray puts its own handler in place; not the main thread: nothing was changed
            signal.signal(signal.SIGTERM, terminate)

    def _placement(self) -> tuple[dict[str, Any], int]:
        """Ray's options for one actor, and how many there are. An impossible request would wait forever, so compare."""
        import ray

        resources = ray.cluster_resources()
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if gpus and not self._address:
            import torch

            gpus = gpus if torch.cuda.is_available() else 0  # a CPU build of torch on a machine with a GPU
        count = self._asked or gpus or cores
        if count < 1 or count > cores:
            raise InputError(f"--workers {count}: the Ray cluster has {cores} cores; ask for 1 to {cores}.")
        # Equal parts: of 2 GPUs and 3 workers each takes a half, or the third would wait for ever.
        share = 1 / math.ceil(count / gpus) if gpus else 0
        options = {"num_cpus": 1, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        return options, count

    def _new_actor(self) -> Any:
        import ray

        device = "cuda:0" if self._options["num_gpus"] else "cpu"
        asked = {name: os.environ[name] for name in (faults.VARIABLE,) if name in os.environ}
        options: dict[str, Any] = self._options | ({"runtime_env": {"env_vars": asked}} if asked else {})
        return ray.remote(**options)(Worker).remote(device)

    def _replaced(self, dead: Any) -> Any:
        self._actors.remove(dead)
        self._actors.append(self._new_actor())
        return self._actors[-1]

    def _outcome(self, answer: Any, running: "_Running") -> Outcome:
        import ray
        from ray import exceptions

        try:
            return ray.get(answer)
        except exceptions.OutOfMemoryError:
            reason = "its worker was stopped for lack of memory; use fewer --workers"
        except exceptions.RayError as error:
            reason = f"its worker died ({_first_line(error)})"
        return running.died(reason)

    def _stopped(self, running: "_Running") -> Outcome:
        import ray

        ray.kill(running.actor)
        return running.died(f"its worker took no step for {self._stall_s:.0f} s and was stopped")

    def _stop(self) -> None:
        import ray

        for actor in self._actors:
            with suppress(Exception):  # it may be dead already
                ray.kill(actor)
        self._actors = []
        if self._is_ours:
            ray.shutdown()
            self._is_ours = False


class _Running:
    """A task under way on an actor, and since when its trail has not changed."""

    def __init__(self, *, actor: Any, attempts: Attempts) -> None:
        self.actor = actor
        self.attempts = attempts
        self.task: ShardTask = attempts.next_task()
        self._seen, self._since = "", time.monotonic()

    def is_stalled(self, stall_s: float) -> bool:
        """Whether the worker took its last step longer ago, by this process's clock."""
        trail = read_trail(self.task.folder, self.task.shard)
        if trail != self._seen:
            self._seen, self._since = trail, time.monotonic()
        return time.monotonic() - self._since > (stall_s if trail else max(stall_s, START_S))

    def died(self, reason: str) -> ShardFailed:
        """What became of the task when its worker is no more."""
        at = images_in(read_trail(self.task.folder, self.task.shard))
        trail_path(self.task.folder, self.task.shard).unlink(missing_ok=True)
        return ShardFailed(shard=self.task.shard, reason=reason, may_pass=True, worker_died=True, at=at)


def _answer(reference: Any) -> Any:
    import ray
    from ray import exceptions

    try:
        return ray.get(reference, timeout=300)
    except exceptions.RayError as error:
        raise StageError(f"no Ray worker could be started: {_first_line(error)}; try --executor local.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

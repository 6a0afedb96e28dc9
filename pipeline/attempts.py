"""What is tried when a shard fails: again, then image by image, then without the guilty one; always finitely often.

Ray retries a task whose worker died, if asked to, without looking why, and one that ran out of memory for ever. A
record that always kills its worker would keep it busy until somebody notices. Here every failure of a shard counts,
whatever it was (an exception, a crash, no memory, no progress), and the last thing the worker wrote down (trail.py)
narrows the search to a few images, which are then tried one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .tasks import Outcome, ShardDone, ShardFailed, ShardTask

ATTEMPTS = 3
"""Times a whole shard is tried before it has failed for good."""
INNOCENTS = 3
"""Images that are tried before a suspect; where none of them passes, it is the machine's fault and nobody's."""


@dataclass(kw_only=True)
class Attempts:
    """One shard's way to an outcome.

    A shard that fails twice is looked through: the images that its worker was at go one at a time through the same
    steps, and nothing is written. One that fails there, and again right after another image has passed, is guilty: it
    is left out, with its reason in the sidecar, or it fails the shard, as the task asks. That makes at most 3 attempts
    at the whole shard and 2 at an image.
    """

    task: ShardTask
    """The whole shard, without the images that were found guilty so far."""
    _looking: ShardTask | None = None
    """The images being tried one at a time, while that is so."""
    _suspect: str | None = None
    """The image that failed in that."""
    _innocents: list[str] = field(default_factory=list)
    """Images one of which must pass right before the suspect fails again, the next one last."""
    _failures: int = 0

    def next_task(self) -> ShardTask:
        """What to run now."""
        return self._looking or self.task

    def after(self, outcome: Outcome) -> Outcome | None:
        """The shard's outcome, or None where there is something left to try."""
        if isinstance(outcome, ShardDone):
            if self._looking is None:
                return outcome
            self._looking = None  # nothing found: the whole shard has one attempt left
            return None
        self.task = replace(self.task, beside=None)  # fewer things that could be at fault
        if outcome.fatal is not None:
            return outcome
        if outcome.culprit is not None:
            return self._found(outcome.culprit, outcome.reason)
        if not outcome.may_pass:
            return outcome
        return self._after_look(outcome) if self._looking else self._after_whole(outcome)

    def _after_whole(self, outcome: ShardFailed) -> Outcome | None:
        self._failures += 1
        if self._failures >= ATTEMPTS:
            return outcome
        if self._failures == ATTEMPTS - 1 and outcome.at:
            self._suspect = None
            self._look_at(outcome.at)
        return None

    def _after_look(self, outcome: ShardFailed) -> Outcome | None:
        assert self._looking is not None
        key = outcome.at[0] if len(outcome.at) == 1 else None
        if key is not None and key == self._suspect:
            return self._found(key, outcome.reason)
        if key is not None and self._suspect is None:
            keys = [row.key for row in self._looking.images]
            passed = keys[: keys.index(key)]
            others = [row.key for row in self.task.images if row.key not in (*passed, key)]
            self._suspect, self._innocents = key, (others + passed)[-INNOCENTS:]
            if len(self.task.images) == 1:
                return self._found(key, outcome.reason)
        if key is None or not self._innocents:  # it did not come as far as an image, or nothing passes
            self._looking = None
            return None
        self._look_at((self._innocents.pop(), self._suspect))
        return None

    def _look_at(self, keys: Sequence[str | None]) -> None:
        rows = {row.key: row for row in self.task.images}
        images = tuple(rows[key] for key in keys if key is not None)
        self._looking = replace(self.task, images=images, one_by_one=True)

    def _found(self, key: str, reason: str) -> Outcome | None:
        """An image whose fault it is: the shard goes on without it, or ends."""
        if not self.task.skip_bad:
            return ShardFailed(
                shard=self.task.shard,
                reason=f"image {key}: {reason}; mend it, or leave such images out with --skip-bad",
                culprit=key,
            )
        left = tuple(row for row in self.task.images if row.key != key)
        skipped = tuple(sorted((*self.task.skipped, (key, reason))))
        self.task, self._looking = replace(self.task, images=left, skipped=skipped), None
        self._failures = min(self._failures, ATTEMPTS - 2)  # the next one found guilty costs one attempt, not two
        return None

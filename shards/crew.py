"""A few threads that do the parts of one thing together."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class Crew:
    """The calling thread and its helpers; several callers may share the helpers."""

    def __init__(self, threads: int) -> None:
        """threads: with the caller's; helpers start when they are first needed and end with the crew."""
        self._helpers = threads - 1
        self._pool = ThreadPoolExecutor(self._helpers, "copy") if self._helpers else None

    def do(self, work: Callable[[int], None], count: int) -> None:
        """`work` of 0, 1, ... count - 1, each by whoever is free; all are done, or the first fault is raised."""
        numbers = iter(range(count))  # shared: who takes a number takes it from all

        def take() -> None:
            try:
                for number in numbers:
                    work(number)
            except BaseException:
                for _ in numbers:  # the others need not go on
                    pass
                raise

        helpers = [self._pool.submit(take) for _ in range(min(self._helpers, count - 1))] if self._pool else []
        try:
            take()
        finally:
            begun = [helper for helper in helpers if not helper.cancel()]
            faults = [fault for helper in begun if (fault := helper.exception()) is not None]
        if faults:
            raise faults[0]

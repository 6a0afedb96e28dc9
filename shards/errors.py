"""Faults that a user can mend, and the exit code each ends a command with.

Every error of weakmcn derives from `WeakmcnError` and carries one message: what is wrong, in which file or value, and
how to mend it. Commands print that message without a traceback. Anything else that is raised is a bug and keeps its
traceback.

Exit codes: 0 done; 1 failed; 2 the input or the command line is wrong and nothing was started; 3 finished, with skips;
130 / 143 interrupted.
"""


class WeakmcnError(Exception):
    """Something a user can mend; the message names it and says how."""

    exit_code = 1


class InputError(WeakmcnError):
    """The input or the command line is wrong; nothing was started."""

    exit_code = 2


class ConfigError(InputError):
    """A setting that cannot be used, found when the settings are built."""


class AnnotationError(InputError):
    """An annotation file is missing, broken or contradicts another one."""


class ImageError(InputError):
    """A photograph is missing, is no image, is cut short or is out of bounds."""


class CheckpointError(InputError):
    """Weights are missing, damaged, or belong to another network."""


class StoreError(InputError):
    """The store, or a column of it, is missing, stale or not made for this use."""


class DamagedShardError(StoreError):
    """Bytes of a shard differ from what its sidecar says."""


class StageError(WeakmcnError):
    """A stage could not be finished; what was finished is kept."""

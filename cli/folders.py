"""Folders that a command writes its own files into."""

from pathlib import Path


def require_own(out: Path, marks: set[str], what: str) -> None:
    """InputError unless `out` is new or empty, or one that the command has begun: it then has one of `marks`.

    Hidden files do not count. what: the folder holds, for the message.
    """
    from ..shards.errors import InputError

    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, not a folder; choose another name.")
    found = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if found and not found & marks:
        raise InputError(f"--out {out}: holds other things and no {what}; choose a new folder.")

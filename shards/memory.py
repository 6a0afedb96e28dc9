"""How much memory a process can still take without making the machine swap or the kernel kill."""

from pathlib import Path

_PROC, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """What the machine and the container it runs in can give, cached files counted as free; None where none can tell.

    meminfo, cgroup: where the kernel tells it. A limit is looked for in the root of the unified hierarchy, which is
    where a container sees its own.
    """
    found = [size for size in (_of_machine(meminfo), _of_container(cgroup)) if size is not None]
    return min(found, default=None)


def _of_machine(meminfo: Path) -> int | None:
    return _counts(meminfo, scale=1024).get("MemAvailable:")


def _of_container(cgroup: Path) -> int | None:
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    if not limit.isdigit():  # "max"
        return None
    files = _counts(cgroup / "memory.stat").get("inactive_file", 0)
    return max(0, int(limit) - int(used) + files)


def _counts(path: Path, scale: int = 1) -> dict[str, int]:
    """First word of each line -> the number behind it; empty if there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {words[0]: scale * int(words[1]) for line in lines if len(words := line.split()) > 1 and words[1].isdigit()}

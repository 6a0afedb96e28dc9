"""Annotation files as they lie on the disk: read whole, digested, parsed as plain data, their faults gathered.

Nothing here or above it runs code from a file, and nothing hands native code a number that was not looked at.
"""

import hashlib
import json
import math
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from ..shards.errors import AnnotationError

MAX_BYTES = 1 << 29
"""Bytes of the largest annotation file that is read; all of COCO's train2014 has 0.85 of it."""
MAX_CONTAINERS = 8_000_000
"""Lists and objects of one JSON file: 3 bytes can ask for 64 of memory. All of COCO's train2014 has 3 million."""


@dataclass(frozen=True, eq=False)
class Source:
    """The bytes of one annotation file."""

    path: Path
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """Digest of the bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass
class Faults:
    """Faults of one file by kind: a user sees the first of each and how many there are."""

    path: Path
    mend: str
    """What to do about them, for the end of the message."""
    kinds: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, kind: str, text: str) -> None:
        """Note one fault; `text` names the record."""
        first, count = self.kinds.get(kind, (text, 0))
        self.kinds[kind] = (first, count + 1)

    def raise_if_any(self) -> None:
        """AnnotationError in one line: the first fault of two kinds at most, and how many more."""
        if not self.kinds:
            return
        limit = 150 if len(self.kinds) == 1 else 80
        shown = [clip(text, limit) + (f" ({count:,} such)" if count > 1 else "") for text, count in self.kinds.values()]
        rest = [f"{len(shown) - 2} other kinds of fault"] if len(shown) > 2 else []
        raise AnnotationError(f"{self.path}: {'; '.join(shown[:2] + rest)}; {self.mend}.")


def read_source(path: Path) -> Source:
    """The file's bytes; AnnotationError where it is missing, no plain file, empty, unreadable or beyond the limit."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise AnnotationError(f"{path}: is a directory; the annotation file belongs there.")
        if not stat.S_ISREG(status.st_mode):
            raise AnnotationError(f"{path}: is a pipe or a device; the annotation file belongs there.")
        if status.st_size > MAX_BYTES:
            raise AnnotationError(
                f"{path}: {status.st_size:,} bytes, the limit is {MAX_BYTES:,}; this is no annotation file."
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise AnnotationError(f"{path}: missing; put the annotation file there.") from None
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); make it readable.") from None
    if not data.strip():
        raise AnnotationError(f"{path}: empty file; fetch it again.")
    return Source(path, data)


def parse_json(source: Source) -> Any:
    """The JSON value of a file; NaN, infinity and an object with one name twice are refused. AnnotationError."""
    if source.data.count(b"[") + source.data.count(b"{") > MAX_CONTAINERS:
        raise AnnotationError(f"{source.path}: more than {MAX_CONTAINERS:,} lists and objects; fetch it again.")
    try:
        return json.loads(
            source.data.decode("utf-8-sig"), object_pairs_hook=_object_of_different_names, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{source.path}: broken at character {error.pos:,} ({error.msg}); a download cut short? Fetch it again."
        ) from None
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{source.path}: not UTF-8 at byte {error.start:,}; fetch it again.") from None
    except RecursionError:
        raise AnnotationError(f"{source.path}: nested too deeply for an annotation file; fetch it again.") from None
    except ValueError as error:
        raise AnnotationError(f"{source.path}: {clip(str(error), 100)}; correct the file.") from None


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is an integer that an int64 column can hold (True and False are none)."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_finite(value: object) -> bool:
    """Whether a value is a real number that is neither NaN nor infinite nor beyond 1e15."""
    return type(value) in (int, float) and -1e15 < value < 1e15 and not math.isnan(value)  # type: ignore[operator]


def clip(text: str, limit: int) -> str:
    """Foreign text for a message: control characters escaped, long text cut."""
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def brief(value: object, limit: int = 40) -> str:
    """A foreign value for a message. Never its whole repr: a few bytes of pickle can nest 10^20 lists."""
    if isinstance(value, str):
        return clip(repr(value[:limit]), limit)
    if isinstance(value, (list, tuple)) and len(value) <= 8:
        return clip(f"[{', '.join(_scalar(item) for item in value)}]", limit)
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 100:
        return "a very long integer"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    return clip(repr(value[:30]), 30) if isinstance(value, str) else f"a {type(value).__name__}"


def _object_of_different_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"an object names {brief(twice)} twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")

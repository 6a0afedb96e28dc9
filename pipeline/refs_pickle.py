"""The one door for pickles: refs(*.p) of the REFER data sets, and nothing that could run code.

A genuine file holds lists, dictionaries, integers and strings. So its opcodes are scanned first against a list of those
that build such values, and the unpickler that follows can import nothing at all. Files of protocols 0 to 5 pass.

Plain values can exhaust a machine too. What a few bytes could blow up is bounded in the scan: memo entries beyond those
that can be filled, containers (an empty list takes one byte of file and 56 of memory), tuples used twice (hashing
nested ones takes time without end) and very long integers (their hashes collide at will).
"""

import io
import pickle
import pickletools
from collections import deque
from typing import Any, NoReturn

from ..shards.errors import AnnotationError
from .sources import Source, clip

_HARMLESS_NAMES = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE "
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE"
)
_HARMLESS = frozenset(_HARMLESS_NAMES.split())
"""Building lists, dicts, tuples, numbers and text; memo and framing. No import, call, persistent id or buffer."""
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GET = frozenset(("GET", "BINGET", "LONG_BINGET"))
_TUPLES = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_CONTAINERS = _TUPLES | {"EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT"}
_REMEMBERED = _CONTAINERS | {
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
"""What picklers put into the memo, right behind the opcode that made it."""

MAX_OPCODES = 20_000_000
"""RefCOCO's 50,000 references take 6 million."""
MAX_CONTAINERS = 5_000_000
"""RefCOCO's 50,000 references take 700,000."""
MAX_LONG_INTEGERS = 1_000
"""Integers beyond 60 bits; a genuine file has none."""


def parse_refs(source: Source) -> tuple[Any, list[str]]:
    """The plain value of a refs pickle, and warnings (text that was not UTF-8). AnnotationError for anything else."""
    _scan(source)
    try:
        return _load(source, "utf-8"), []
    except UnicodeDecodeError:
        warning = f"{source.path}: its text is not UTF-8 and was read as Latin-1; accents may be wrong."
    return _load(source, "latin-1"), [warning]


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that finds no class: the second lock behind the scan."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


def _load(source: Source, encoding: str) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(source.data), encoding=encoding).load()
    except UnicodeDecodeError:
        raise
    except Exception as error:  # a damaged pickle raises of every kind, depending on the byte
        raise _damaged(source, error) from None


def _scan(source: Source) -> None:
    """Read every opcode without building anything; AnnotationError for what is not plain, or not of a sane size."""
    if max(source.data.count(b"]"), source.data.count(b"}")) > MAX_CONTAINERS:
        raise _too_much(source)  # at once, where an opcode a byte would take seconds
    count = containers = long_integers = 0
    texts: deque[str] = deque(maxlen=2)
    before = ""
    memo: dict[int, bool] = {}  # entry -> whether it holds a tuple
    argument: Any
    try:
        for opcode, argument, _ in pickletools.genops(source.data):
            name = opcode.name
            count += 1
            if name not in _HARMLESS:
                raise _refused(source, _asked_for(name, argument, texts))
            if name in _PUT or name == "MEMOIZE":
                entry = len(memo) if name == "MEMOIZE" else argument
                if entry > count:
                    raise _refused(source, f"memo entry {entry}, more than it can fill,")
                if before not in _REMEMBERED:
                    raise _unusual(source, f"a memo entry behind {before or 'nothing'}")
                memo[entry] = before in _TUPLES
            elif name in _GET:
                if memo.get(argument):
                    raise _unusual(source, "a tuple that stands in several places")
            elif name in _CONTAINERS:
                containers += 1
            elif type(argument) is int:
                long_integers += argument.bit_length() > 60
            elif isinstance(argument, str):
                texts.append(argument)
            if count > MAX_OPCODES or containers > MAX_CONTAINERS or long_integers > MAX_LONG_INTEGERS:
                raise _too_much(source)
            if name != "FRAME":  # stands wherever the pickler's buffer was full
                before = name
    except (ValueError, UnicodeError) as error:
        raise _damaged(source, error) from None


def _asked_for(opcode: str, argument: Any, texts: deque[str]) -> str:
    if opcode in ("GLOBAL", "INST"):
        return clip(str(argument).replace(" ", "."), 60)
    if opcode == "STACK_GLOBAL" and len(texts) == 2:
        return clip(".".join(texts), 60)
    return f"the opcode {opcode}"


def _refused(source: Source, wanted: str) -> AnnotationError:
    as_json = source.path.with_suffix(".json").name
    return AnnotationError(
        f"{source.path}: asks for {wanted} while being read, which could run code; refused. Only lists, dicts, numbers "
        f"and text are read: fetch a clean copy, or store it as JSON under the name {as_json}."
    )


def _unusual(source: Source, what: str) -> AnnotationError:
    as_json = source.path.with_suffix(".json").name
    return AnnotationError(
        f"{source.path}: holds {what}, which no pickler of references writes; refused. Fetch a clean copy, or store it "
        f"as JSON under the name {as_json}."
    )


def _too_much(source: Source) -> AnnotationError:
    return AnnotationError(
        f"{source.path}: holds too many lists or numbers to be the references of photographs; fetch the file again."
    )


def _damaged(source: Source, error: Exception) -> AnnotationError:
    return AnnotationError(f"{source.path}: not a whole pickle ({clip(str(error), 60)}); fetch it again.")

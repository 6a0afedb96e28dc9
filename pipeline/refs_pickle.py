"""The one door for pickles: refs(*.p) of the REFER data sets, and nothing that could run code.

A genuine file holds lists, dictionaries, integers and strings. So its opcodes are scanned first against a list of those
that build such values, and the unpickler that follows can import nothing at all. Files of protocols 0 to 5 pass.
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
_MEMO = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


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
    """Read every opcode without building anything; a memo index beyond the count of opcodes is a memory bomb."""
    count = 0
    texts: deque[str] = deque(maxlen=2)
    try:
        for opcode, argument, _ in pickletools.genops(source.data):
            count += 1
            if opcode.name not in _HARMLESS:
                raise _refused(source, _asked_for(opcode.name, argument, texts))
            if isinstance(argument, int) and opcode.name in _MEMO and argument > count:
                raise _refused(source, f"memo entry {argument}, more than it can fill,")
            if isinstance(argument, str):
                texts.append(argument)
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


def _damaged(source: Source, error: Exception) -> AnnotationError:
    return AnnotationError(f"{source.path}: not a whole pickle ({clip(str(error), 60)}); fetch it again.")

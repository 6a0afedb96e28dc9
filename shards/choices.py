"""Settings and names of which there are only some: what is said of any other."""

from collections.abc import Iterable
from difflib import get_close_matches

from .errors import ConfigError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest known name, "" where none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def not_known(said: str, value: str, choices: Iterable[str]) -> ConfigError:
    """The error that tells what there is. said: the value with what it is of, as in `codec 'f8'`."""
    there = list(choices)
    return ConfigError(f"{said} is not known{did_you_mean(value, there)}; choose one of {', '.join(there)}.")


def require_one_of(name: str, value: str, choices: Iterable[str]) -> None:
    """ConfigError unless the value of a setting is one of those there are."""
    if value not in choices:
        raise not_known(f"{name}={value!r}", value, choices)

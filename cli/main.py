"""The command `weakmcn`: a table of verbs, and the one place where faults become messages and exit codes.

Nothing here or in the verbs' modules imports torch, Ray or OpenCV before a verb runs, so help is instant.
"""

import inspect
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ..shards import faults
from ..shards.choices import did_you_mean
from ..shards.errors import WeakmcnError
from . import (
    check,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    pocket,
    precompute,
    predict,
    presets,
    report,
    runs,
    serve,
    store,
    tables,
    train,
)
from .completion import setting_names
from .plain_help import PlainCommand, PlainGroup

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
_terminated = threading.Event()
DEBUG = "--debug"
PHRASE = "--phrase"
GO_ON = ("demo", "precompute", "train", "tables")
"""Commands that, interrupted and typed again, go on where they were."""


def reflowed(docstring: str | None) -> str:
    """A docstring as help: each paragraph one line, for the terminal to wrap, but those after a line with `\\b`."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(
        text.removeprefix("\b\n") if text.startswith("\b\n") else text.replace("\n", " ") for text in paragraphs
    )


app = typer.Typer(
    name="weakmcn",
    cls=PlainGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    epilog="Begin with: weakmcn demo. Each command has its own --help, with an example.",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "pocket": pocket.pocket,
    "check": check.check,
    "precompute": precompute.precompute,
    "train": train.train,
    "eval": evaluate.evaluate,
    "predict": predict.predict,
    "serve": serve.serve,
    "export": export.export,
    "report": report.report,
    "tables": tables.tables,
    "convert": convert.convert,
    "doctor": doctor.doctor,
    "presets": presets.presets,
}
for name, command in COMMANDS.items():
    app.command(name, cls=PlainCommand, help=reflowed(command.__doc__))(command)
for name, group in {"store": store.app, "runs": runs.app}.items():
    for command in group.registered_commands:
        command.cls = PlainCommand
        command.help = reflowed(command.callback.__doc__ if command.callback else None)
    app.add_typer(group, name=name)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"weakmcn {version('weakmcn')}")
        raise typer.Exit()


def weakmcn(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    own: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="FILE", help="A Python file with methods of your own; its code is run. May be repeated."
        ),
    ] = None,
    debug: Annotated[
        bool, typer.Option(DEBUG, help="Print the traceback of an error too; may stand anywhere.")
    ] = False,
) -> None:
    """Boxes and masks for referring expressions, learned without one annotated box or mask.

    The work has two halves. `precompute` runs frozen networks over the photographs once and keeps what they see in a
    store; `train` learns from that store, `eval` measures, `predict` answers.

    Exit codes: 0 done; 1 failed; 2 the input or the command line is wrong, nothing was started; 3 finished, but
    something was left out, and told (a skipped image, a sentence without an answer, a row of a table); 130 or 143
    interrupted.
    """
    for file in own or ():
        from ..model.own import add_methods

        add_methods(file)


app.callback(help=reflowed(weakmcn.__doc__))(weakmcn)


def main() -> int:
    """Run the command line of this process; the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    debug = DEBUG in sys.argv
    try:
        faults.check_environment()
        status = app([word for word in sys.argv[1:] if word != DEBUG], prog_name="weakmcn", standalone_mode=False)
    except WeakmcnError as fault:
        return _tell(fault, fault.exit_code, debug)
    except typer.TyperException as fault:
        return _tell(_usage(fault), fault.exit_code, debug)
    except SystemExit as ended:
        if ended.code != TERMINATED and not _terminated.is_set():  # Ray turns ours into one of its own at times
            raise
        return _tell(_stopped(), TERMINATED, debug)
    except OSError as fault:
        if fault.filename is None:
            raise
        return _tell(f"{fault.filename}: {fault.strerror}.", 1, debug)
    if status == INTERRUPTED:  # typer turned the KeyboardInterrupt into this
        return _tell(_stopped(), status, debug)
    return status or 0


def _stopped() -> str:
    """What is said of the command of this process where a signal ended it."""
    words = iter(sys.argv[1:])
    for word in words:
        if word == "--with":
            next(words, None)
        elif not word.startswith("-"):
            if word in GO_ON:
                return "interrupted; what was finished is kept, the same command goes on from there."
            break
    return "interrupted."


def _tell(fault: Exception | str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if str(fault):
        typer.echo(f"weakmcn: {fault}", err=True)
    return status


def _usage(fault: typer.TyperException) -> str:
    """A wrong command line in one line, with the command whose help says more; "" where that help was printed."""
    message = " ".join(fault.format_message().split()).replace("Value error, ", "").rstrip(".")
    if not message:
        return ""
    context: Any = getattr(fault, "ctx", None)
    see = f"see {context.command_path if context else 'weakmcn'} --help."
    asked = getattr(fault, "option_name", "").lstrip("-")
    for argument in context.command.params if asked and context else ():
        word = argument.metavar or argument.name.upper()
        if argument.param_type_name == "argument" and asked in (argument.name, word.lower()):
            return f"no such option: --{asked}; write {word} without it: {context.command_path} {word}; {see}"
    message = message[:1].lower() + message[1:]
    if message.startswith("no such option"):
        message = f"no such option: --{asked}{_instead(asked, context)}"
    elif message.startswith("got unexpected extra argument"):
        message = f"{message}; {mend}" if (mend := _one_each(context)) else message
    return f"{message}{'' if message.endswith('?') else ';'} {see}"


def _instead(asked: str, context: Any) -> str:
    """What may be meant by an option that a command does not have: " (did you mean ...?)", or what to write."""
    if asked == "with" and context.parent is not None:
        return f"; it stands before the command: weakmcn --with FILE {context.info_name} …"
    options = [option for each in context.command.params for option in each.opts if option.startswith("--")]
    if "--set" in options:
        field = asked.replace("-", "_")
        if setting := next((name for name in setting_names() if name.partition(".")[2] == field), None):
            return f"; it is a setting: --set {setting}=VALUE"
    return did_you_mean(f"--{asked}", options)


def _one_each(context: Any) -> str:
    """What to write where several words stand behind an option that takes one: of a phrase, or of photos/*.jpg."""
    repeated = {option: each for each in context.command.params if each.multiple for option in each.opts}
    for place, word in enumerate(sys.argv):
        given = list(takewhile(lambda other: not other.startswith("-"), sys.argv[place + 1 :]))
        if word not in repeated or len(given) < 2:
            continue
        if all(Path(other).suffix or Path(other).exists() for other in given):
            folder = ", or name their folder" if "DIR" in (repeated[word].metavar or "") else ""
            return f"{word} takes one, write it again before each{folder}"
        if PHRASE in repeated:
            phrase = " ".join(given if word == PHRASE else given[1:]).strip("“”„‘’\"'")
            return f'several words need plain quotes: {PHRASE} "{phrase}"'
    return ""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    _terminated.set()
    raise SystemExit(TERMINATED)

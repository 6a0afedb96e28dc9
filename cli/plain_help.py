"""Help as it is printed: no type beside flags and arguments, defaults told in words in one pair of brackets."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class PlainCommand(TyperCommand):
    """A command whose help reads so."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group of commands whose own help reads so."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _plain(super().get_params(ctx))


def _plain(parameters: list[Any]) -> list[Any]:
    for each in parameters:
        if getattr(each, "is_flag", False):
            each.metavar = ""
        if each.param_type_name == "argument":  # its name says what it is
            each.display_type_rich = lambda ctx: None
        if isinstance(each.show_default, str):  # typer would print [default: (the run's own)]
            each.help = f"{each.help} [dim]\\[default: {each.show_default}][/dim]"
            each.show_default = False
    return parameters

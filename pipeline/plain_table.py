"""The one kind of table that commands print."""

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(*, gap: int = 2, title: str = "", footer: bool = False) -> Table:
    """A table without a frame, a rule below its heads; `gap` more blanks behind a column than the one there is."""
    return Table(
        title=title or None,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, gap, 0, 0),
        show_footer=footer,
    )

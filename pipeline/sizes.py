"""What a dry run tells beside the plan: bytes by column under each codec, and what the photographs have already."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group

from ..shards.codec import CODECS
from ..shards.layout import IMAGES_FILE, references_path
from ..shards.tables import IMAGES, REFERENCES, read_table
from .datasets import find_dataset
from .estimate import bytes_by_column, in_bytes
from .plain_table import plain_table, with_words
from .plan import Plan, Shards

SMALL = 0.01
"""Columns of a smaller share of their stage's bytes are one row."""


def codec_table(plan: Plan) -> Group:
    """Bytes of what is to be written, a row a column, a column a codec."""
    chosen = plan.config.codec
    table = plain_table(footer=True)
    sizes = {codec: _sizes(plan, codec) for codec in CODECS}
    totals = {codec: sum(rows.values()) for codec, rows in sizes.items()}
    table.add_column("bytes to write", "all", no_wrap=True)
    for codec in CODECS:
        style = "bold" if codec == chosen else "dim"
        head = f"{codec} *" if codec == chosen else codec
        table.add_column(head, in_bytes(totals[codec]), justify="right", no_wrap=True, style=style)
    for name in sizes[chosen]:
        table.add_row(name, *(in_bytes(sizes[codec][name]) for codec in CODECS))
    return with_words(table, below=f"* --codec {chosen}; what each one changes: docs/store.md")


def _sizes(plan: Plan, codec: str) -> dict[str, int]:
    """Column -> bytes of its values in the shards to be made; the small ones of a stage together."""
    rows: dict[str, int] = {}
    for stage in plan.stages:
        if not stage.due:
            continue
        small = [name for name, size in stage.columns.items() if size < SMALL * stage.bytes]
        label = small[0] if len(small) == 1 else f"{stage.stage.name}, {len(small)} small ones"
        for name, size in bytes_by_column(stage.stage, plan.config, codec, frame=stage.frame).items():
            row = label if name in small else name
            rows[row] = rows.get(row, 0) + stage.images_due * size
    return rows


def shared_note(plan: Plan, index_folder: Path, dataset: str, splits: Sequence[str], shards: Shards) -> list[str]:
    """One line on the photographs that other splits or data sets have brought into the store; none where none is."""
    if not (plan.store / IMAGES_FILE).exists():
        return []
    name = find_dataset(dataset).name
    spoken = read_table(references_path(index_folder, name), REFERENCES)
    pairs = zip(spoken["key"].to_pylist(), spoken["split"].to_pylist(), strict=True)
    wanted = {key for key, split in pairs if split in splits}
    shared = wanted & set(read_table(plan.store / IMAGES_FILE, IMAGES)["key"].to_pylist())
    if not shared:
        return []
    ready, saved = [], 0
    for stage in plan.stages:
        due = {row.key for number in stage.due for row in shards[number]}
        kept = len(shared - due)
        if kept:
            ready.append(stage.stage.name if kept == len(shared) else f"{stage.stage.name} for {kept:,}")
            saved += kept * sum(
                bytes_by_column(stage.stage, plan.config, plan.config.codec, frame=stage.frame).values()
            )
    has = f"they have {', '.join(ready)} ({in_bytes(saved)})" if ready else "none of their columns can be kept"
    return [f"{len(shared):,} of the {len(wanted):,} photographs asked for are in the store already; {has}"]

"""The store's Parquet tables: their columns, and the one way they are written and read.

Pages carry a checksum when written and are checked when read; without it a flipped bit gives another value in silence.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .atomic import finished_file, output
from .errors import DamagedShardError, StoreError
from .mend import refill

IMAGES = pa.schema(
    [
        ("key", pa.string()),  # twelve digits
        ("source", pa.string()),  # whose images these are, "coco" for instance
        ("file", pa.string()),  # relative to the source's root
        ("height", pa.int32()),  # photo pixels
        ("width", pa.int32()),
        ("shard", pa.int32()),  # which shard of every family holds it; never changes
        ("row", pa.int32()),  # its place among the shard's images
        ("sha256", pa.string()),  # of the file's bytes
    ]
)
"""images.parquet: one row an image."""

REFERENCES = pa.schema(
    [
        ("ref_id", pa.int64()),
        ("key", pa.string()),
        ("split", pa.string()),
        ("category", pa.int32()),
        ("category_name", pa.string()),
        ("box", pa.list_(pa.float64(), 4)),  # x y w h, photo pixels
        ("mask", pa.string()),  # COCO run lengths over the whole photo; null where there is none
        ("sent_ids", pa.list_(pa.int64())),
        ("sentences", pa.list_(pa.string())),
    ]
)
"""refs-<dataset>.parquet: one row a reference."""


MAX_ROWS, MAX_BYTES = 20_000_000, 1 << 31
"""Rows, and bytes once they are unpacked, of the largest table; a few bytes can ask for a billion equal rows."""
SKIPPED = b"skipped"
"""Key of the metadata of images.parquet that holds, as JSON, key -> reason of the images left out."""


def skipped_photos(images: pa.Table) -> dict[str, str]:
    """Key -> reason, the photographs that images.parquet (`Store.images`) names as left out."""
    try:
        skipped = json.loads((images.schema.metadata or {}).get(SKIPPED, b"{}"))
        if isinstance(skipped, dict) and all(isinstance(reason, str) for reason in skipped.values()):
            return skipped
    except (ValueError, RecursionError):
        pass
    raise DamagedShardError("images.parquet: its list of photographs left out is damaged; put a copy of it back.")


def write_table(path: Path, table: pa.Table) -> None:
    """Publish a table as Parquet; the same table gives the same bytes."""
    with finished_file(path) as temporary, output(temporary) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """A table that `write_table` wrote; StoreError if it is absent or lacks a column, DamagedShardError if broken.

    Only the columns of `schema` are kept, in its order; the file's own metadata stays.
    """
    try:
        _require_sane(path)
        table = pq.read_table(path, page_checksum_verification=True, use_threads=False)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; {_mend(path)}") from None
    except (OSError, pa.ArrowException) as error:
        raise DamagedShardError(f"{path} is damaged ({_first_line(error)}); {_mend(path)}") from error
    if schema is None:
        return table
    for field in schema:
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            raise StoreError(f"{path} has no column {field.name!r} of type {field.type}; {_mend(path)}")
        if table[field.name].null_count and field.name != "mask":
            raise DamagedShardError(f"{path} is damaged (no {field.name} in some row); {_mend(path)}")
    return table.select(schema.names)


def _require_sane(path: Path) -> None:
    """pa.ArrowInvalid, nothing unpacked, for more rows or bytes than a table has."""
    footer = pq.read_metadata(path)
    size = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    if footer.num_rows > MAX_ROWS or size > MAX_BYTES:
        raise pa.ArrowInvalid(f"{footer.num_rows:,} rows of {size:,} bytes, more than a table has")


def _mend(path: Path) -> str:
    """How a table of a store is had again; they are named after what is in them."""
    store, dataset = path.parent, path.stem.removeprefix("refs-")
    if dataset != path.stem:
        return f"make it again: {refill(store, dataset=dataset)}"
    return f"put a copy of it back, or remove it and index all its data sets again, in their order: {refill(store)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:60]

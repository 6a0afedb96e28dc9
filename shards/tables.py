"""The store's Parquet tables: their columns, and the one way they are written and read.

Pages carry a checksum when written and are checked when read; without it a flipped bit gives another value in silence.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .atomic import finished_file
from .errors import DamagedShardError, StoreError

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


SKIPPED = b"skipped"
"""Key of the metadata of images.parquet that holds, as JSON, key -> reason of the images left out."""


def skipped_photos(images: pa.Table) -> dict[str, str]:
    """Key -> reason, the photographs that images.parquet (`Store.images`) names as left out."""
    return json.loads((images.schema.metadata or {}).get(SKIPPED, b"{}"))


def write_table(path: Path, table: pa.Table) -> None:
    """Publish a table as Parquet; the same table gives the same bytes."""
    with finished_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """A table that `write_table` wrote; StoreError if it is absent or lacks a column, DamagedShardError if broken.

    Only the columns of `schema` are kept, in its order; the file's own metadata stays.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True, use_threads=False)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; make it: weakmcn precompute.") from None
    except (OSError, pa.ArrowException) as error:
        raise DamagedShardError(f"{path} is damaged ({error}); remove it and run weakmcn precompute.") from error
    if schema is None:
        return table
    for field in schema:
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            raise StoreError(f"{path} has no column {field.name!r} of type {field.type}; run weakmcn precompute.")
    return table.select(schema.names)

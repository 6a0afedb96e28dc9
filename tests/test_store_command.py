"""`weakmcn store ls|verify|gc`: what a store holds, what is wrong with it, what may go."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner
from weakmcn.cli.store import app
from weakmcn.shards.errors import ConfigError, StoreError, WeakmcnError
from weakmcn.shards.lock import only_writer
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import gc
from weakmcn.shards.tables import REFERENCES, write_table

from .small_store import KEYS, PER_SHARD, Small, cut, flip, write_family

# The command.


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_ls_shows_every_family_and_its_state(small: Small) -> None:
    old = small.folder("sam")
    write_family(small.path, "sam", checkpoint="b", shards=2)
    code, text = run("ls", small.path)
    lines = {name: line for line in text.splitlines() for name in (old.name, "masks-", "detect-") if name in line}
    assert code == 0
    assert "6 images, canvas 96 px" in text
    assert "not in use" in lines[old.name]
    assert "stale: another sam" in lines["masks-"]
    assert "2 images missing" in text
    assert "in use" in lines["detect-"]


def test_ls_counts_the_references_whose_images_are_there_split_by_split(small: Small) -> None:
    def row(ref_id: int, key: str, split: str, sentences: list[str]) -> dict[str, Any]:
        what = {"category": 1, "category_name": "disc", "box": [0.0, 0.0, 1.0, 1.0], "mask": None}
        said = {"sentences": sentences, "sent_ids": [ref_id] * len(sentences)}
        return {"ref_id": ref_id, "key": key, "split": split} | what | said

    rows = [
        row(1, KEYS[0], "train", ["a", "b"]),
        row(2, KEYS[1], "train", ["c"]),
        row(3, "000000000999", "train", ["d"]),
        row(4, "000000000998", "val", ["e"]),
    ]
    write_table(small.path / "refs-refcoco.parquet", pa.Table.from_pylist(rows, schema=REFERENCES))
    assert "  refcoco: train 2 references, 3 sentences; no images of val\n" in run("ls", small.path)[1]
    cut(small.path / "refs-refcoco.parquet", 100)
    assert "refs-refcoco.parquet is damaged" in run("ls", small.path)[1]


def test_verify_ends_with_1_on_damage_and_0_without(small: Small) -> None:
    assert run("verify", small.path)[0] == 0
    place = Reader(small.open(), ["sam.embedding"]).where(KEYS[3])["sam.embedding"]
    flip(place.path, place.offset)
    code, text = run("verify", small.path)
    assert code == 1
    assert f"{KEYS[3]}.embedding.npy fails its checksum" in text
    assert text.endswith(f"1 problem. To mend: weakmcn store repair {small.path}\n")
    assert run("verify", small.path, "--quick")[0] == 0
    assert run("verify", small.path, "--stages", "detect,masks")[0] == 0
    with pytest.raises(ConfigError, match="'depth' is not known"):
        run("verify", small.path, "--stages", "depth")


def test_verify_names_the_columns_that_lack_images(small: Small) -> None:
    for suffix in ("tar", "json"):
        (small.folder("sam") / f"000000.{suffix}").unlink()
    code, text = run("verify", small.path)
    assert code == 0
    assert f"sam lacks {PER_SHARD} images; weakmcn precompute" in text
    assert "--stages sam" in text


def test_a_folder_above_a_store_is_told_where_the_store_is(small: Small) -> None:
    with pytest.raises(StoreError, match=f"is it {re.escape(str(small.path))}"):
        run("verify", small.path.parent)


def test_gc_says_what_it_would_remove_and_then_removes_it(small: Small) -> None:
    old = small.folder("sam")
    write_family(small.path, "sam", checkpoint="b")
    code, text = run("gc", small.path, "--dry-run")
    assert (code, old.exists()) == (0, True)
    assert "would be freed" in text
    assert run("gc", small.path)[0] == 0
    assert not old.exists()


def test_gc_waits_for_no_one_and_touches_nothing_while_a_precompute_holds_the_store(small: Small) -> None:
    with only_writer(small.path, "weakmcn precompute"), pytest.raises(WeakmcnError, match="weakmcn precompute"):
        gc(small.path)

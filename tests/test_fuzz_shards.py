"""No damage to a shard or to its record gives a wrong array, a missing image, or an error that is not ours."""

from pathlib import Path

from .soak.fuzz import Victim, fuzz

MUTATIONS = 1500


def test_1500_mutations_of_shards_and_records_are_refused_or_do_not_matter(tmp_path: Path) -> None:
    done = fuzz(Victim(tmp_path / "store"), mutations=MUTATIONS, seed=0)
    assert done.faults == []
    assert done.refused + done.equal == MUTATIONS
    assert done.refused > 2 * done.equal  # they do hit
    assert min(done.kinds.values()) > 0
    assert len(done.kinds) == 14  # each kind of damage was refused at least once


def test_a_reader_that_checks_nothing_would_be_caught(tmp_path: Path) -> None:
    """The bench itself: values changed behind a reader's back are told as wrong."""
    victim = Victim(tmp_path / "store")
    victim.expected["sam"]["sam.embedding"] = victim.expected["sam"]["sam.embedding"] + 1
    done = fuzz(victim, mutations=200, seed=0)
    assert any("wrong values of sam.embedding" in fault for fault in done.faults)

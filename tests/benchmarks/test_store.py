"""The store's benchmark at a small size: its database is one, and its measures measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsearch.results.store.store import Store
from sparsearch.testing.store_reference import check_answers

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "store"


def test_a_small_database_is_filled_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    import store as benchmark

    db = str(tmp_path / "small.db")
    facts, smallest = benchmark.prepare(db, 2, 8)
    assert (facts["structures"], facts["studies"]) == (16, 2)
    asked = benchmark.questions(2, smallest)
    with Store.open(db, create=False) as store:
        check_answers(store)
        before = store.studies()
    assert set(benchmark.measure_reads(db, asked, 0.01)) == set(asked)
    writes = benchmark.measure_writes(db, 5)
    assert all(row["count"] == 5 and row["per_second"] > 0 for row in writes.values())
    benchmark.forget_written(db)
    with Store.open(db, create=False) as store:
        assert store.studies() == before
        check_answers(store)

"""Queries against brute force, and against the number of rows."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from sparsearch.errors import ConfigError
from sparsearch.results import Owner, Store
from sparsearch.results.store.connection.database import open_database
from sparsearch.testing.store_conformance import sample_outcome, sample_study
from sparsearch.testing.store_reference import check_answers, recommendable

_FRONT = "SELECT number FROM trials JOIN studies ON studies.id = study_id WHERE on_front AND name = :study"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """40 random trials with many ties: one study on each of two backbones."""
    draw = random.Random(0)
    with Store.open(tmp_path_factory.mktemp("store") / "x.db", create=True) as store:
        for name, backbone in (("a", 1_000), ("b", 2_500)):
            store.begin_study(sample_study(name, 20, model=name, backbone_params=backbone))
            for number in range(20):
                score, ratio = draw.randrange(5) / 4, draw.choice([0.5, 0.75, 1.0])
                state = draw.choice(["ok", "ok", "ok", "failed"])
                outcome = sample_outcome(score, draw.randrange(1, 6), ratio=ratio, state=state)
                store.finish(name, number, outcome)
        yield store


@pytest.mark.parametrize("params", [None, 2, "3", "0.1%", "0.16%", "0.2%"])
@pytest.mark.parametrize("flops", [None, "75%", 0.5, "10%"])
@pytest.mark.parametrize("study", [None, "a", "b"])
def test_best_agrees_with_brute_force(
    store: Store, study: str | None, params: int | str | None, flops: str | float | None
) -> None:
    most = {
        None: (99, 99),
        2: (2, 2),
        "3": (3, 3),
        "0.1%": (1, 2),
        "0.16%": (1, 4),
        "0.2%": (2, 5),
    }[params]
    ratio = {None: 2.0, "75%": 0.75, 0.5: 0.5, "10%": 0.1}[flops]
    fitting = [
        (-t.score, t.trainable_params, name, t.number)
        for name, limit in zip("ab", most, strict=True)
        for t in store.trials(name)
        if study in (None, name)
        and t.state == "ok"
        and t.trainable_params <= limit
        and t.inference_flops_ratio <= ratio
    ]
    best = store.best(study=study, max_trainable_params=params, max_inference_flops=flops)
    found = best and (-best.score, best.trainable_params, best.study, best.trial)
    assert found == min(fitting, default=None)


def test_limits_that_cannot_be_read(tmp_path: Path) -> None:
    with Store.open(tmp_path / "x.db", create=True) as empty:
        for limits in ({"max_trainable_params": "few"}, {"max_inference_flops": "half"}):
            with pytest.raises(ConfigError, match="percentage"):
                empty.best(**limits)
        for limits in ({"max_bytes": "200%"}, {"min_weight_sparsity": "150%"}):
            with pytest.raises(ConfigError, match="more than the whole"):
                empty.best(**limits)
        assert empty.best(max_trainable_params=str(10**30)) is None


@pytest.mark.parametrize(
    ("name", "limit", "advice"),
    [
        ("max_inference_flops", "0.75", "75%"),
        ("max_inference_flops", "75", "75%"),
        ("min_weight_sparsity", "0.5", "50%"),
        ("max_trainable_params", "0.01", "0.01%"),
    ],
)
def test_a_forgotten_sign_gets_the_share_that_was_meant(
    tmp_path: Path, name: str, limit: str, advice: str
) -> None:
    with Store.open(tmp_path / "x.db", create=True) as empty, pytest.raises(ConfigError) as caught:
        empty.best(**{name: limit})
    assert caught.value.hint == f"write {advice}"


@pytest.mark.parametrize(
    ("question", "index"),
    [({"task": "trec"}, "ix_trials_front"), ({"study": "a"}, "ix_trials_study_front")],
)
def test_best_walks_down_the_front_and_reads_no_rows(
    tmp_path: Path, question: dict[str, str], index: str
) -> None:
    """Among a million trials this is the difference between milliseconds and seconds."""
    database = open_database(tmp_path / "x.db", create=True)
    store = Store(database, Owner.current())
    store.begin_study(sample_study("a"))
    asked: list[tuple[str, Any]] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def listen(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "ORDER BY" in statement:
            asked.append((statement, parameters))

    assert (
        store.best(max_trainable_params=9, max_bytes=9, max_inference_flops=0.5, **question)
        is None
    )
    ((statement, parameters),) = asked
    with database.engine.connect() as connection:
        explain = f"EXPLAIN QUERY PLAN {statement}"
        (step,) = connection.exec_driver_sql(explain, parameters).all()
    assert f"USING COVERING INDEX {index} " in step[3]
    store.close()


def test_rounding_of_shares_beats_nothing(tmp_path: Path) -> None:
    """Half of 1,536 weights and half of 107 differ by less than anybody wants."""
    with Store.open(tmp_path / "x.db", create=True) as store:
        store.begin_study(sample_study("a", 4))
        for number, (score, sparsity, ratio) in enumerate(
            ((0.9, 0.5000013, 1.0), (0.95, 0.5000012, 1.0), (0.94, 0.5, 0.99999), (0.8, 0.6, 1.0))
        ):
            outcome = sample_outcome(score, sparsity=sparsity, ratio=ratio, layer=number)
            store.finish("a", number, outcome)
        assert [b.trial for b in store.pareto("a")] == [3, 1]
        exact = store.best(min_weight_sparsity=0.5000013)
        assert exact is not None and exact.trial == 0, "limits are exact"
        check_answers(store)


def test_front_holds_nothing_that_is_beaten(store: Store) -> None:
    """It would still be right with more on it, but not quick."""
    for study in ("a", "b"):
        points = recommendable(0, store.trials(study))
        front = {p for p in points if not any(q.no_worse(p) and q < p for q in points)}
        with store._database.reading() as session:
            rows = session.execute(text(_FRONT), {"study": study})
            assert set(rows.scalars()) == {p.number for p in front}

"""Queries against brute force, and against the number of rows."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsearch.errors import ConfigError
from sparsearch.results import Best, Store
from sparsearch.results.conformance import sample_outcome, sample_study
from sparsearch.results.database import open_database


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


def _beats(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one != two and all(a <= b for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("study", ["a", "b"])
def test_pareto_agrees_with_brute_force(store: Store, study: str) -> None:
    points = {
        t.number: (-t.score, t.trainable_params, t.inference_flops_ratio)
        for t in store.trials(study)
        if t.state == "ok"
    }
    expected: dict[tuple[float, ...], int] = {}
    for number, point in points.items():
        if not any(_beats(other, point) for other in points.values()):
            expected.setdefault(point, number)
    front = store.pareto(study)
    assert {b.trial for b in front} == set(expected.values())
    assert [b.trainable_params for b in front] == sorted(b.trainable_params for b in front)
    assert all(isinstance(b, Best) for b in front)


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


def test_best_reads_no_rows_but_the_winner(tmp_path: Path) -> None:
    """Among a million trials this is the difference between milliseconds and seconds."""
    database = open_database(tmp_path / "x.db", create=True)
    with database.engine.connect() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT id, score, trainable_params, study_id, number FROM trials "
            "WHERE recommendable = 1 AND model = 'm' AND task = 't' AND backbone_params = 5 "
            "AND trainable_params <= 9 AND inference_flops_ratio <= 0.5 "
            "ORDER BY score DESC, trainable_params, study_id, number LIMIT 1"
        ).all()
    database.engine.dispose()
    assert len(plan) == 1
    assert "COVERING INDEX ix_trials_best" in plan[0][3]


def test_lists_are_read_without_torch(tmp_path: Path) -> None:
    """Importing it costs seconds; only a structure's document needs it."""
    database = str(tmp_path / "lists.db")
    with Store.open(database, create=True) as store:
        store.begin_study(sample_study(trials=3))
    code = (
        "import sys; from sparsearch.results.store import open_store; "
        f"store = open_store({database!r}); "
        "print(len(store.trials('study')), len(store.studies()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "1", "False"]

"""Paired comparisons of the searched strategy with its rivals."""

import math
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest

from sparsearch.results import TrialRecord
from sparsearch.results.report.comparison import (
    Comparison,
    compare,
    comparison_text,
    t_interval,
)

BUDGET = {"max_trainable_params": 100, "text": "0.01%"}


def trial(strategy: str, seed: int, score: float | None, **other: object) -> TrialRecord:
    record = TrialRecord(
        *("study", 0, strategy, seed, BUDGET, "ok", "", score),
        *(0.5, f"{seed:064x}", 90, 7, 1.0, 1.5, 2**30, 1),
    )
    return replace(record, **other)  # type: ignore[arg-type]


def trials(**scores: list[float]) -> list[TrialRecord]:
    """Strategies and their scores, one per seed from 0."""
    return [
        trial(strategy.replace("lora_qv", "lora-qv"), seed, score)
        for strategy, listed in scores.items()
        for seed, score in enumerate(listed)
    ]


def test_interval_is_the_textbooks() -> None:
    low, high = t_interval([0.01, 0.02, 0.06])
    reach = 4.302653 * statistics.stdev([0.01, 0.02, 0.06]) / math.sqrt(3)
    assert (low, high) == (pytest.approx(0.03 - reach), pytest.approx(0.03 + reach))
    assert t_interval([0.0, 1.0]) == pytest.approx((0.5 - 6.353102, 0.5 + 6.353102))
    assert t_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)


def test_one_line_for_each_family_with_its_best() -> None:
    done = trials(
        probe=[0.7, 0.8],
        lora=[0.6, 0.6],
        random=[0.5, 0.5],
        s3pet=[0.8, 0.9],
        lora_qv=[0.7, 0.7],
    )
    ranked = ["s3pet", "probe", "lora-qv", "lora", "random"]
    found = compare(done, "s3pet", ranked)
    assert [(c.family, c.rival, c.n) for c in found] == [
        ("random", "random", 2),
        ("uniform", "lora-qv", 2),
        ("probe", "probe", 2),
    ]
    assert [c.difference for c in found] == pytest.approx([0.35, 0.15, 0.1])
    assert [c.family for c in compare(done, "probe", ranked)] == ["random", "uniform", "s3pet"]
    assert [c.rival for c in compare(done, "lora-qv", ranked)][1:] == ["lora", "probe", "s3pet"]


def test_only_seeds_that_both_have_are_paired() -> None:
    done = [
        *trials(s3pet=[0.8, 0.9, 0.1], random=[0.7, 0.7]),
        trial("random", 2, None, state="failed"),
        trial("random", 7, 0.99),
    ]
    (found,) = compare(done, "s3pet", ["random", "s3pet"])
    assert (found.n, found.difference) == (2, pytest.approx(0.15))


def test_trials_of_one_seed_count_once() -> None:
    done = [*trials(s3pet=[0.8], random=[0.7]), trial("random", 0, 0.5)]
    (found,) = compare(done, "s3pet", ["s3pet", "random"])
    assert (found.n, found.low, found.high) == (1, None, None)
    assert found.difference == pytest.approx(0.2)


@pytest.mark.parametrize(
    "done",
    [
        [],
        trials(s3pet=[0.8]),
        trials(random=[0.8]),
        [trial("s3pet", 0, 0.8), trial("random", 1, 0.8)],
        [trial("s3pet", 0, 0.8, state="running"), trial("random", 0, 0.8)],
    ],
)
def test_nothing_to_pair(done: list[TrialRecord]) -> None:
    assert compare(done, "s3pet", ["s3pet", "random"]) == ()


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            Comparison("random", "random", 0.0307, 0.0112, 0.0502, 3),
            "s3pet against random at 0.01%: +0.0307 (95% interval +0.0112 to +0.0502, 3 seeds)",
        ),
        (
            Comparison("uniform", "lora-qv", -0.01, -0.02, -1e-9, 2),
            "s3pet against uniform (lora-qv) at 0.01%: -0.0100 "
            "(95% interval -0.0200 to +0.0000, 2 seeds)",
        ),
        (
            Comparison("probe", "probe", 0.01, None, None, 1),
            "s3pet against probe at 0.01%: +0.0100 (one seed decides nothing: add seeds)",
        ),
    ],
)
def test_text(found: Comparison, text: str) -> None:
    assert comparison_text(found, "s3pet", "0.01%") == text


def test_import_is_light() -> None:
    code = "import sys, sparsearch.results.report.summary; assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
